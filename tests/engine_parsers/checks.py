"""Our tool parser and templates within a real vLLM. Needs nothing but vLLM's own Python environment:

    /opt/modelhost/vllm/current/bin/python tests/engine_parsers/checks.py FOLDER

FOLDER holds `parsers/` and `templates/`; default is this repository's catalog/. With MODEL set to a folder with a
tokenizer, templates are rendered with that one as well. test_parsers.py runs the same and more under pytest.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CATALOG = Path(os.environ.get("CATALOG") or HERE.parents[1] / "catalog")
PLUGIN = "json_tool_calls.py"
NAMES = ("qwen2_5_coder", "prompted_tools")
TOOLS = ["Bash", "Read", "Write", "search"]


class Tokenizer:
    """Parsers are given one and ours does not use it."""

    def get_vocab(self) -> dict[str, int]:
        return {}


def quotations() -> list[dict[str, Any]]:
    """What models wrote."""
    found = yaml.safe_load((HERE / "quotations.yml").read_text(encoding="utf-8"))
    assert len({case["output"] for case in found if case.get("calls")}) >= 10
    return [{"calls": [], "content": None, **case} for case in found]


def case(output: str, calls: list[tuple[str, Any]], content: str | None = None) -> dict[str, Any]:
    named = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {"form": output[:60], "tools": TOOLS, "output": output, "calls": named, "content": content}


def text(output: str) -> dict[str, Any]:
    return case(output, [], output)


LS = ("Bash", {"command": "ls"})
BASH = '{"name": "Bash", "arguments": {"command": "ls"}}'
READ = '{"name": "Read", "arguments": {"file_path": "/a b/ü.txt"}}'
READ_CALL = ("Read", {"file_path": "/a b/ü.txt"})
CODE = 'def f():\n\treturn {"a": "\\\\", \'b\': [1, {}]}  # </tool_call> ``` }} 😀 \u2028'


def made_up() -> list[dict[str, Any]]:
    """Forms that no quotation shows in full."""
    return [
        # Several calls
        case(f"<tool_call>\n{BASH}\n</tool_call>\n<tool_call>\n{READ}\n</tool_call>", [LS, READ_CALL]),
        case(f"<tool_call>{BASH}</tool_call><tool_call>{READ}</tool_call>", [LS, READ_CALL]),
        case(f"<tools>\n{BASH}\n{READ}\n</tools>", [LS, READ_CALL]),
        case(f"<tools>[{BASH}, {READ}]</tools>", [LS, READ_CALL]),
        case(f"```json\n[\n  {BASH},\n  {READ}\n]\n```", [LS, READ_CALL]),
        case(f"```json\n{BASH}\n```\n\n```json\n{READ}\n```", [LS, READ_CALL]),
        case(f"```json\n{BASH}\n{READ}\n```", [LS, READ_CALL]),
        case(f"{BASH}\n\n{READ}", [LS, READ_CALL]),
        case(f"{BASH}; {READ}", [LS, READ_CALL]),
        case(f"{BASH}{READ}", [LS, READ_CALL]),
        # Text around them
        case(f"I look.\n\n{BASH}\n\nThen I read.\n{READ}\nDone.", [LS, READ_CALL], "I look.\n\nThen I read.\n\nDone."),
        case(f"I look. <tool_call>{BASH}</tool_call> Done.", [LS], "I look.\n\nDone."),
        case(f"{BASH}\n```python\nprint(1)\n```", [LS], "```python\nprint(1)\n```"),
        case(f"```json\n{BASH}\n```\n```python\nprint(1)\n```", [LS], "```python\nprint(1)\n```"),
        case(f"a < b, <tools> and ``` are text\n{BASH}", [LS], "a < b, <tools> and ``` are text"),
        # Wrappings
        case(f"```\n{BASH}\n```", [LS]),
        case(f"```xml\n<tool_call>\n{BASH}\n</tool_call>\n```", [LS]),
        case(f"<tool_call>\n```json\n{BASH}\n```\n</tool_call>", [LS]),
        case(f"<xml><json>{BASH}</json></xml>", [LS]),
        case(f"<function_call>{BASH}</function_call>", [LS]),
        case(f"<tool_call>\n<tool_call>\n{BASH}\n</tool_call>", [LS]),
        # Marks that are missing or too many
        case(f"<tool_call>\n{BASH}", [LS]),
        case('<tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}\n</tool_call>', [LS]),
        case(f"<tools>\n{BASH}}}}}\n</tools>\nDone.", [LS], "Done."),
        case(f"{BASH}\n</tool_call>", [LS]),
        # Other ways to say the same
        case('{"name": "Bash", "parameters": {"command": "ls"}}', [LS]),
        case('{"name": "Bash", "arguments": "{\\"command\\": \\"ls\\"}"}', [LS]),
        case('{"name": "Bash", "arguments": {"command": "ls"}, "id": "call_}1"}', [LS]),
        case('{"name": "Bash", "id": 7, "arguments": {"command": "ls"}}', [LS]),
        case('{"type": "function", "function": {"name": "Bash", "arguments": {"command": "ls"}}}', [LS]),
        case('<tool_call>{"arguments": {"command": "ls"}, "name": "Bash"}</tool_call>', [LS]),
        case('<tool_call>{"name": "search"}</tool_call>', [("search", {})]),
        case('<tool_call>{"name": "search", "arguments": null}</tool_call>', [("search", {})]),
        case('{"name": "search", "arguments": {}}', [("search", {})]),
        case('{"name":"Bash","arguments":{"command":"ls"}}', [LS]),
        case('{ "name" : "Bash" ,\n "arguments" :\t{ "command" : "ls" } }', [LS]),
        # A tool that does not exist: within a tag it is a call all the same, so that the model hears of it
        case('<tools>{"name": "Grep", "arguments": {"x": 1}}, {"name": "Glob", "arguments": {}}</tools>',
             [("Grep", {"x": 1}), ("Glob", {})]),
        # Strings that could be mistaken, and strings that are not quite JSON
        case(json.dumps({"name": "Write", "arguments": {"content": CODE}}), [("Write", {"content": CODE})]),
        case(json.dumps({"name": "Write", "arguments": {"content": CODE}}, ensure_ascii=False),
             [("Write", {"content": CODE})]),
        case('{"name": "Write", "arguments": {"content": "a\nb\tc"}}', [("Write", {"content": "a\nb\tc"})]),
        case(r'{"name": "Bash", "arguments": {"command": "grep \d \u12 \"x\" C:\new\\"}}',
             [("Bash", {"command": 'grep \\d \\u12 "x" C:\new\\'})]),
        case('{"name": "Write", "arguments": {"content": "' + BASH.replace('"', '\\"') + '"}}',
             [("Write", {"content": BASH})]),
        case('{"name": "Bash", "arguments": {"a": {"b": [1, {"c": "}"}]}, "d": [], "e": -1.5e3, "f": null}}',
             [("Bash", {"a": {"b": [1, {"c": "}"}]}, "d": [], "e": -1500.0, "f": None})]),
        # No calls
        text(""),
        text("\n \n"),
        text("  Words. \n\n"),
        text("a <"),
        text("a\n```"),
        text("<tool_call>"),
        text("<tool_call>\nnothing\n</tool_call>"),
        text("<tool_cal"),
        text('<tools>{"name": "Bash", "arg'),
        text('{"name": "Ba'),
        text("{"),
        text("int f()\n{\n  return 1;\n}\n"),
        text(f"Call it like this: {BASH}"),
        text(f"`{BASH}`"),
        text('{"name": "my-app", "version": "1.0", "scripts": {"test": "x"}}'),
        text('```json\n{"name": "my-app", "arguments": {"command": "ls"}}\n```'),
        text('{"name": "Bash", "version": 1}'),
        text('{"name": "Bash"}'),
        text('{"name": "Bash", "arguments": [1]}'),
        text('{"name": "Bash", "arguments": "ls"}'),
        text('{"calls": [\n' + BASH + "\n]}"),
        text("{\"result\": {\n\"name\": \"Bash\", \"x\": \"'\"\n}}"),
        text('<tools>\n{"function": {"name": "Bash", "description": "x", "arguments": {}}}\n</tools>'),
        text("[1, 2]\n[a](b)\n{% if x %}\n```js\n{ a: 1 }\n```"),
    ]  # fmt: skip


def request(tools: Iterable[str], **more: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    described = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in tools]
    return ChatCompletionRequest(
        model="m", messages=[{"role": "user", "content": "x"}], **({"tools": described} if described else {}), **more
    )


def parser(name: str = NAMES[0], asked: Any = None) -> Any:
    """What vLLM's serving layer makes of our parser for one request."""
    from vllm.parser.parser_manager import ParserManager
    from vllm.tool_parsers import ToolParserManager

    if name not in ToolParserManager.list_registered():
        ToolParserManager.import_tool_parser(str(CATALOG / "parsers" / PLUGIN))
    made = ParserManager.get_parser(tool_parser_name=name, enable_auto_tools=True, tokenizer=Tokenizer())
    assert made is not None
    return made(Tokenizer(), asked.tools if asked else None)


def whole(output: str, asked: Any, name: str = NAMES[0]) -> tuple[str, list[tuple[str, str]]]:
    """The answer that is not streamed."""
    _, content, calls = parser(name, asked).parse(output, asked, enable_auto_tools=True)
    return content or "", [(call.name, call.arguments) for call in calls or []]


def streamed(pieces: list[str], asked: Any) -> tuple[str, list[tuple[str, str]]]:
    """The answer put together from the stream, as a client does; and the rules that hold for every message of it."""
    reading = parser(NAMES[0], asked)
    content = ""
    calls: list[tuple[str, str]] = []
    ids = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        message = reading.parse_delta(piece, [1] if piece else [], asked, prompt_token_ids=[1], finished=last)
        if message is None:
            continue
        sent = message.model_dump(exclude_unset=True)
        assert set(sent) <= {"content", "tool_calls"}, sent
        content += sent.get("content") or ""
        for call in sent.get("tool_calls") or []:
            function = call["function"]
            if call["index"] == len(calls):
                assert call["id"], "a call begins with its id"
                assert call["type"] == "function"
                assert function["name"], "a call begins with its whole name"
                ids.append(call["id"])
                calls.append((function["name"], ""))
            else:
                assert call["index"] == len(calls) - 1, "calls come one after the other"
                assert "id" not in call
                assert "name" not in function, "a name comes once"
            calls[-1] = (calls[-1][0], calls[-1][1] + (function["arguments"] or ""))
    assert len(set(ids)) == len(ids)
    return content, calls


def pieces(output: str, cuts: Iterable[int]) -> list[str]:
    at = [0, *sorted(cuts), len(output)]
    return [output[a:b] for a, b in zip(at, at[1:])]


def splits(output: str, rng: random.Random) -> Iterator[list[str]]:
    """All at once, letter by letter, in two at every place, and at random; also with empty pieces, as an engine has."""
    yield [output]
    yield [*output] or [""]
    yield [*output, ""]
    for cut in range(1, len(output)):
        yield pieces(output, [cut])
    for _ in range(40):
        yield pieces(output, [rng.randrange(len(output) + 1) for _ in range(rng.randrange(12))])


def check_whole(expected: dict[str, Any]) -> None:
    """The parser makes of a text what it should."""
    content, calls = whole(expected["output"], request(expected["tools"]))
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        (call["name"], call["arguments"]) for call in expected["calls"]
    ], calls
    assert content == (expected["content"] or ""), repr(content)


def check_streamed(expected: dict[str, Any], seed: int = 0) -> None:
    """However a text is cut, the stream adds up to the answer that is not streamed."""
    asked = request(expected["tools"])
    content, calls = whole(expected["output"], asked)
    for cut in splits(expected["output"], random.Random(seed)):
        assert streamed(cut, asked) == (content, calls), cut


def check_cut_short(expected: dict[str, Any]) -> None:
    """An answer that ends anywhere (`max_tokens`): arguments that were cut are no JSON, and no text is lost."""
    output = expected["output"]
    asked = request(expected["tools"])
    full = [(call["name"], call["arguments"]) for call in expected["calls"]]
    for end in range(len(output)):
        content, calls = streamed([*output[:end]] or [""], asked)
        for number, (name, arguments) in enumerate(calls):
            try:
                assert (name, json.loads(arguments)) == full[number]
            except ValueError:
                assert number == len(calls) - 1, "only the last call can be cut"
        if not calls:
            assert content == output[:end], repr(content)
            assert whole(output[:end], asked) == (content, [])
        # Not streamed, a call that was cut is text: clients must never be handed half of one.
        for name, arguments in whole(output[:end], asked)[1]:
            assert (name, json.loads(arguments)) in full


def check_tool_choice() -> None:
    """Without tools, or when none may be called, everything is text; a forced call is one that we read."""
    output = f"Words\n{BASH}\n<tool_call>{READ}</tool_call> \n"
    for asked in (request([]), request(TOOLS, tool_choice="none")):
        assert streamed([*output], asked) == (output, [])
    assert whole(output, request(TOOLS, tool_choice="none"))[0] == output
    for choice in ("required", {"type": "function", "function": {"name": "Bash"}}):
        asked = request(TOOLS, tool_choice=choice)
        tag = parser(asked=asked).adjust_request(asked).structured_outputs.structural_tag
        begin = json.loads(tag)["format"]["tags"][0]["begin"]
        forced = begin + '{"command": "ls"}}\n</tool_call>'
        for content, calls in (whole(forced, asked), streamed([*forced], asked)):
            assert (content, [(name, json.loads(arguments)) for name, arguments in calls]) == ("", [LS])


def check_names() -> None:
    """Both names are there, and mean the same."""
    for name in NAMES:
        assert whole(BASH, request(TOOLS), name)[1][0][0] == "Bash"


def check_long_arguments() -> None:
    """A large file streams as it comes, in a time that grows with its length only."""
    content = "x = {'a': \"b\"}\n" * 4000
    output = json.dumps({"name": "Write", "arguments": {"content": content}})
    asked = request(TOOLS)
    reading = parser(asked=asked)
    seen = 0
    for at in range(0, len(output), 4):
        message = reading.parse_delta(
            output[at : at + 4], [1], asked, prompt_token_ids=[1], finished=at + 4 >= len(output)
        )
        seen += message is not None
    assert seen > len(output) / 4 * 0.9
    assert streamed(pieces(output, range(4, len(output), 4)), asked)[1] == whole(output, asked)[1]


def work(output: str, asked: Any) -> float:
    """Seconds that the processor spends on a text that is no call; how busy it is otherwise does not count."""
    cut = pieces(output, range(4, len(output), 4))
    began = time.process_time()
    assert streamed(cut, asked) == (output, [])
    return time.process_time() - began


def growth(unit: str, asked: Any) -> float:
    """How many times the work is that four times the text makes: 4, or 16 where each piece costs all that came before.

    The least of some rounds counts: what disturbs one only ever makes it longer.
    """
    few, many = unit * (7500 // len(unit)), unit * (7500 // len(unit) * 4)
    least, most = work(few, asked), work(many, asked)
    for _round in range(6):
        if most / least < 8:
            break
        least, most = min(least, work(few, asked)), min(most, work(many, asked))
    return most / least


def check_repetition() -> None:
    """A model that repeats itself for ever does not keep the server from its other work."""
    asked = request(TOOLS)
    for unit in ("\n", "[\n", "{\n", "<tools>", "<json>", "```", '<tool_call>{"name": "', "<tool_call> " + " " * 99):
        assert growth(unit, asked) < 8, f"{unit!r}: four times the text takes more than eight times the work"


# --- the Anthropic endpoint, which is built on the chat one


def anthropic_events(output_pieces: list[str], asked: Any) -> list[dict[str, Any]]:
    """The events that a client of /v1/messages gets for such an answer."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    reading = parser(asked=asked)

    def chunk(**more: Any) -> str:
        return "data: " + json.dumps({"id": "c", "created": 0, "model": "m", "choices": [], **more}) + "\n\n"

    async def chat() -> Any:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        yield chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        called = False
        for number, piece in enumerate(output_pieces):
            last = number == len(output_pieces) - 1
            message = reading.parse_delta(piece, [1], asked, prompt_token_ids=[1], finished=last)
            delta = message.model_dump(exclude_unset=True) if message else {}
            called = called or "tool_calls" in delta
            reason = ("tool_calls" if called else "stop") if last else None
            yield chunk(choices=[{"index": 0, "delta": delta, "finish_reason": reason}])
        yield chunk(usage=usage)
        yield "data: [DONE]\n\n"

    async def collect() -> list[dict[str, Any]]:
        found = []
        async for event in AnthropicServingMessages.message_stream_converter(None, chat()):  # type: ignore[arg-type]
            data = re.search(r"^data: (.*)$", event, re.MULTILINE)
            assert data, event
            found.append(json.loads(data.group(1)))
        return found

    return asyncio.run(collect())


def check_anthropic(expected: dict[str, Any]) -> None:
    asked = request(expected["tools"])
    for cut in ([expected["output"]], [*expected["output"]] or [""]):
        blocks: list[dict[str, Any]] = []
        said, stop = "", None
        for event in anthropic_events(cut, asked):
            assert event["type"] != "error", event
            if event["type"] == "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            elif event["type"] == "content_block_delta":
                said += event["delta"].get("text", "")
                blocks[-1]["json"] += event["delta"].get("partial_json", "")
            elif event["type"] == "message_delta":
                stop = event["delta"]["stop_reason"]
        calls = [(b["name"], json.loads(b["json"] or "{}")) for b in blocks if b["type"] == "tool_use"]
        assert calls == [(call["name"], call["arguments"]) for call in expected["calls"]], blocks
        assert said == (expected["content"] or ""), repr(said)
        assert stop == ("tool_use" if calls else "end_turn")


# --- templates


def templates() -> list[Path]:
    return sorted((CATALOG / "templates").glob("*.jinja"))


def check_template(path: Path, model: Path) -> None:
    """The way of a template through vLLM: what it makes of messages, and that late system messages stay in place."""
    from transformers import AutoTokenizer
    from vllm.config import ModelConfig
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.renderers.chat_utils import load_chat_template, parse_chat_messages
    from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template

    template = load_chat_template(str(path))
    assert template
    merge = AnthropicServingMessages._detect_merge_inline_system(template)
    assert not merge, "late system messages would be merged into the first one, and the prefix cache lost"
    asked = AnthropicMessagesRequest.model_validate(
        {
            "model": "m",
            "max_tokens": 10,
            "system": [{"type": "text", "text": "You are the first."}, {"type": "text", "text": "And the second."}],
            "tools": [
                {"name": name, "description": f"Does {name}.", "input_schema": {"type": "object", "properties": {}}}
                for name in TOOLS
            ],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": "a", "name": "Bash", "input": {"command": 'echo "ü" > /tmp/x'}},
                        {"type": "tool_use", "id": "b", "name": "Read", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "a", "content": "result of a"},
                        {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": "result of b"},
                        {"type": "text", "text": "and a word"},
                    ],
                },
                {"role": "system", "content": "late system"},
                {"role": "assistant", "content": "said"},
                {"role": "user", "content": "three"},
            ],
        }
    )
    chat = AnthropicServingMessages.to_chat_completion_request(asked, merge_inline_system=merge)
    tools = [tool.model_dump() for tool in chat.tools]
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = ModelConfig(model=str(model), tokenizer=str(model), dtype="float32")
    given = resolve_chat_template_content_format(template, tools, "auto", tokenizer, model_config=config)
    conversation, _, _ = parse_chat_messages(list(chat.messages), config, content_format=given)
    prompt = safe_apply_chat_template(
        config, tokenizer, conversation, tools=tools, chat_template=template, tokenize=False,
        add_generation_prompt=True,
    )  # fmt: skip
    assert isinstance(prompt, str)
    at = -1
    for part in (
        *(
            "You are the first.",
            "And the second.",
            "Does search.",
            "one",
            "two",
            '"Bash"',
            'echo \\"ü\\" > /tmp/x',
            '"Read"',
        ),
        *("result of a", "result of b", "and a word", "late system", "said", "three"),
    ):
        at = prompt.find(part, at + 1)
        assert at >= 0, f"{part} is missing or out of order:\n{prompt}"
    tokens = safe_apply_chat_template(
        config, tokenizer, conversation, tools=tools, chat_template=template, add_generation_prompt=True
    )
    assert tokens
    # The calls that the template shows to the model are calls to the parser.
    shown = prompt[prompt.index("two") : prompt.index("result of a")]
    calls = whole(shown, request(TOOLS))[1]
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        ("Bash", {"command": 'echo "ü" > /tmp/x'}), ("Read", {})
    ], shown  # fmt: skip


def main() -> None:
    cases = quotations() + made_up()
    for expected in cases:
        try:
            check_whole(expected)
            check_streamed(expected)
            check_cut_short(expected)
            check_anthropic(expected)
        except Exception:
            print("in the case", repr(expected["output"]), file=sys.stderr)
            raise
    check_tool_choice()
    check_names()
    check_long_arguments()
    check_repetition()
    model = os.environ.get("MODEL")
    found = templates() if model else []
    for path in found:
        check_template(path, Path(str(model)))
    print(f"{len(cases)} texts and {len(found)} templates are as they should be")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        CATALOG = Path(sys.argv[1])
    main()
