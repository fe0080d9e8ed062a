"""checks.py under pytest, and texts that Hypothesis makes up. Needs pytest and hypothesis beside a real vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from hypothesis import given, settings
from hypothesis import strategies as st

from . import checks

CASES = checks.quotations() + checks.made_up()
each_case = pytest.mark.parametrize("expected", CASES, ids=[case["form"] for case in CASES])
BUILDER = Path(__file__).resolve().parents[2] / "roles/model_store/files/opt/modelhost/builders/loopback_model/build.py"


@each_case
def test_whole(expected: dict[str, Any]) -> None:
    checks.check_whole(expected)


@each_case
def test_streamed(expected: dict[str, Any]) -> None:
    checks.check_streamed(expected)


@each_case
def test_cut_short(expected: dict[str, Any]) -> None:
    checks.check_cut_short(expected)


@each_case
def test_anthropic(expected: dict[str, Any]) -> None:
    checks.check_anthropic(expected)


@given(st.sampled_from(CASES), st.lists(st.integers(0, 400)))
@settings(max_examples=2000, deadline=None)
def test_any_cut(expected: dict[str, Any], cuts: list[int]) -> None:
    asked = checks.request(expected["tools"])
    cut = checks.pieces(expected["output"], [min(at, len(expected["output"])) for at in cuts])
    assert checks.streamed(cut, asked) == checks.whole(expected["output"], asked)


FRAGMENTS = [
    "<", ">", "</", "`", "```", "```json\n", "\n```\n", "{", "}", "[", "]", '"', "\\", "\n", " ", ",", ":", "a", "ü",
    "<tool_call>", "</tool_call>", "<tools>", "</tools>", "<json>", '{"name": "', "Bash", '", "arguments": ', '{"x": ',
    '{"name": "Bash", "arguments": {"command": "', '"}}', checks.BASH, '{"type": "function"', "\\u00e", "\\d", "null",
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=20), st.lists(st.integers(0, 400)))
@settings(max_examples=5000, deadline=None)
def test_any_text(fragments: list[str], cuts: list[int]) -> None:
    """Whatever comes: the cuts do not matter, and no word is lost."""
    text = "".join(fragments)
    asked = checks.request(checks.TOOLS)
    at_once = checks.streamed([text], asked)
    assert checks.streamed(checks.pieces(text, [min(at, len(text)) for at in cuts]), asked) == at_once
    content, calls = checks.whole(text, asked)
    if calls:
        assert (content, calls) == at_once
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)
    else:
        assert content == text
    if not at_once[1]:
        assert at_once[0] == text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.lists(st.tuples(st.sampled_from(checks.TOOLS), st.dictionaries(st.text(), JSON_VALUES, max_size=4)), min_size=1),
    st.sampled_from(["{}", "<tool_call>\n{}\n</tool_call>", "<tools>{}</tools>", "```json\n{}\n```"]),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.lists(st.integers(0, 400)),
)
@settings(max_examples=1000, deadline=None)
def test_any_call(
    calls: list[tuple[str, Any]], frame: str, ascii_only: bool, indent: int | None, cuts: list[int]
) -> None:
    """Any arguments come through, in each of the forms."""
    written = [
        frame.replace("{}", json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only, indent=indent))
        for name, arguments in calls
    ]
    text = "First.\n" + "\n".join(written)
    asked = checks.request(checks.TOOLS)
    content, found = checks.streamed(checks.pieces(text, [min(at, len(text)) for at in cuts]), asked)
    assert content == "First."
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert checks.whole(text, asked) == (content, found)


def test_tool_choice() -> None:
    checks.check_tool_choice()


def test_names() -> None:
    checks.check_names()


def test_long_arguments() -> None:
    checks.check_long_arguments()


def test_repetition() -> None:
    checks.check_repetition()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loopback model: any tokenizer will do."""
    folder = tmp_path_factory.mktemp("model") / "loopback"
    subprocess.run([sys.executable, "-B", str(BUILDER), str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("path", checks.templates(), ids=lambda path: path.name)
def test_template(path: Path, model: Path) -> None:
    checks.check_template(path, model)
