"""Broken inventories: each stops before any host is contacted, with the message we promise."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import catalog, vllm_flags, vllm_validation
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]

SOUND: dict[str, Any] = {
    "all": {
        "hosts": {
            "box": {
                # Nobody answers there: a run that connects would fail otherwise than promised.
                "ansible_host": "192.0.2.1",
                "vllm_instances": [{"name": "coder", "model": "loopback"}],
                "litellm_users": [{"name": "alice", "models": ["coder"]}],
            }
        },
        "children": {"engines": {"hosts": {"box": {}}}, "gateways": {"hosts": {"box": {}}}},
    }
}


def run(tmp_path: Path, inventory: dict[str, Any], playbook: str = "playbooks/validate.yml") -> tuple[int, str]:
    """ansible-playbook with this inventory, as a user runs it."""
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(path), playbook],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "NO_COLOR": "1", "COLUMNS": "400"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def broken(**values: Any) -> dict[str, Any]:
    """The sound inventory with other values for its host."""
    inventory = copy.deepcopy(SOUND)
    inventory["all"]["hosts"]["box"].update(values)
    return inventory


def instance(**values: Any) -> list[dict[str, Any]]:
    """One instance with other values."""
    return [{"name": "coder", "model": "loopback", **values}]


def test_a_sound_inventory_passes(tmp_path: Path) -> None:
    code, out = run(tmp_path, SOUND)
    assert code == 0, out


# Several mistakes in one run: all of them must be named, so one run checks a whole table.
TABLE: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "model",
        broken(vllm_instances=instance(model="loopbak")),
        ["vllm_instances[0].model = 'loopbak'", "the catalogue has no model of this id", "did you mean `loopback`?"],
    ),
    (
        "owned flag",
        broken(vllm_instances=instance(flags={"port": 9000, "max_model_len": 9}), vllm_flags={"host": "0.0.0.0"}),
        [
            "vllm_instances[0].flags.port = 9000",
            "set the instance's key `port`",
            "set the instance's key `max_model_len`",
            "vllm_flags.host = '0.0.0.0'",
            "set `vllm_bind_address`",
        ],
    ),
    (
        "flags that are gone or never were",
        broken(vllm_flags={"swap_space": 4, "device": "cpu", "max_num_batch_tokens": 4096, "enforce_eager": "yes"}),
        [
            "vllm_flags.swap_space = 4",
            "no longer has this flag",
            "`vllm_variant: cpu` or `cuda`",
            "did you mean `max_num_batched_tokens`?",
            "set it to true or false",
        ],
    ),
    (
        "parser and memory share",
        broken(vllm_flags={"tool_call_parser": "hermess", "gpu_memory_utilization": 0}),
        ["vllm_flags.tool_call_parser = 'hermess'", "did you mean `hermes`?", "above 0 and up to 1"],
    ),
    (
        "drop_params in the wrong place",
        broken(litellm_extra_config={"general_settings": {"drop_params": True}}),
        ["litellm_extra_config.general_settings.drop_params", "litellm_drop_params"],
    ),
    (
        "a key of five letters",
        broken(litellm_users=[{"name": "alice", "key": "sk-12"}]),
        ["litellm_users[0].key", "set"],
    ),
    (
        "misspelt variable, wrong type, wrong choice",
        broken(litellm_prt=4001, vllm_variant="gpu", litellm_port="many"),
        [
            "litellm_prt",
            "did you mean litellm_port?",
            "vllm_variant = 'gpu'",
            "auto, cpu, cuda",
            "litellm_port = 'many'",
        ],
    ),
    (
        "one port for two",
        broken(vllm_instances=[*instance(), {"name": "other", "model": "loopback"}]),
        ["vllm_instances[1].port = 8000", "vllm_instances[0] has the same port", "litellm_default_instance"],
    ),
    (
        "names",
        broken(vllm_instances=instance(name="My Coder"), litellm_users=[{"name": "alice", "models": ["nothing"]}]),
        ["vllm_instances[0].name = 'My Coder'", "lower-case letters, digits and dashes", "nothing"],
    ),
    (
        "unverified weights",
        broken(vllm_instances=instance(model={"id": "x", "source": {"repo": "a/b", "revision": "unverified"}})),
        ["no verified revision", "source: {repo: a/b, revision: <commit>}"],
    ),
    (
        "a key an instance does not have",
        broken(vllm_instances=instance(seed=1)),
        ["move it to vllm_instances[0].flags"],
    ),
    ("context beyond the model", broken(vllm_instances=instance(max_model_len=10**7)), ["was made for at most"]),
]


@pytest.mark.parametrize(("inventory", "promised"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_broken_inventories(tmp_path: Path, inventory: dict[str, Any], promised: list[str]) -> None:
    code, out = run(tmp_path, inventory, "site.yml")
    assert code != 0, out
    assert "No host was contacted" in out, out
    assert "Traceback" not in out
    assert "unreachable=0" in out
    for text in promised:
        assert text in out, f"{text!r} is not in:\n{out}"


def test_an_engine_that_its_gateway_cannot_reach(tmp_path: Path) -> None:
    inventory = copy.deepcopy(SOUND)
    inventory["all"]["hosts"]["front"] = {"litellm_users": []}
    inventory["all"]["children"]["gateways"] = {"hosts": {"front": {}}}
    del inventory["all"]["hosts"]["box"]["litellm_users"]
    code, out = run(tmp_path, inventory)
    assert code != 0
    assert "vllm_bind_address = '127.0.0.1'" in out
    assert "the gateway front is another host" in out


def test_limit_does_not_skip_the_check(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump(broken(vllm_variant="gpu")))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(path), "site.yml", "--limit", "box", "--tags", "deploy"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "vllm_variant = 'gpu'" in done.stdout


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*vllm_flags.INSTANCE_KEYS, "--seed", "port_"])


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(KEYS, JSONISH, max_size=6) | JSONISH)
def test_nothing_that_yaml_can_hold_breaks_the_check(instance: Any) -> None:
    hostvars = {"box": {"vllm_instances": [instance]}}
    found = vllm_validation.problems(hostvars, {"engines": ["box"]}, {"cpu": "0.32.0", "cuda": "0.32.0"})
    for item in found:
        assert item["problem"]
        assert item["fix"]
    if not [item for item in found if item["level"] == "error"]:
        vllm_flags.effective_instance(instance, catalog.entries(), "0.32.0")
