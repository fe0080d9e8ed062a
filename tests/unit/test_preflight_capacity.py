"""What preflight says of memory: against the machine, against what others leave, and what fits instead."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import (
    capacity,
    hardware,
    preflight_capacity,
    preflight_gpu,
)

GIB = capacity.GIB


def found(text: Any, *instances: dict[str, Any], **variables: Any) -> list[dict[str, Any]]:
    """The problems of a described machine."""
    facts = hardware.describe(text) if isinstance(text, str) else text
    return preflight_capacity.problems("box", facts, {"vllm_instances": list(instances), **variables})


def test_what_fits_is_silent() -> None:
    assert found("4× H20", {"name": "coder", "model": "qwen3-235b-a22b-instruct-2507-fp8"}) == []
    assert found("16 GB laptop", {"name": "coder", "model": "loopback"}) == []


def test_what_does_not_fit_names_what_is_missing_and_what_fits() -> None:
    (item,) = found("RTX 4090, 64 GB", {"name": "coder", "model": "qwen2.5-coder-32b-instruct"})
    assert item["level"] == "error"
    assert item["variable"] == "vllm_instances[0].model"
    assert item["problem"].startswith("needs 61.0 GiB weights + 16.0 GiB KV cache for 1 session of 64K + ")
    assert "this GPU has 21.9 GiB for it" in item["problem"]
    assert "./run plan" in item["fix"]
    (item,) = found("2× H100 80 GB", {"name": "coder", "model": "qwen3-235b-a22b-instruct-2507"})
    assert "model: " not in item["fix"], "no checkpoint of it fits there"
    (item,) = found("4× H100 80 GB", {"name": "coder", "model": "qwen3-235b-a22b-instruct-2507"})
    assert "set model: qwen3-235b-a22b-instruct-2507-fp8 (220.2 GiB), which fits" in item["fix"]


def test_an_engine_gets_the_first_gpus_and_these_must_be_free() -> None:
    facts = {**hardware.describe("4× H100 80 GB"), "nvidia_driver": "580.95.05", "gpu_processes": []}
    for gpu in facts["gpus"]:
        gpu.update(uuid=f"GPU-{gpu['index']}", pci="", ecc_errors=None, pcie_width=None, pcie_width_max=None)
    variables: dict[str, Any] = {"vllm_instances": [{"name": "coder", "model": "qwen3.8-27b-fp8"}]}
    assert preflight_gpu.gpu_problems("box", facts, variables) == []
    facts["gpus"][0]["memory_free"] = 20 * GIB
    (item,) = preflight_gpu.gpu_problems("box", facts, variables)
    assert "takes 0.92 of GPU 0" in item["problem"]
    assert "name other GPUs in `devices`" in item["fix"]
    variables["vllm_instances"][0]["devices"] = [1]
    assert preflight_gpu.gpu_problems("box", facts, variables) == []


def test_what_a_user_sets_is_judged_as_it_stands() -> None:
    instance = {"name": "coder", "model": "qwen3-4b-instruct-2507", "flags": {"kv_cache_memory_bytes": 40 * GIB}}
    (item,) = found("32 GB laptop", instance)
    assert "40.0 GiB KV cache" in item["problem"]
    instance = {"name": "coder", "model": "qwen3-4b-instruct-2507", "flags": {"kv_cache_memory_bytes": GIB}}
    (item,) = found("32 GB laptop", {**instance, "max_model_len": 65536})
    assert "one session of 64K needs 9.0 GiB of KV cache, and kv_cache_memory_bytes is 1.0 GiB" in item["problem"]
    (item,) = found("8× H200", {"name": "x", "model": "qwen3-235b-a22b-instruct-2507-fp8", "tensor_parallel_size": 8})
    assert "tensor_parallel_size of 1, 2, 4" in item["problem"]


def test_memory_that_others_hold_is_told_apart() -> None:
    text = "dual E5-2680 v4, 363 GB of which 40 GB are free"
    (item,) = found(text, {"name": "coder", "model": "qwen3-coder-30b-a3b-instruct"})
    assert item["problem"].startswith("others leave too little: needs ")
    assert "set vllm_memory_reserved_gib: 324" in item["fix"]
    (item,) = found(text, {"name": "coder", "model": "qwen3-coder-30b-a3b-instruct"}, vllm_memory_reserved_gib=324)
    assert "others leave" not in item["problem"], "with that the model does not fit at all"


def test_a_context_that_is_cut_is_said() -> None:
    (item,) = found("RTX 4090, 64 GB", {"name": "coder", "model": "qwen3-4b-instruct-2507"})
    assert item["level"] == "warning"
    assert "could have 131072 tokens of context, and this host has room for" in item["problem"]
    room = int(item["problem"].split("room for ")[1].split(";")[0])
    assert f"max_model_len: {room}" in item["fix"]
    named = {"name": "coder", "model": "qwen3-4b-instruct-2507", "max_model_len": room}
    assert found("RTX 4090, 64 GB", named) == []


@pytest.mark.parametrize("seen", [{}, {"config": None, "safetensors_bytes": 0, "exists": False}])
def test_a_model_that_nobody_knows_is_left_to_its_user(seen: dict[str, Any]) -> None:
    facts = {**hardware.describe("32 GB laptop"), "paths": {"/data/mine": seen}}
    assert found(facts, {"name": "mine", "model": {"id": "mine", "source": {"path": "/data/mine"}}}) == []


def test_a_models_own_folder_tells_its_size() -> None:
    config = {"num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 8}
    config |= {"intermediate_size": 27648, "vocab_size": 152064, "max_position_embeddings": 131072}
    seen = {"config": config, "safetensors_bytes": 61 * GIB, "exists": True}
    facts = {**hardware.describe("32 GB laptop"), "paths": {"/data/mine": seen}}
    (item,) = found(facts, {"name": "mine", "model": {"id": "mine", "source": {"path": "/data/mine"}}})
    assert "needs 61.0 GiB weights" in item["problem"]


def test_two_that_fit_one_by_one_do_not_fit_together() -> None:
    one = {"name": "one", "model": "qwen3.5-9b", "max_model_len": 65536}
    two = {"name": "two", "model": "qwen3.5-9b", "max_model_len": 65536, "port": 8001}
    assert found("32 GB laptop", one) == []
    assert found("32 GB laptop", one, two)
