"""The small client checks in examples/: they say OK of right answers, FAILED of wrong ones, and never show the key."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from patience import HANGS

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import serving_standin  # noqa: E402  # the stand-in lies beside this file, which is no package

EXAMPLES = HERE.parents[1] / "examples"
PROGRAMS = {
    "python": [sys.executable, str(EXAMPLES / "test_api.py")],
    "sh": ["sh", str(EXAMPLES / "test-api.sh")],
}
pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="test-api.sh asks with curl")


def run(program: str, url: str, key: str = serving_standin.KEY) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "ANTHROPIC_BASE_URL": url}
    if key:
        environment["ANTHROPIC_AUTH_TOKEN"] = key
    return subprocess.run(
        PROGRAMS[program], env=environment, capture_output=True, text=True, check=False, timeout=HANGS
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_right_answers(program: str) -> None:
    with serving_standin.Standin() as standin:
        done = run(program, standin.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All OK." in done.stdout
    assert "FAILED" not in done.stdout
    assert serving_standin.KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("mutation", "line"),
    [
        ("models_empty", "list of models"),
        ("empty_answers", "chat completions"),
        ("stream_cut", "messages, streamed"),
        ("tool_as_text", "weather tool, messages"),
        ("tool_as_text", "weather tool, chat completions"),
        ("count_zero", "count_tokens"),
        ("wrong_key_accepted", "wrong key is refused"),
        ("post_500", "chat completions"),
    ],
)
def test_wrong_answers(program: str, mutation: str, line: str) -> None:
    with serving_standin.Standin({mutation}) as standin:
        done = run(program, standin.url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED  {line}:" in done.stdout, done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_use(program: str) -> None:
    assert run(program, "http://127.0.0.1:1", key="").returncode == 2
    assert run(program, "http://127.0.0.1:1").returncode == 1
