"""What Claude Code is told: module_utils/claude_code.py, the filters, and the files of the role."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.filter import claude_code as filters
from ansible_collections.modelhost.serving.plugins.module_utils import claude_code

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKEND = {"instance": "coder", "host": "a", "max_model_len": 131072}


def test_all_aliases_reach_the_local_model() -> None:
    env = filters.environment(BACKEND, "http://gw:4000/")
    assert env["ANTHROPIC_BASE_URL"] == "http://gw:4000"
    names = [name for name in env if name.endswith("_MODEL")]
    assert len(names) == 5
    # A name that begins with claude- would make Claude Code assume that model's window.
    assert {env[name] for name in names} == {"local-claude-coder"}
    assert env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "131072"
    assert all(isinstance(value, str) for value in env.values())


@pytest.mark.parametrize(("context", "output"), [(131072, 16384), (65536, 16384), (32768, 8192), (8192, 4096)])
def test_output_fits_the_context(context: int, output: int) -> None:
    assert claude_code.max_output(context) == output


def test_extra_environment_wins_and_null_removes() -> None:
    env = filters.environment(BACKEND, "http://gw", extra={"A": 1, "DISABLE_AUTOUPDATER": None})
    assert env["A"] == "1"
    assert "DISABLE_AUTOUPDATER" not in env


def test_replicas_give_the_least_context() -> None:
    backends = [BACKEND, {**BACKEND, "host": "b", "max_model_len": 65536}, {"instance": "small", "host": "b"}]
    assert filters.backend(backends)["max_model_len"] == 65536
    assert filters.backend(backends, "small")["instance"] == "small"


def test_messages_name_what_to_set() -> None:
    with pytest.raises(AnsibleFilterError, match=r"'codr'.*Known are: coder"):
        filters.backend([BACKEND], "codr")
    with pytest.raises(AnsibleFilterError, match="group engines"):
        filters.backend([])
    with pytest.raises(AnsibleFilterError, match="max_model_len"):
        filters.environment({"instance": "x"}, "http://gw")


def test_the_token_stands_in_settings_only_if_asked() -> None:
    env = filters.environment(BACKEND, "http://gw")
    by_helper = claude_code.settings(env, "/etc/a b/key")
    assert by_helper["apiKeyHelper"] == "cat '/etc/a b/key'"
    assert "ANTHROPIC_AUTH_TOKEN" not in by_helper["env"]
    by_value = claude_code.settings(env, "/key", token="sk-x")
    assert by_value["env"]["ANTHROPIC_AUTH_TOKEN"] == "sk-x"
    assert "apiKeyHelper" not in by_value
    assert "ANTHROPIC_AUTH_TOKEN" not in env


def test_the_lean_profile_keeps_the_four_tools_of_coding() -> None:
    lean = set(claude_code.settings({}, "/k", profile="lean", deny=["WebSearch"])["permissions"]["deny"])
    assert "WebSearch" in lean
    assert not lean & {"Bash", "Read", "Write", "Edit"}
    assert claude_code.settings({}, "/k", deny=["WebSearch"])["permissions"]["deny"] == ["WebSearch"]


def test_the_snippet_runs_in_sh(tmp_path: pathlib.Path) -> None:
    key = tmp_path / "a key"
    key.write_text("sk-snippet\n")
    env = filters.environment(BACKEND, "http://gw", extra={"ODD": "it's $HOME"})
    text = claude_code.snippet(env, str(key))
    assert "sk-snippet" not in text
    done = subprocess.run(
        ["sh", "-euc", text + '\nenv; printf "ODD=%s\\n" "$ODD"'],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "ANTHROPIC_AUTH_TOKEN=sk-snippet" in lines
    assert "ODD=it's $HOME" in lines


def test_the_lock_has_hashes_and_names_no_registry() -> None:
    files = ROOT / "roles" / "claude_code" / "files"
    package = json.loads((files / "package.json").read_text())
    lock = json.loads((files / "package-lock.json").read_text())
    versions = yaml.safe_load((ROOT / "versions.yml").read_text())
    version = versions["claude_code"]["version"]
    assert package["dependencies"] == {"@anthropic-ai/claude-code": version}
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert any(name.endswith("linux-x64") for name in packages)
    assert any(name.endswith("linux-arm64") for name in packages)
    for entry in packages.values():
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry
