"""The real Claude Code on the host: headless over several turns, and a first start in a terminal with no route out."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import HANGS

ACCOUNT = "dev"
PROJECT = "/home/dev/first-light"


def execute(container: str, *command: str, user: str = "root", data: str | None = None, timeout: float = HANGS) -> Any:
    """A command in the container, as a login of `user` would have it."""
    home = "/root" if user == "root" else f"/home/{user}"
    environment = ["env", "-i", f"HOME={home}", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8"]
    return subprocess.run(
        ["docker", "exec", "-i", "-u", user, container, *environment, *command],
        input=data, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def claude(container: str, folder: str, script: str, *, tools: str = "Bash,Read,Write,Edit") -> list[dict]:
    """Run Claude Code headless with a script for the loopback model; return its events."""
    command = [
        "sh", "-c", 'cd "$0" && exec claude -p "$@" < /dev/null', folder, textwrap.dedent(script).strip(),
        "--output-format", "stream-json", "--verbose", "--allowedTools", tools, "--max-turns", "12",
    ]  # fmt: skip
    done = execute(container, *command, user=ACCOUNT)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return events


def blocks(events: list[dict], role: str, kind: str) -> list[dict]:
    """Content blocks of one kind from the messages of one role."""
    return [
        block
        for event in events
        if event.get("type") == role and isinstance(event["message"]["content"], list)
        for block in event["message"]["content"]
        if block.get("type") == kind
    ]


@pytest.fixture
def project(container: str) -> str:
    done = execute(container, "sh", "-c", f"rm -rf {PROJECT} && mkdir {PROJECT}", user=ACCOUNT)
    assert done.returncode == 0, done.stderr
    return PROJECT


def test_the_pinned_client_runs(container: str, root: Path) -> None:
    pinned = yaml.safe_load((root / "versions.yml").read_text())["claude_code"]["version"]
    done = execute(container, "claude", "--version", user=ACCOUNT)
    assert done.stdout.startswith(pinned), done.stdout + done.stderr


def test_only_the_account_reads_its_key(host: Any) -> None:
    key = host.file(f"/etc/modelhost/claude_code/{ACCOUNT}.key")
    assert (key.user, key.mode) == (ACCOUNT, 0o400)
    settings = host.file(f"/home/{ACCOUNT}/.claude/settings.json")
    assert (settings.user, settings.mode) == (ACCOUNT, 0o600)
    assert key.content_string.strip() not in settings.content_string


def test_settings_fit_the_engine(host: Any) -> None:
    settings = json.loads(host.file(f"/home/{ACCOUNT}/.claude/settings.json").content_string)
    env = settings["env"]
    assert int(env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"]) < int(env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) == 131072
    assert "WebSearch" in settings["permissions"]["deny"]


def test_it_runs_writes_edits_reads_and_says_so(container: str, project: str, host: Any) -> None:
    path = f"{project}/你好.txt"
    script = f"""
        Follow the script.
        @call Bash {{"command": "echo made-by-bash > ran.txt; date +%s%N"}}
        @call Write {{"file_path": "{path}", "content": "first line\\nsecond line\\n"}}
        @call Edit {{"file_path": "{path}", "old_string": "second", "new_string": "第二"}}
        @call Read {{"file_path": "{path}"}}
        @result I read it back:
    """
    events = claude(container, project, script)
    assert [block["name"] for block in blocks(events, "assistant", "tool_use")] == ["Bash", "Write", "Edit", "Read"]
    results = blocks(events, "user", "tool_result")
    assert len(results) == 4
    assert not [block for block in results if block.get("is_error")], results
    # What is on disk is the proof; what it says came from the file by way of the engine.
    assert host.file(f"{project}/ran.txt").content_string == "made-by-bash\n"
    assert host.file(path).content_string == "first line\n第二 line\n"
    final = events[-1]
    assert (final["type"], final["is_error"]) == ("result", False)
    assert final["result"].startswith("I read it back:")
    assert "第二 line" in final["result"]
    # Turns after the first are read from the engine's prefix cache.
    assert final["usage"]["cache_read_input_tokens"] > final["usage"]["input_tokens"], final["usage"]


def test_two_calls_in_one_turn(container: str, project: str, host: Any) -> None:
    script = """
        Follow the script.
        @call Bash {"command": "echo one > one.txt"}
        @also Bash {"command": "echo two > two.txt"}
        @say both
    """
    events = claude(container, project, script)
    assert len(blocks(events, "assistant", "tool_use")) == 2
    assert host.file(f"{project}/one.txt").content_string == "one\n"
    assert host.file(f"{project}/two.txt").content_string == "two\n"
    assert events[-1]["result"] == "both"


def test_a_failing_command_comes_back_as_an_error(container: str, project: str) -> None:
    script = """
        Follow the script.
        @call Bash {"command": "echo complaint >&2; exit 3"}
        @result It failed:
    """
    events = claude(container, project, script)
    (result,) = blocks(events, "user", "tool_result")
    assert result["is_error"]
    assert "complaint" in events[-1]["result"]


def test_what_is_not_allowed_is_not_run(container: str, project: str, host: Any) -> None:
    script = """
        Follow the script.
        @call Write {"file_path": "%s/never.txt", "content": "x"}
        @say done
    """
    claude(container, project, script % project, tools="Read")
    assert not host.file(f"{project}/never.txt").exists


@pytest.fixture
def newcomer(container: str, root: Path) -> Iterator[str]:
    """A fresh account, set up by the role, in which Claude Code has never been started."""
    name = "newcomer"
    forget = (
        f"pkill -KILL -u {name}; userdel --remove {name} 2>/dev/null; "
        f"rm -f /var/lib/modelhost/claude_code/{name}-* /etc/modelhost/claude_code/{name}.key"
    )
    execute(container, "sh", "-c", forget)
    made = execute(container, "useradd", "--create-home", "--shell", "/bin/bash", name)
    assert made.returncode == 0, made.stderr
    variables = {"claude_code_users": [{"name": name, "litellm_user": "demo"}], "claude_code_install": False}
    done = subprocess.run(
        ["ansible-playbook", "playbooks/client.yml", "-i", os.environ["MODELHOST_INVENTORY"], "-l", container,
         "-e", json.dumps(variables)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    yield name
    execute(container, "sh", "-c", forget)


def test_first_start_in_a_terminal_with_no_route_out(container: str, newcomer: str) -> None:
    folder = f"/home/{newcomer}/work"
    assert execute(container, "mkdir", folder, user=newcomer).returncode == 0
    steps = [
        # A person says so, for each folder; the role does not take that away.
        ["Yes, I trust this folder", "\x1b[B"],
        ["\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}Yes, I trust this folder", "\r"],
        ["manual mode on", "hello from a terminal"],
        ["hello from a terminal", "\r"],
        # What the loopback model says to an agent without a script.
        ["It was told: hello from a terminal", ""],
    ]
    script = (Path(__file__).parent / "files" / "closed_network_terminal.py").read_text(encoding="utf-8")
    done = execute(
        container,
        "python3",
        "-",
        newcomer,
        folder,
        "4000",
        json.dumps(steps),
        "claude",
        data=script,
        timeout=(len(steps) + 1) * HANGS,  # clock: one limit for each step
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Nothing came between: no theme, no login, no offer to switch modes.
    assert "Select login method".replace(" ", "") not in done.stdout
