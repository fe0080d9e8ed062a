# MIT licence (see LICENSE)
"""capacity.py against figures of real deployments (published_capacity.yml, each with its source).

The number in a test's name is the error of the estimate. Records marked `beyond` describe what capacity.py does not
model; they are held to be wrong, so that the mark goes when the model learns it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import capacity, hardware

GIB = capacity.GIB
DATA = yaml.safe_load((Path(__file__).parent / "published_capacity.yml").read_text(encoding="utf-8"))

#: What is promised: of the tokens that a given amount of memory holds, for one kind of attention and for several.
PLAIN, HYBRID = 0.02, 0.10
#: Of the memory that is left for the KV cache: a share of it, or of the whole GPU where little is left.
BUDGET, BUDGET_OF_GPU = 0.10, 0.03
#: Estimated ÷ measured speed.
SLOWEST, FASTEST = 0.5, 2.0


def entry(record: dict[str, Any]) -> dict[str, Any]:
    """A catalogue entry for a record's model."""
    model = DATA["models"].get(record["model"], {})
    model = DATA["models"].get(model.get("same_shapes_as"), model)
    return {
        "id": record["model"],
        "config": model.get("config", {}),
        "quantization": record.get("quantization", "none"),
        "weights_gib": record.get("weights_gib"),
        "parameters": record.get("parameters"),
        "active_parameters": record.get("active_parameters"),
    }


def pool(record: dict[str, Any]) -> capacity.Pool:
    """vLLM's pool of KV blocks as capacity.py sees it, with the settings that the record tells."""
    element = capacity.KV_BYTES.get(str(record.get("kv_cache_dtype")), 2)
    # In FP8, sparse latent attention is laid out by the GPU's generation.
    capability = {"fp8_ds_mla": 9.0, "fp8": 10.0}.get(str(record.get("layout", "")).split(" ")[0].rstrip(":"), 0.0)
    kinds = capacity.layers(entry(record), record["tensor_parallel_size"], element, compute_capability=capability)
    batched = record.get("max_num_batched_tokens") or 2048
    return capacity.pool(kinds, record.get("block_size") or 16, batched * record.get("in_flight_batches", 2))


def kv_error(record: dict[str, Any]) -> float:
    """Estimate ÷ published − 1, of whatever the record publishes about its KV cache."""
    blocks, expected = pool(record), record["expected"]
    memory = expected.get("available_kv_gib", 0) * GIB
    length = record.get("max_model_len") or 16384
    if "stored_bytes" in expected:
        token = sum(kind.count * kind.token for kind in blocks.kinds)
        return token * expected["stored_tokens"] * record["tensor_parallel_size"] / expected["stored_bytes"] - 1
    if "needed_gib" in expected:
        return blocks.request(length) / GIB / expected["needed_gib"] - 1
    if record.get("token_formula") == "blocks":
        groups = sum(math.ceil(kind.count / blocks.width) for kind in blocks.kinds)
        return int(memory // blocks.block_bytes) // groups * blocks.block / expected["kv_tokens"] - 1
    return blocks.tokens(memory, length) / expected["kv_tokens"] - 1


def gpu(record: dict[str, Any]) -> dict[str, Any]:
    """The record's GPUs as capacity.py takes them."""
    device = {"index": 0, "name": record["gpu"]["name"], "total": record["gpu"]["memory_gib"] * GIB}
    return {"kind": "cuda", "devices": [device], "isa": [], "compute_capability": 8.0}


def default_sequences(machine: dict[str, Any]) -> int:
    """vLLM's own max_num_seqs for its server on GPUs (engine/arg_utils.py, 0.32.0); ours is smaller."""
    device = machine["devices"][0]
    return 1024 if device["total"] >= 70 * GIB and "a100" not in device["name"].lower() else 256


def budget_error(record: dict[str, Any]) -> tuple[float, float]:
    """Estimated minus published memory for the KV cache, in GiB; and what is promised."""
    expected, size = record["expected"], record["tensor_parallel_size"]
    wish = {
        name: record[name] for name in ("max_num_batched_tokens", "max_num_seqs", "enforce_eager") if name in record
    }
    # A log of vLLM's own defaults: more sequences than we let in.
    wish.setdefault("max_num_seqs", default_sequences(gpu(record)))
    total = record["gpu"]["memory_gib"]
    extra = capacity.overhead(gpu(record), entry(record), size, wish) / GIB
    estimate = total * record["gpu_memory_utilization"] - expected["model_loading_gib"] - extra
    allowed = max(BUDGET * expected["available_kv_gib"], BUDGET_OF_GPU * total)
    return estimate - expected["available_kv_gib"], allowed


def described(text: Any) -> dict[str, Any]:
    """A machine by name, or a CPU by its channels: the table need not know every CPU that somebody measured."""
    if isinstance(text, str):
        return hardware.machine(hardware.describe(text))
    bandwidth = text["channels"] * text["mts"] * 8e6
    # Prefill is not compared there.
    device = {"index": 0, "name": text["cpu"], "bandwidth": bandwidth, "flops": 1e12}
    return {"kind": "cpu", "devices": [device], "isa": [], "compute_capability": 0.0}


def speeds(record: dict[str, Any]) -> dict[str, float]:
    """Estimated ÷ measured, for each speed that the record tells."""
    machine = described(record["machine"])
    model, size = entry(record), record["tensor_parallel_size"]
    found = capacity.speed(machine, model, size, 1, capacity.layers(model, size) if model["config"] else [])
    ratios = {name: found[name] / record[name] for name in ("decode", "prefill") if record.get(name)}
    if record.get("total_rate"):
        seconds = record["input"] / found["prefill"] + record["output"] / found["decode"]
        ratios["total_rate"] = (record["input"] + record["output"]) / seconds / record["total_rate"]
    return ratios


def counted(record: dict[str, Any], what: str) -> bool:
    """Whether capacity.py claims to model this record."""
    return not str(record.get("beyond", "")).startswith(what)


def named(records: list[dict[str, Any]], error: Any) -> list[Any]:
    """Parameters whose names tell the error."""
    found = []
    for record in records:
        try:
            shown = error(record)
        except Exception as failure:  # The test itself shows it in full.
            shown = type(failure).__name__
        found.append(pytest.param(record, id=f"{record['id']} {shown}"))
    return found


KV = [item for item in DATA["kv"] if {"kv_tokens", "needed_gib", "stored_bytes"} & set(item["expected"])]
BUDGETS = [
    item
    for item in DATA["kv"]
    if {"model_loading_gib", "available_kv_gib"} <= set(item["expected"]) and "gpu_memory_utilization" in item
]


def test_every_record_has_its_source() -> None:
    for item in [*DATA["kv"], *DATA["speed"]]:
        assert item["url"], item["id"]
        assert item["model"] in DATA["models"] or item["model"].startswith(("Qwen/Qwen2.5-Coder", "meta-llama/Llama-2"))
    for group in (DATA["kv"], DATA["speed"]):
        ids = [item["id"] for item in group]
        assert len(ids) == len(set(ids))
    assert len(DATA["kv"]) >= 40
    assert len(DATA["speed"]) >= 10


@pytest.mark.parametrize(
    "record", named([item for item in KV if counted(item, "kv")], lambda item: f"{kv_error(item):+.1%}")
)
def test_kv_tokens(record: dict[str, Any]) -> None:
    promise = PLAIN if len(pool(record).kinds) == 1 else HYBRID
    error = kv_error(record)
    assert abs(error) <= promise, f"{error:+.1%} where {promise:.0%} is promised: {record['quote']}"


@pytest.mark.parametrize("record", [pytest.param(item, id=item["id"]) for item in KV if "longest" in item["expected"]])
def test_the_longest_context(record: dict[str, Any]) -> None:
    expected = record["expected"]
    longest = pool(record).longest(expected["available_kv_gib"] * GIB, record["max_model_len"])
    assert longest == pytest.approx(expected["longest"], rel=PLAIN)


@pytest.mark.parametrize(
    "record", named([item for item in KV if not counted(item, "kv")], lambda item: f"{kv_error(item):+.1%}")
)
def test_kv_tokens_that_are_not_modelled(record: dict[str, Any]) -> None:
    assert abs(kv_error(record)) > PLAIN, f"modelled now: take away `beyond: {record['beyond']}`"


@pytest.mark.parametrize(
    "record",
    named([item for item in BUDGETS if counted(item, "budget")], lambda item: f"{budget_error(item)[0]:+.1f} GiB"),
)
def test_memory_for_the_kv_cache(record: dict[str, Any]) -> None:
    error, allowed = budget_error(record)
    assert abs(error) <= allowed, f"{error:+.1f} GiB where {allowed:.1f} are promised: {record['quote']}"


@pytest.mark.parametrize(
    "record",
    named(
        [item for item in DATA["speed"] if counted(item, "speed")],
        lambda item: " ".join(f"{name} ×{ratio:.2f}" for name, ratio in speeds(item).items()),
    ),
)
def test_speed(record: dict[str, Any]) -> None:
    for name, ratio in speeds(record).items():
        assert SLOWEST <= ratio <= FASTEST, f"{name}: {ratio:.2f} of what was measured"
