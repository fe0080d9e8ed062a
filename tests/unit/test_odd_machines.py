"""Facts of machines whose files disagree: two sources for one thing are reconciled before anything goes by them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import hardware, preflight_capacity, vllm_flags
from ansible_collections.modelhost.serving.plugins.modules import host_probe
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1024**3
ODD = yaml.safe_load((Path(__file__).parent / "odd_machines.yml").read_text(encoding="utf-8"))
SITE: dict[str, Any] = {"vllm_instances": [{"name": "coder", "model": "loopback"}]}


def looked_at(root: Path, machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What host_probe says of such a machine."""
    for path, content in machine["files"].items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            node = f"Node {path.split('node')[-1].split('/')[0]} " if "/node/" in path else ""
            content = "".join(f"{node}{name}: {size} kB\n" for name, size in content.items())
        place.write_text(content, encoding="utf-8")
    monkeypatch.setattr(host_probe, "ROOT", str(root))
    monkeypatch.setattr(host_probe, "run", lambda _command: (-1, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(machine["affinity"]))
    found = host_probe.probe(["/"])
    # Nothing of this machine's own hardware.
    return {**found, "gpus": [], "nvidia_driver": "", "architecture": "x86_64", "cpu_flags": ["avx2"]}


@pytest.mark.parametrize("name", ODD)
def test_facts_of_an_odd_machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, expected = looked_at(tmp_path, ODD[name], monkeypatch), ODD[name]["expected"]
    assert facts["memory"]["total"] / GIB == pytest.approx(expected["total"], abs=0.01)
    assert facts["memory"]["available"] / GIB == pytest.approx(expected["available"], abs=0.01)
    assert facts["cpu_count"] == expected["cpu_count"]
    assert facts["cpu_quota"] == expected.get("quota", 0)
    assert [(node["node"], node["cpus"]) for node in facts["numa"]] == [
        (node, cpus) for node, cpus, _total, _free in expected["nodes"]
    ]
    for node, (_node, _cpus, total, free) in zip(facts["numa"], expected["nodes"], strict=True):
        assert node["memory_total"] / GIB == pytest.approx(total, abs=0.01)
        assert node["memory_free"] / GIB == pytest.approx(free, abs=0.01)


@pytest.mark.parametrize("name", ODD)
def test_the_loopback_model_fits_on_each(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = looked_at(tmp_path, ODD[name], monkeypatch)
    found = preflight_capacity.problems("box", facts, {**SITE, "vllm_variant": "cpu"})
    assert not [item for item in found if item["level"] == "error"]
    machine = hardware.machine(facts, "cpu")
    assert sum(device["total"] for device in machine["devices"]) <= facts["memory"]["total"]
    # Where there is one node the engine asks the machine; where there are several it has to see them.
    nodes = [node for node in facts["numa"] if node["memory_total"]]
    assert vllm_flags.hidden_paths(machine) == (["/sys/devices/system/node"] if len(nodes) == 1 else [])


def test_nodes_that_show_too_little_for_what_an_engine_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {**ODD["lazy memory on two nodes"]}
    small = {"MemTotal": 16777216, "MemFree": 65536}
    machine["files"] = {**machine["files"], "/sys/devices/system/node/node1/meminfo": small}
    facts = looked_at(tmp_path, machine, monkeypatch)
    result = {"devices": [0, 1], "kv_cache_memory_bytes": 128 * 1024**2}
    found = preflight_capacity.hidden_by_nodes(hardware.machine(facts, "cpu"), facts, result)
    assert [node["node"] for node in found] == [1]
    said = preflight_capacity.nodes_problem("box", 0, {"id": "loopback"}, facts, result)
    assert "node 1 shows 0.1 GiB of free memory" in said["problem"]


SIZES = st.integers(min_value=0, max_value=2**31)


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(min_value=2**20, max_value=2**31),
    nodes=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=4),
)
def test_whatever_nodes_say_they_divide_what_the_machine_has(total: int, nodes: list[tuple[int, int]]) -> None:
    memory = {"total": total * 1024, "available": total * 512}
    files = {}
    for at, (node_total, node_free) in enumerate(nodes):
        folder = f"/sys/devices/system/node/node{at}"
        files[folder + "/cpulist"] = str(at)
        files[folder + "/meminfo"] = f"Node {at} MemTotal: {node_total} kB\nNode {at} MemFree: {node_free} kB\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_probe, "read", lambda path: files.get(path, ""))
        patch.setattr(host_probe, "paths_like", lambda _pattern: sorted({path.rpartition("/")[0] for path in files}))
        found = host_probe.numa(list(range(len(nodes))), memory)
    assert sorted(cpu for node in found for cpu in node["cpus"]) == list(range(len(nodes)))
    assert memory["total"] - len(found) < sum(node["memory_total"] for node in found) <= memory["total"]
    assert sum(node["memory_free"] for node in found) <= memory["available"]
    assert all(0 <= node["memory_free"] <= node["memory_total"] for node in found)
