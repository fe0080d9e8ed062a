"""The loopback model in a running engine: every reply must come back to the byte, on both APIs, streamed and not.

    LOOPBACK_URL=http://127.0.0.1:8000 LOOPBACK_KEY=sk-… pytest tests/loopback_model/test_engine.py

LOOPBACK_MODEL (default: loopback) is the served name; LOOPBACK_KEY_FILE may name a file that holds the key.
Needs nothing but pytest, and no other file of this repository: it is copied to the host that serves the model.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import time
import urllib.error
import urllib.request

import pytest
from patience import HANGS

URL = os.environ.get("LOOPBACK_URL", "").rstrip("/")
MODEL = os.environ.get("LOOPBACK_MODEL", "loopback")
KEY_FILE = os.environ.get("LOOPBACK_KEY_FILE")
KEY = pathlib.Path(KEY_FILE).read_text().strip() if KEY_FILE else os.environ.get("LOOPBACK_KEY", "")
MOST = 16383  # bytes in one reply

pytestmark = pytest.mark.skipif(not URL, reason="LOOPBACK_URL is not set: no engine to ask")

KINDS = [(api, stream) for api in ("openai", "anthropic") for stream in (False, True)]
each_kind = pytest.mark.parametrize(("api", "stream"), KINDS, ids=lambda value: str(value))


class Answer:
    """What came back, in one form for both APIs."""

    def __init__(self):
        self.text = ""
        self.calls = []  # [name, arguments as JSON text]
        self.reason = None
        self.usage = {}
        self.chunks = []

    @property
    def parsed(self):
        return [(name, json.loads(arguments or "{}")) for name, arguments in self.calls]

    @property
    def cached(self):
        details = self.usage.get("prompt_tokens_details") or {}
        return self.usage.get("cache_read_input_tokens") or details.get("cached_tokens") or 0


def post(path, body):
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Bearer " + KEY,
        "anthropic-version": "2023-06-01",
    }
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    try:
        return urllib.request.urlopen(request, timeout=HANGS)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: HTTP {error.code}: {error.read().decode(errors='replace')}") from error


def events(response):
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            # Strict: a character that was cut in two would not decode.
            yield json.loads(line[6:].decode("utf-8"))


def ask_openai(messages, tools, stream, options):
    body = {"model": MODEL, "messages": messages, "stream": stream, **options}
    if tools:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in tools
        ]
    answer = Answer()
    if not stream:
        with post("/v1/chat/completions", body) as response:
            reply = json.load(response)
        choice = reply["choices"][0]
        answer.text = choice["message"]["content"] or ""
        for call in choice["message"].get("tool_calls") or []:
            answer.calls.append([call["function"]["name"], call["function"]["arguments"]])
        answer.reason, answer.usage = choice["finish_reason"], reply["usage"]
        return answer
    body["stream_options"] = {"include_usage": True}
    with post("/v1/chat/completions", body) as response:
        for event in events(response):
            answer.usage = event.get("usage") or answer.usage
            for choice in event["choices"]:
                delta = choice["delta"]
                if delta.get("content"):
                    answer.chunks.append(delta["content"])
                for call in delta.get("tool_calls") or []:
                    if call["index"] == len(answer.calls):
                        answer.calls.append(["", ""])
                    function = call.get("function") or {}
                    answer.calls[call["index"]][0] += function.get("name") or ""
                    answer.calls[call["index"]][1] += function.get("arguments") or ""
                answer.reason = choice.get("finish_reason") or answer.reason
    answer.text = "".join(answer.chunks)
    return answer


def ask_anthropic(messages, tools, stream, options):
    body = {"model": MODEL, "messages": messages, "stream": stream, "max_tokens": MOST + 1, **options}
    if tools:
        body["tools"] = [{"name": name, "input_schema": schema} for name, schema in tools]
    answer = Answer()
    if not stream:
        with post("/v1/messages", body) as response:
            reply = json.load(response)
        for block in reply["content"]:
            if block["type"] == "text":
                answer.text += block["text"]
            elif block["type"] == "tool_use":
                answer.calls.append([block["name"], json.dumps(block["input"])])
        answer.reason, answer.usage = reply["stop_reason"], reply["usage"]
        return answer
    with post("/v1/messages", body) as response:
        for event in events(response):
            if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
                answer.calls.append([event["content_block"]["name"], ""])
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "text_delta":
                    answer.chunks.append(delta["text"])
                elif delta["type"] == "input_json_delta":
                    answer.calls[-1][1] += delta["partial_json"]
            elif event["type"] == "message_delta":
                answer.reason = event["delta"]["stop_reason"]
                answer.usage = event.get("usage") or answer.usage
    answer.text = "".join(answer.chunks)
    return answer


def ask(api, stream, messages, tools=(), **options):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return (ask_openai if api == "openai" else ask_anthropic)(messages, tools, stream, options)


ANY = {"type": "object"}
WEATHER = (
    "get_weather",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def random_text(rng, most):
    kinds = [
        lambda: chr(rng.randrange(32, 127)),
        lambda: rng.choice("\"'\\/{}[]<>`$\n\t\r\x00\x1f\x7f"),
        lambda: chr(rng.randrange(0x4E00, 0x9FA5)),
        lambda: chr(rng.randrange(0x1F300, 0x1F650)),
        lambda: chr(rng.randrange(0xA0, 0x700)),
        lambda: rng.choice(["</tool_call>", "<|im_end|>", "\ue000", "\u2028", "<system>", '"arguments": ', "}}"]),
    ]
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(most)))


def random_value(rng, depth=0):
    choices = [
        lambda: random_text(rng, 30),
        lambda: rng.randrange(-(10**9), 10**9),
        lambda: rng.choice([True, False, None, 0.5, -1e-3]),
        lambda: [random_value(rng, depth + 1) for _ in range(rng.randrange(3))],
        lambda: random_object(rng, depth + 1),
    ]
    return rng.choice(choices[: 3 if depth > 1 else 5])()


def random_object(rng, depth=0):
    return {random_text(rng, 8) + str(n): random_value(rng, depth) for n in range(rng.randrange(1, 4))}


def test_random_tool_calls_are_exact():
    """128 random calls, eight at a time, evenly over both APIs, streamed and not, with and without temperature."""
    rng = random.Random(20261121)
    cases = []
    for number in range(128):
        api, stream = KINDS[number % 4]
        calls = [(f"tool_{rng.randrange(99)}", random_object(rng)) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        script = "\n".join(
            f"{'@also' if n else '@call'} {name} {json.dumps(value, ensure_ascii=rng.random() < 0.3)}"
            for n, (name, value) in enumerate(calls)
        )
        # What separates lines is left out of the JSON anyway: json.dumps escapes it.
        options = {"temperature": rng.choice([0, 0.7, 1.0])}
        cases.append((api, stream, script, sorted({name for name, _ in calls}), calls, options))

    def play(case):
        api, stream, script, names, calls, options = case
        answer = ask(api, stream, script, [(name, ANY) for name in names], **options)
        return answer.parsed == calls and answer.reason in ("tool_calls", "tool_use"), answer.calls

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(play, cases))
    wrong = [(case, got) for case, (right, got) in zip(cases, results) if not right]
    assert not wrong, f"{len(wrong)} of {len(cases)} wrong; the first: {wrong[0]}"


@each_kind
def test_chinese_text_and_emoji(api, stream):
    text = '你好，世界！今天北京晴，21°C。🎉👩‍👩‍👧‍👦 «é» \\ "quoted" <|im_end|>' * 3
    answer = ask(api, stream, "@say " + text)
    assert answer.text == text
    assert answer.reason in ("stop", "end_turn")
    if stream:
        assert len(answer.chunks) > 10
        assert "\ufffd" not in "".join(answer.chunks)


@each_kind
def test_a_tool_and_its_result(api, stream):
    """The classic question, without a script: call the tool, then say what it gave."""
    question = {"role": "user", "content": "北京今天天气怎么样？"}
    answer = ask(api, stream, [question], [WEATHER])
    assert answer.parsed == [("get_weather", {"city": "北京"})]
    if api == "openai":
        call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "北京"}'}}
        turns = [
            question,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "晴，21°C"},
        ]
    else:
        used = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "北京"}}
        block = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "晴，21°C"}]}
        turns = [
            question,
            {"role": "assistant", "content": [used]},
            {"role": "user", "content": [block, {"type": "text", "text": "<system-reminder>x</system-reminder>"}]},
        ]
    answer = ask(api, stream, turns, [WEATHER])
    assert answer.text == "loopback: 晴，21°C"
    assert not answer.calls


@each_kind
def test_text_and_parallel_calls(api, stream):
    script = '@say 我看一下。\n@also a {"x": 1}\n@also b {"y": "二"}\n@also a {}'
    answer = ask(api, stream, script, [("a", ANY), ("b", ANY)])
    assert answer.text == "我看一下。"
    assert answer.parsed == [("a", {"x": 1}), ("b", {"y": "二"}), ("a", {})]


def test_an_agents_conversation():
    """Shaped as Claude Code shapes it: system blocks, reminders around the task, a late system message."""
    tools = [("Bash", ANY), ("Read", ANY)]
    reminder = {"type": "text", "text": "<system-reminder>\n@say not this\n</system-reminder>"}
    script = (
        '@call Bash {"command": "echo 好 > a"}\n@also Read {"file_path": "a"}\n@call Bash {"command": "ls"}\n@result'
    )
    turns = [
        {"role": "user", "content": [reminder, {"type": "text", "text": script}, reminder]},
        {"role": "system", "content": "Tokens left: 1000"},
    ]
    options = {
        "system": [{"type": "text", "text": "You act.", "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "u"},
        "thinking": {"type": "adaptive"},
        "temperature": 1,
    }
    expected = [
        [("Bash", {"command": "echo 好 > a"}), ("Read", {"file_path": "a"})],
        [("Bash", {"command": "ls"})],
        [],
    ]
    for turn, calls in enumerate(expected):
        answer = ask("anthropic", True, turns, tools, **options)
        assert answer.parsed == calls
        assert answer.reason == ("tool_use" if calls else "end_turn")
        uses = [
            {"type": "tool_use", "id": f"t{turn}{n}", "name": name, "input": value}
            for n, (name, value) in enumerate(calls)
        ]
        results = [{"type": "tool_result", "tool_use_id": use["id"], "content": use["id"]} for use in uses]
        turns += [{"role": "assistant", "content": uses}, {"role": "user", "content": [*results, reminder]}]
    assert answer.text == "t10"


def test_a_long_reply():
    """One of the largest class of plans; up to its full 16,383 bytes it would only take longer."""
    text = "你好" * 1400  # 8,400 bytes
    assert ask("openai", False, "@say " + text).text == text


@each_kind
def test_a_reply_over_the_limit_is_refused_in_words(api, stream):
    answer = ask(api, stream, f"@repeat {MOST + 1} x")
    assert answer.text == f"loopback: reply longer than {MOST} bytes ({MOST + 1})"
    assert answer.reason in ("stop", "end_turn")


@each_kind
def test_stop_reasons(api, stream):
    answer = ask(api, stream, "@say 0123456789", max_tokens=4)
    assert (answer.text, answer.reason) == ("0123", "length" if api == "openai" else "max_tokens")
    answer = ask(api, stream, "@say abc STOP def", **{"stop" if api == "openai" else "stop_sequences": ["STOP"]})
    assert (answer.text, answer.reason) == ("abc ", "stop" if api == "openai" else "stop_sequence")


def test_penalties_and_temperature_change_nothing():
    text = "aaaaaaaaaa bbbbbbbbbb " * 8
    options = {"temperature": 2.0, "frequency_penalty": 2.0, "presence_penalty": 2.0, "seed": 1}
    assert ask("openai", False, "@say " + text, **options).text == text


def test_long_prompts_stay_exact_and_cached():
    """Some 40,000 tokens of prompt; four such at once share it. The second turn must find the first in the cache."""
    rng = random.Random(7)
    words = ["the", "file", "value", "return", "function", "error", "test", "data", "name", "你好"]
    salt = str(time.time_ns())
    long_text = salt + " ".join(rng.choice(words) for _ in range(36000))
    system = {"role": "system", "content": long_text}
    first = ask("openai", True, [system, {"role": "user", "content": "@say 第一"}])
    assert first.text == "第一"
    assert first.usage["prompt_tokens"] > 30000

    def later(number):
        text = f"第{number}次 " + "x" * number * 100
        return ask("openai", number % 2 == 0, [system, {"role": "user", "content": "@say " + text}]), text

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for answer, text in pool.map(later, range(8)):
            assert answer.text == text
            if answer.usage.get("prompt_tokens_details"):
                assert answer.cached > 30000
