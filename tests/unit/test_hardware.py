"""Machines: from a host's facts, and from what somebody says of one."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import capacity, hardware
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = capacity.GIB

DESCRIPTIONS = [
    # text, kind, devices, name of the first, memory of one in GiB, free memory of the host in GiB
    ("dual E5-2680 v4, 363 GB of which 238 GB are free", "cpu", 2, "E5-2680 v4", 181.5, 238),
    ("4× H20", "cuda", 4, "H20", 95.6, None),
    ("4 x NVIDIA H20-3e", "cuda", 4, "H20-3e", 140.4, None),
    ("4× A100 80 GB", "cuda", 4, "A100", 80, None),
    ("4x A100 40GB, 512 GB", "cuda", 4, "A100", 40, None),
    ("32 GB laptop", "cpu", 1, "", 32, None),
    ("8x H200 2TB", "cuda", 8, "H200", 140.4, None),
    ("server with 8 H800", "cuda", 8, "H800", 79.6, None),
    ("8 GPUs H100", "cuda", 8, "H100", 79.6, None),
    ("dual xeon e5 2680v4 256g", "cpu", 2, "E5-2680 v4", 128, None),
    ("2 × RTX 4090 24GB, 128 GB", "cuda", 2, "4090", 24, None),
    ("EPYC 9654 with 768 GB and 2 TB disk", "cpu", 1, "9654", 768, None),
    ("Xeon Gold 6248R, 192 GB, 100 GB free", "cpu", 1, "6248R", 192, 100),
    ({"gpus": [{"name": "L40S", "count": 2}], "memory_gib": 256}, "cuda", 2, "L40S", 45, None),
    ({"cpu": "E5-2680 v4", "sockets": 2, "memory_gib": 363, "memory_free_gib": 238}, "cpu", 2, "E5-2680", 181.5, 238),
]


@pytest.mark.parametrize(("text", "kind", "count", "name", "memory_gib", "free_gib"), DESCRIPTIONS)
def test_descriptions(text: Any, kind: str, count: int, name: str, memory_gib: float, free_gib: float | None) -> None:
    facts = hardware.describe(text)
    machine = hardware.machine(facts, free=True)
    assert machine["kind"] == kind
    assert len(machine["devices"]) == count
    assert name in machine["devices"][0]["name"]
    total = facts["gpus"][0]["memory_total"] if kind == "cuda" else facts["numa"][0]["memory_total"]
    assert total / GIB == pytest.approx(memory_gib, rel=0.01)
    if free_gib:
        assert facts["memory"]["available"] / GIB == free_gib
        assert sum(device["budget"] for device in machine["devices"]) <= free_gib * GIB
    for device in machine["devices"]:
        assert device["bandwidth"] > 0
        assert device["flops"] > 0
        assert 0 < device["budget"] < device["total"] * 1.0001


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Macbook", "'Macbook' is not understood"),
        ("one 24 GB GPU", "which GPU?"),
        ("4× H20 500 GB disk space of dragons, 4x RTX 9999", "which GPU?"),
        ("A100 60 GB", "this GPU has 40 GB, 80 GB, not 60 GB"),
        ("", "a description is text or a mapping"),
        (7, "a description is text or a mapping"),
        ({"gpu": "H20"}, "there is no 'gpu'"),
        ({"gpus": "H20"}, "write numbers as numbers"),
        ({"gpus": [{"name": "nothing"}]}, "is not understood"),
        ({"memory_gib": "much"}, "write numbers as numbers"),
    ],
)
def test_descriptions_that_nobody_understands(text: Any, words: str) -> None:
    with pytest.raises(hardware.DescriptionError) as error:
        hardware.describe(text)
    assert words in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=3))
def test_whatever_is_written_is_understood_or_refused(text: Any) -> None:
    try:
        facts = hardware.describe(text)
    except hardware.DescriptionError:
        return
    hardware.machine(facts, free=True)


def facts(**more: Any) -> dict[str, Any]:
    """A small virtual machine."""
    return {
        "architecture": "x86_64", "cpu_model": "AMD EPYC", "cpu_flags": ["avx2", "avx512f", "avx512_bf16"],
        "cpu_cores": 2, "cpu_count": 2, "cpu_sockets": 1,
        "memory": {"total": 24 * GIB, "available": 20 * GIB, "engines": 0},
        "numa": [{"node": 0, "cpus": [0, 1], "cores": [[0], [1]], "memory_total": 17 * GIB, "memory_free": 15 * GIB}],
        "gpus": [], "nvidia_driver": "", **more,
    }  # fmt: skip


def test_what_is_free_counts_when_it_is_asked_for_and_what_others_keep_always() -> None:
    (device,) = hardware.machine(facts())["devices"]
    assert device["total"] == 17 * GIB
    assert device["budget"] == 14 * GIB, "3 GiB are for the system and a gateway"
    (free,) = hardware.machine(facts(), free=True)["devices"]
    assert free["budget"] == 14 * GIB
    busy = facts(memory={"total": 24 * GIB, "available": 8 * GIB, "engines": 0})
    assert hardware.machine(busy, free=True)["devices"][0]["budget"] == 7 * GIB
    assert hardware.machine(busy)["devices"][0]["budget"] == 14 * GIB, "defaults do not follow what is free today"
    ours = facts(memory={"total": 24 * GIB, "available": 2 * GIB, "engines": 6 * GIB})
    assert hardware.machine(ours, free=True)["devices"][0]["budget"] == 7 * GIB, (
        "our own engines' memory is free for them"
    )
    reserved = hardware.machine(facts(), reserved_gib=8)["devices"][0]["budget"]
    assert reserved == 9 * GIB


@pytest.mark.parametrize(("quota", "cores"), [(0, [4, 4]), (2.5, [2, 2]), (8, [4, 4]), (0.5, [1, 1])])
def test_a_limit_of_cpu_time_leaves_cores_out(quota: float, cores: list[int]) -> None:
    nodes = [
        {"node": node, "cpus": own, "cores": [[cpu] for cpu in own], "memory_total": 12 * GIB, "memory_free": 12 * GIB}
        for node, own in enumerate(([0, 1, 2, 3], [4, 5, 6, 7]))
    ]
    machine = hardware.machine(facts(numa=nodes, cpu_quota=quota))
    assert [len(device["cores"]) for device in machine["devices"]] == cores
    assert machine["memory_nodes"] == 2


def test_a_small_virtual_machine_does_not_have_all_of_its_sockets_bandwidth() -> None:
    (device,) = hardware.machine(facts())["devices"]
    assert device["bandwidth"] == 2 * hardware.MODERN_CORE_BANDWIDTH


def test_unknown_hardware_is_said_to_be_unknown() -> None:
    gpu = {
        "index": 0,
        "name": "NVIDIA Z9",
        "memory_total": 64 * GIB,
        "memory_free": 64 * GIB,
        "compute_capability": "13.0",
    }
    machine = hardware.machine(facts(gpus=[gpu]))
    assert machine["kind"] == "cuda"
    assert "no figures for NVIDIA Z9" in machine["notes"][0]
    assert "no figures for AMD EPYC" in hardware.machine(facts())["notes"][0]


def test_somebody_elses_processes_on_a_gpu_count_when_free_memory_does() -> None:
    gpu = {
        "index": 0,
        "name": "NVIDIA H20",
        "memory_total": 95 * GIB,
        "memory_free": 40 * GIB,
        "compute_capability": "9.0",
    }
    assert hardware.machine(facts(gpus=[gpu]), free=True)["devices"][0]["budget"] == 40 * GIB
    assert hardware.machine(facts(gpus=[gpu]))["devices"][0]["budget"] > 80 * GIB


def test_reserved_cores_of_a_host_reach_the_binding() -> None:
    described = hardware.describe("dual E5-2680 v4, 363 GB")
    assert hardware.of_host({"host_preflight_probe": described})["reserved_cores"] is None  # type: ignore[index]
    variables = {"host_preflight_probe": described, "accelerator_cpu_reserved_cores": "4"}
    assert hardware.of_host(variables)["reserved_cores"] == 4  # type: ignore[index]
    with pytest.raises(ValueError, match="accelerator_cpu_reserved_cores is 'two': set a number of cores, or auto"):
        hardware.machine(described, reserved_cores="two")
