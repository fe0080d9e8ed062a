# MIT licence (see LICENSE)
"""catalog/hardware.yml: every row is found by the name that its machine reports, and holds figures with a source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import hardware

TABLE = yaml.safe_load((Path(__file__).parents[2] / "catalog" / "hardware.yml").read_text(encoding="utf-8"))
ISA = {"avx", "avx2", "avx512f", "avx512_bf16", "amx_bf16"}


def title(row: dict[str, Any]) -> str:
    return str(row["title"]).replace(" ", "-")


def is_source(url: Any) -> bool:
    return isinstance(url, str) and re.fullmatch(r"https://[\w.-]+/\S*", url) is not None


@pytest.mark.parametrize("row", TABLE["gpus"], ids=title)
def test_gpus(row: dict[str, Any]) -> None:
    re.compile(row["match"])
    assert hardware.gpu_row(row["example"])["title"] == row["title"], "an earlier row takes its example"
    assert set(row) - {"source_read"} == {
        "match",
        "title",
        "example",
        "memory_gib",
        "bandwidth_gbs",
        "bf16_tflops",
        "fp8_tflops",
        "compute_capability",
        "nvlink",
        "source",
    }
    for figure in ("memory_gib", "bandwidth_gbs", "bf16_tflops", "compute_capability"):
        assert row[figure] > 0
    # Tensor cores compute FP8 from capability 8.9 on, and no older ones do.
    assert (row["fp8_tflops"] is not None) == (row["compute_capability"] >= 8.9)
    assert row["fp8_tflops"] is None or row["fp8_tflops"] > row["bf16_tflops"]
    assert isinstance(row["nvlink"], bool)
    assert is_source(row["source"])
    assert row.get("source_read", False) is False
    # People leave the size out of a name, or write it apart.
    for name in (row["example"], re.sub(r"\(.*\)|\d+ GB", "", row["title"])):
        assert row in hardware.gpu_rows_named(name), f"{name!r} does not lead to this row"


@pytest.mark.parametrize("row", TABLE["cpus"], ids=title)
def test_cpus(row: dict[str, Any]) -> None:
    re.compile(row["match"])
    assert hardware.cpu_row(row["example"])["title"] == row["title"], "an earlier row takes its example"
    # People write the name without the decoration of /proc/cpuinfo.
    assert hardware.cpu_row(hardware.plain(row["example"]))["title"] == row["title"]
    assert set(row) - {"source_read", "all_core_ghz"} == {
        "match",
        "title",
        "example",
        "cores",
        "base_ghz",
        "memory_channels",
        "memory_mts",
        "isa",
        "source",
    }
    assert 1 <= row["cores"] <= 256
    assert 0.5 <= row["base_ghz"] <= row.get("all_core_ghz", 5) <= 5
    assert row["memory_channels"] in (1, 2, 4, 6, 8, 12)
    assert 1000 <= row["memory_mts"] <= 9000
    assert set(row["isa"]) <= ISA
    # Newer instructions come with the older ones.
    assert "avx512f" not in row["isa"] or "avx2" in row["isa"]
    assert "amx_bf16" not in row["isa"] or "avx512_bf16" in row["isa"]
    assert is_source(row["source"])
    assert row.get("source_read", False) is False


@pytest.mark.parametrize("kind", ["gpus", "cpus"])
def test_titles_are_unique(kind: str) -> None:
    titles = [row["title"] for row in TABLE[kind]]
    assert sorted(set(titles)) == sorted(titles)


def test_instruction_sets() -> None:
    assert set(TABLE["isa_flops_per_cycle"]) == ISA - {"avx"}, "AVX alone runs no build of the engine"
    for row in TABLE["isa_flops_per_cycle"].values():
        for measured in ("dense", "experts"):
            assert 0 < row.get(measured, row["flops"]) <= row["flops"]
        assert is_source(row["source"])
    flops = [TABLE["isa_flops_per_cycle"][name]["flops"] for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")]
    assert flops == sorted(flops)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("E5-2680 v4", "Xeon E5-2680 v4"),
        ("Xeon E5-2680v4", "Xeon E5-2680 v4"),
        ("E5-2696 v4", "Xeon E5 v4"),
        ("E5-2680 v2", "Xeon E5 v2"),
        ("Xeon Gold 6148", "Xeon Gold 6148"),
        ("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", "Xeon Gold 6148"),
        ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "Xeon Gold 62xx"),
        ("INTEL(R) XEON(R) PLATINUM 8592+", "Xeon Platinum 8592+"),
        ("Xeon 8480+", "Xeon Platinum 8480+"),
        ("EPYC 7763", "EPYC 7763"),
        ("AMD EPYC 7B13", "EPYC 7003"),
        ("EPYC 9654P", "EPYC 9654"),
        ("Ryzen 9 7950X", "Ryzen 9 7950X"),
        ("AMD Ryzen 7 PRO 7840U w/ Radeon 780M Graphics", "Ryzen 7 7840U"),
        ("AMD Ryzen 7 7730U with Radeon Graphics", "Ryzen 7 5700U"),
        ("i7-12700K", "Core i7-12700"),
        ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "Core i5-8250U"),
        # A virtual machine's name says no generation: the instructions that it shows say more.
        ("AMD EPYC", None),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", None),
        ("QEMU Virtual CPU version 2.5+", None),
        ("512 GB", None),
        ("Neoverse-N1", None),
    ],
)
def test_cpu_names(text: str, expected: str | None) -> None:
    assert hardware.cpu_row(text).get("title") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB SXM"),
        ("NVIDIA A100 80GB PCIe", "A100 80 GB PCIe"),
        ("NVIDIA A100-PCIE-40GB", "A100 40 GB PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H20", "H20 96 GB"),
        ("NVIDIA H20-3e", "H20 141 GB"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", "GeForce RTX 4090 D"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
        # A laptop's chip is another one than the card of the same name.
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_gpu_names(text: str, expected: str | None) -> None:
    assert hardware.gpu_row(text).get("title") == expected
