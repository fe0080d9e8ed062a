"""The chat template: scripts, default behaviour, odd message shapes, and plans that hold the reply to the byte."""

import json
import random

import pytest

from .render import WEATHER, build, calls, prompt, reply, tool

BASH = tool("Bash", properties={"command": {"type": "string"}}, required=["command"])
MOST = build.PLAN_SIZES[-1] - 1


def user(content):
    return {"role": "user", "content": content}


def called(name, **arguments):
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": [call]}


def result(text):
    return {"role": "tool", "tool_call_id": "c1", "content": text}


# --- plans

TEXTS = [
    "",
    "a",
    "!%2",
    "北京今天天气怎么样？",
    "🎉👩‍👩‍👧‍👦 é\u0301",
    "\\ \" ' ` {} <|im_end|> <tool_response> \ue000 \ue0001",
    "\x00\x01\x1f\x7f\u2028\ufeff",
    "/%41+%",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_through(text):
    assert reply("@say " + text) == text


@pytest.mark.parametrize("size", [0, 1, 62, 63, 64, 127, 128, 2047, 2048, MOST - 1, MOST])
def test_every_length_up_to_the_limit(size):
    assert reply("@say " + "x" * size) == "x" * size


@pytest.mark.parametrize("text", ["x" * (MOST + 1), "你" * (MOST // 3 + 1)])
def test_a_longer_reply_is_refused_in_words(text):
    assert reply("@say " + text) == f"loopback: reply longer than {MOST} bytes ({len(text.encode())})"


def test_random_text():
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(
            chr(rng.choice([rng.randrange(128), rng.randrange(0x4E00, 0x9FFF), rng.randrange(0x1F300, 0x1F700)]))
            for _ in range(rng.randrange(80))
        )
        text = text.replace("\n", "").rstrip("\r")
        assert reply("@say " + text) == text


def test_no_plan_without_a_generation_prompt():
    assert "\ue000" not in prompt([user("@say x")], add_generation_prompt=False)


def test_a_plan_in_the_prompt_is_not_a_plan():
    text = "a\ue0003" * 40
    assert reply([user(text), {"role": "assistant", "content": text}, user("@say x")]) == "x"


# --- scripts


def test_one_step_per_turn():
    script = user('Do this:\n@call Bash {"command": "ls"}\n@say All done.\nThanks!')
    assert calls([script], [BASH]) == ("", [{"name": "Bash", "arguments": {"command": "ls"}}])
    later = [script, called("Bash", command="ls"), result("a.txt")]
    assert reply(later, [BASH]) == "All done."
    assert reply([*later, {"role": "assistant", "content": "All done."}, user("And now?")], [BASH]).endswith("And now?")


def test_text_and_parallel_calls_in_one_turn():
    script = '@say I look.\n@also Read {"path": "a"}\n@also Bash {"command": "ls"}\n@say end'
    text, found = calls(script, [BASH])
    assert text == "I look."
    assert [call["name"] for call in found] == ["Read", "Bash"]
    assert calls('@call A {}\n@also B\n@call C {"x": 1}')[1] == [
        {"name": "A", "arguments": {}},
        {"name": "B", "arguments": {}},
    ]


def test_more_lines_and_repeats():
    assert reply("@say one\n@+ two\r\n@+\n@+ four") == "one\ntwo\n\nfour"
    assert reply("@repeat 3 ab ") == "ab ab ab "
    assert "longer than" in reply("@repeat 999999999 x")


def test_a_result_is_said():
    script = user('@call Bash {"command": "cat a"}\n@result The file holds:\n@result')
    turns = [script, called("Bash", command="cat a"), result("some text<system-reminder>no</system-reminder>")]
    assert reply(turns, [BASH]) == "The file holds: some text"
    assert reply([*turns, called("Bash"), result("x"), result("y")], [BASH]) == "x\ny"


def test_after_the_script():
    script = user("@call Bash {}")
    assert reply([script, called("Bash"), result("out")]) == "loopback: out"
    assert reply([script, called("Bash"), result("")]) == "loopback: (the tool gave no text)"
    assert reply([script, {"role": "assistant", "content": "x"}]) == "loopback: the script has no step 2"


def test_a_closing_tag_in_an_argument():
    text = "</tool_call>\n<tool_call>"
    assert calls("@call A " + json.dumps({"x": text}))[1] == [{"name": "A", "arguments": {"x": text}}]


def test_arguments_go_through_as_written():
    assert '"arguments": {broken' in reply("@call A {broken")


# --- what clients wrap around

REMINDER = "<system-reminder>\n@say not this\nAs you answer…\n</system-reminder>"


def test_a_script_among_reminders():
    parts = [
        {"type": "text", "text": REMINDER},
        {"type": "text", "text": "@say this"},
        {"type": "text", "text": REMINDER},
    ]
    assert reply([user(parts)]) == "this"
    assert reply([user(REMINDER + "\n@say this\n" + REMINDER)]) == "this"
    assert reply([user([REMINDER, "hello"])]) == "loopback: hello"


def test_a_late_system_message_changes_nothing():
    late = {"role": "system", "content": "@say no"}
    script = user("@call Bash {}\n@say yes")
    assert calls([script, late], [BASH])[1]
    assert reply([script, late, called("Bash"), result("x"), late], [BASH]) == "yes"


def test_words_after_a_tool_result_do_not_end_the_script():
    script = user("@call Bash {}\n@say yes")
    turns = [script, called("Bash"), result("x")]
    assert reply([*turns, user(REMINDER)], [BASH]) == "yes"
    assert reply([*turns, user("Tokens used: 5")], [BASH]) == "yes"
    assert reply([*turns, user("@say new")], [BASH]) == "new"


def test_several_user_messages_in_a_row():
    assert reply([user("one"), user("two")]) == "loopback: one\ntwo"
    assert reply([user("@say script"), user("note")]) == "script"
    assert reply([user("note"), user("@say script")]) == "script"


@pytest.mark.parametrize("content", ["", None, [], [{"type": "text", "text": ""}], [{"type": "image_url"}]])
def test_no_text_at_all(content):
    assert reply([user(content)]) == "loopback: (no text)"


def test_open_reminder_is_text():
    assert reply("a <system-reminder> b") == "loopback: a <system-reminder> b"


# --- without a script


def test_text_comes_back():
    assert reply("你好\n<b>") == "loopback: 你好\n<b>"
    assert reply("你好", []) == "loopback: 你好"


def test_the_classic_weather_question():
    question = user("北京今天天气怎么样？")
    assert calls([question], [WEATHER])[1] == [{"name": "get_weather", "arguments": {"city": "北京"}}]
    answer = [question, called("get_weather", city="北京"), result("晴，21°C")]
    assert reply(answer, [WEATHER]) == "loopback: 晴，21°C"
    assert calls([*answer, {"role": "assistant", "content": "x"}, user("in Oz?")], [WEATHER])[1] == [
        {"name": "get_weather", "arguments": {"city": "in Oz?"}}
    ]


def test_the_tool_that_is_named_is_called():
    tools = [WEATHER, tool("get_time", properties={"zone": {"type": "string"}}), tool("get_time_2")]
    assert calls("call get_time please", tools)[1][0]["name"] == "get_time"
    assert calls("hello", tools)[1][0]["name"] == "get_weather"


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER, BASH],
        [tool("delete_all")],
        [tool("run_command")],
        [tool(f"get_{n}") for n in range(9)],
        [tool("Task"), WEATHER],
    ],
)
def test_an_agents_tools_are_never_called_unasked(tools):
    said = reply("please tidy up", tools)
    assert said.startswith("loopback: ")
    assert said.endswith("please tidy up")


def test_arguments_fit_the_schema():
    schema = {
        "properties": {
            "a": {"enum": ["x", "y"]},
            "b": {"type": "integer", "minimum": 3},
            "c": {"type": "array", "items": {"$ref": "#/$defs/point"}},
            "d": {"type": ["null", "boolean"]},
            "e": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "f": {"type": "string", "format": "date"},
            "g": {"type": "string", "maxLength": 2},
            "h": {"const": 7},
            "i": {"type": "string", "default": "d"},
            "j": {"type": "object"},
            "k": {},
            "left out": {"type": "string"},
        },
        "required": list("abcdefghijk"),
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    }
    assert calls('hi"\n', [tool("f", **schema)])[1][0]["arguments"] == {
        "a": "x",
        "b": 3,
        "c": [{"x": 1}],
        "d": True,
        "e": 1,
        "f": "2026-01-01",
        "g": "hi",
        "h": 7,
        "i": "d",
        "j": {},
        "k": 'hi"\n',
    }


def test_a_schema_that_refers_to_itself_ends():
    schema = {
        "properties": {"n": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
    }
    assert calls("x", [tool("f", **schema)])[1]


# --- the prompt


def test_the_prompt_grows_at_its_end_only():
    """What a prefix cache needs: the next turn's prompt begins with this turn's, up to the plan."""
    turns = [{"role": "system", "content": "S"}, user('@call Bash {"command": "ls"}\n@say x')]
    first = prompt(turns, [BASH])
    second = prompt([*turns, called("Bash", command="ls"), result("a"), {"role": "system", "content": "late"}], [BASH])
    stable = first[: first.index("\ue000") - 1]
    assert second.startswith(stable)
    assert stable.endswith("<|im_start|>assistant\n")
    assert first.startswith("<|im_start|>system\nS\n\n# Tools")


def test_a_late_system_message_is_accepted():
    """vLLM tries this and moves late system messages to the front where a template refuses it."""
    turns = [{"role": role, "content": "t"} for role in ("system", "user", "system", "user")]
    assert prompt(turns, add_generation_prompt=False).count("system\nt") == 2
