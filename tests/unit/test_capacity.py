"""The capacity module: what follows from arithmetic alone. Published figures: test_published_capacity.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import capacity, hardware, vllm_flags
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = capacity.GIB

QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "vocab_size": 151936,
}  # fmt: skip
DENSE = {
    "num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 8,
    "vocab_size": 152064, "intermediate_size": 27648,
}  # fmt: skip
BIG = {
    **QWEN3_MOE, "num_hidden_layers": 94, "hidden_size": 4096, "num_attention_heads": 64, "moe_intermediate_size": 1536,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
HYBRID = {
    "text_config": {
        "num_hidden_layers": 64, "full_attention_interval": 4, "hidden_size": 5120, "num_attention_heads": 24,
        "num_key_value_heads": 4, "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32", "vocab_size": 248320, "intermediate_size": 17408,
    }
}  # fmt: skip
GPT_OSS: dict[str, Any] = {
    "num_hidden_layers": 36, "hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 18, "sliding_window": 128, "vocab_size": 201088,
}  # fmt: skip
LATENT = {
    "num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "vocab_size": 102400, "intermediate_size": 10944,
}  # fmt: skip


def entry(config: dict[str, Any], weights_gib: float = 20, **more: Any) -> dict[str, Any]:
    """An entry of the catalogue around a config.json."""
    return {
        "id": "x", "source": {"path": "/x"}, "config": config, "weights_gib": weights_gib, "max_model_len": 262144,
        "parameters": weights_gib * GIB / 2e9, **more,
    }  # fmt: skip


def gpus(count: int, memory_gib: float = 80, **more: Any) -> dict[str, Any]:
    """So many GPUs, as hardware.machine() gives them."""
    total = memory_gib * GIB * capacity.GPU_VISIBLE
    device = {
        "name": "NVIDIA H100 80GB HBM3", "total": total, "budget": total * capacity.GPU_MEMORY_UTILIZATION,
        "bandwidth": 3350e9, "flops": 989e12, "fp8_flops": 1979e12,
    }  # fmt: skip
    devices = [{**device, "index": index, **more} for index in range(count)]
    return {"kind": "cuda", "isa": [], "compute_capability": 9.0, "devices": devices, "memory_nodes": 1}


def nodes(count: int, memory_gib: float, isa: tuple[str, ...] = ("avx2",)) -> dict[str, Any]:
    """So many NUMA nodes of 14 cores."""
    devices = [
        {
            "index": index, "name": "Xeon", "total": memory_gib * GIB, "budget": memory_gib * GIB, "bandwidth": 76.8e9,
            "flops": 14 * 2.9e9 * 32, "cores": [[core, core + 28] for core in range(14 * index, 14 * index + 14)],
        }
        for index in range(count)
    ]  # fmt: skip
    return {
        "kind": "cpu",
        "isa": list(isa),
        "compute_capability": 0.0,
        "devices": devices,
        "memory_nodes": len(devices),
    }


# What vLLM 0.32.0's own code says of these layers (v1/core/kv_cache_utils.py): bytes of a block, and the tokens that
# its log would show for so much memory and max_model_len.
ORACLE = [
    ("plain", QWEN3_MOE, 1, 16, 8192, 16 * 96 * 1024, 10 * GIB, 131072, 109226),
    ("sliding windows", GPT_OSS, 1, 16, 16384, 589824, 5 * GIB, 131072, 129324),
    ("delta net and attention", HYBRID, 1, 16, 16384, 51380224, 20 * GIB, 262144, 320569),
    ("latent", LATENT, 1, 64, 8192, 64 * 27 * 1152, 4 * GIB, 65536, 4 * GIB // (64 * 27 * 1152) * 64),
]


@pytest.mark.parametrize(
    ("config", "size", "block", "in_flight", "block_bytes", "memory", "context", "tokens"),
    [row[1:] for row in ORACLE],
    ids=[row[0] for row in ORACLE],
)
def test_the_pool_is_vllms(
    config: dict[str, Any],
    size: int,
    block: int,
    in_flight: int,
    block_bytes: int,
    memory: int,
    context: int,
    tokens: int,
) -> None:
    blocks = capacity.pool(capacity.layers(entry(config), size), block, in_flight)
    assert blocks.block_bytes == block_bytes
    assert blocks.tokens(memory, context) == pytest.approx(tokens, rel=0.001)


QWEN3_4B = {
    "num_hidden_layers": 36, "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "intermediate_size": 9728,
}  # fmt: skip
NEXT = {
    "num_hidden_layers": 8, "full_attention_interval": 4, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
}  # fmt: skip
OSS_SIX = {**GPT_OSS, "num_hidden_layers": 6, "layer_types": GPT_OSS["layer_types"][:6]}
# What vLLM 0.32.0 for CPU logged here (AVX512-BF16, `--load-format dummy`), November 2026.
MEASURED = [
    ("dense, compiled, 7.5 GiB of weights", QWEN3_4B, 1, 128, 2048, 10664017920, 71680, 72320),
    ("dense, short", QWEN3_4B, 1, 128, 2048, 3 * GIB, 16384, 21760),
    ("two ranks", {**QWEN3_4B, "num_hidden_layers": 8}, 2, 128, 4096, GIB // 2, 16384, 32768),
    ("experts", {**QWEN3_MOE, "num_hidden_layers": 6}, 1, 128, 2048, GIB, 65536, 87296),
    ("latent", {**LATENT, "num_hidden_layers": 4}, 1, 16, 8192, GIB // 4, 8192, 58240),
    ("delta net, states in float32", NEXT, 1, 128, 2048, GIB, 65536, 236137),
    ("sliding windows", OSS_SIX, 1, 128, 2048, GIB, 65536, 168786),
]


@pytest.mark.parametrize(
    ("config", "size", "block", "in_flight", "memory", "context", "tokens"),
    [row[1:] for row in MEASURED],
    ids=[row[0] for row in MEASURED],
)
def test_what_the_engine_logged(
    config: dict[str, Any], size: int, block: int, in_flight: int, memory: int, context: int, tokens: int
) -> None:
    blocks = capacity.pool(capacity.layers(entry(config), size, wide_state=True), block, in_flight)
    assert blocks.tokens(memory, context) == tokens


def test_key_value_heads_are_split_and_then_repeated() -> None:
    def token(size: int) -> int:
        return sum(item.token * item.count for item in capacity.layers(entry(BIG), size))

    assert token(1) == 188 * 1024
    assert token(4) == 47 * 1024
    assert token(8) == token(4), "four heads cannot be split over eight GPUs, so they are repeated"
    assert sum(item.token for item in capacity.layers(entry(LATENT), 4)) == 576 * 2, "a latent vector is not split"


def test_an_fp8_mixture_stays_at_four() -> None:
    big = entry(BIG, 220)
    assert capacity.parallel_sizes(big, 8) == [1, 2, 4]
    assert "no multiple of the 128" in capacity.parallel_problem(big, 8)
    found = capacity.assess(gpus(8), big)
    assert (found["fits"], found["tensor_parallel_size"]) == (True, 4)
    asked = capacity.assess(gpus(8), big, {"tensor_parallel_size": 8})
    assert not asked["fits"]
    assert "no multiple of the 128" in asked["why"][0]


def test_the_235b_fits_on_four_gpus_of_80_gb() -> None:
    """220 GiB of weights leave a fifth of each GPU, and one token takes 47 KiB of it."""
    found = capacity.assess(gpus(4), entry(BIG, 220.2))
    assert found["fits"]
    assert found["tensor_parallel_size"] == 4
    assert found["sessions"][65536] == found["room"] // (47 * 1024 * 65536)


def test_what_does_not_fit_says_what_is_missing_and_what_would() -> None:
    found = capacity.assess(nodes(1, 60), entry({**QWEN3_MOE, "num_key_value_heads": 32}, 56.9))
    assert not found["fits"]
    assert "needs 56.9 GiB weights + " in found["why"][0]
    assert "KV cache for 1 session of 64K" in found["why"][0]
    assert "this machine has 60.0 GiB for it" in found["why"][0]
    close = capacity.assess(gpus(1, 24), entry(QWEN3_MOE, 16.5))
    assert not close["fits"]
    assert close["why"][1].startswith("max_model_len up to ")
    shorter = int(close["why"][1].split()[3])
    assert capacity.assess(gpus(1, 24), entry(QWEN3_MOE, 16.5), {"max_model_len": shorter})["fits"]


def test_stages_of_a_pipeline() -> None:
    """Where tensors cannot be split over all GPUs, and where somebody asks for it."""
    found = capacity.assess(gpus(8, 40), entry(BIG, 220))
    assert (found["fits"], found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (True, 4, 2)
    assert len(found["devices"]) == 8
    asked = capacity.assess(gpus(4), entry(QWEN3_MOE, 57), {"pipeline_parallel_size": 2})
    assert (asked["tensor_parallel_size"], asked["pipeline_parallel_size"]) == (1, 2)
    for machine in (gpus(2), nodes(2, 500)):
        asked = capacity.assess(machine, entry(QWEN3_MOE, 57), {"pipeline_parallel_size": 4})
        assert not asked["fits"]
        assert "pipeline_parallel_size 4 needs 4 " in asked["why"][0]


def test_a_numa_node_is_the_limit_not_the_machine() -> None:
    """100 GiB in two nodes do not hold a 60 GiB model in one of them; split over both they do."""
    model = entry(QWEN3_MOE, 57)
    assert capacity.assess(nodes(2, 50), model)["tensor_parallel_size"] == 2
    assert capacity.assess(nodes(2, 50), model)["fits"]
    alone = capacity.assess(nodes(2, 50), model, {"tensor_parallel_size": 1})
    assert not alone["fits"]
    assert "this NUMA node has 50.0 GiB" in alone["why"][0]


def test_threads_are_bound_to_each_nodes_own_cores() -> None:
    found = capacity.assess(nodes(2, 100), entry(QWEN3_MOE, 57))
    assert found["omp_threads_bind"] == "1-13|15-27"
    assert "omp_threads_bind" not in capacity.assess(nodes(1, 200), entry(QWEN3_MOE, 57))


def test_float32_takes_twice_the_memory_and_reads_prompts_faster_on_old_processors() -> None:
    machine, model = hardware.machine(hardware.describe("dual E5-2680 v4, 363 GB")), entry(DENSE, 62)
    narrow, wide = (capacity.assess(machine, model, {"dtype": name}) for name in ("bfloat16", "float32"))
    assert wide["weights"] == 2 * narrow["weights"]
    assert wide["kv_bytes_per_token"] == 2 * narrow["kv_bytes_per_token"]
    # As an engine held back to AVX2 showed (docs/cpu-tuning.md): prompts 3.7 times as fast, answers half as fast.
    assert 3.5 < wide["prefill"] / narrow["prefill"] < 4.1
    assert 0.45 < wide["decode"] / narrow["decode"] < 0.55
    # What is stored in fewer bits stays that.
    packed = {**model, "quantization": "awq"}
    assert capacity.assess(machine, packed, {"dtype": "float32"})["weights"] == narrow["weights"]
    # Processors with AVX512-BF16 gain nothing.
    machine = hardware.machine(hardware.describe("EPYC 9654, 768 GB"))
    narrow, wide = (capacity.assess(machine, model, {"dtype": name}) for name in ("bfloat16", "float32"))
    assert wide["prefill"] < narrow["prefill"]


@pytest.mark.parametrize(
    ("count", "reserved", "instances", "expected"),
    [
        (2, None, 1, ["1-13|15-27"]),
        (2, 0, 1, ["0-13|14-27"]),
        (2, 1, 1, ["1-13|14-27"]),
        (2, 3, 1, ["2-13|15-27"]),
        (2, 400, 1, ["13|27"]),
        (1, 0, 1, ["0-13"]),
        (1, 2, 1, ["2-13"]),
        (1, None, 2, ["1-6", "7-13"]),
        (1, 2, 2, ["2-7", "8-13"]),
        (1, 13, 2, ["12", "13"]),
        (2, 2, 2, ["1-6|15-20", "7-13|21-27"]),
    ],
)
def test_reserved_cores_are_left_out(count: int, reserved: int | None, instances: int, expected: list[str]) -> None:
    machine = {**nodes(count, 300), "reserved_cores": reserved}
    found = capacity.share(machine, [(entry(QWEN3_MOE, 57), {}, None)] * instances)
    assert [result.get("omp_threads_bind") for result in found] == expected


@pytest.mark.parametrize(
    ("machine", "more", "words"),
    [
        (nodes(1, 200, isa=("avx",)), {}, "needs AVX2"),
        (nodes(1, 200), {"runs_on": ["cuda"], "quantization": "fp8"}, "vLLM does not run this checkpoint (fp8) on CPU"),
        ({**gpus(1), "compute_capability": 7.5}, {"minimum_compute_capability": 8.0}, "needs compute capability 8.0"),
    ],
)
def test_hardware_that_cannot_run_it(machine: dict[str, Any], more: dict[str, Any], words: str) -> None:
    found = capacity.assess(machine, entry(QWEN3_MOE, **more))
    assert not found["fits"]
    assert words in found["why"][0]


def test_several_instances_share_a_machine() -> None:
    small = entry(QWEN3_MOE, 17)
    first, second = capacity.share(nodes(1, 60), [(small, {}, None), (small, {}, None)])
    assert first["fits"]
    assert second["fits"]
    used = sum(item["weights"] + item["overhead"] + item["kv_cache_memory_bytes"] for item in (first, second))
    assert used <= 60 * GIB
    a, b = capacity.share(gpus(2), [(small, {}, None), (small, {}, None)])
    assert (a["devices"], b["devices"]) == ([0], [1])
    a, b = capacity.share(gpus(2, 141), [(small, {}, [0]), (small, {}, [0])])
    assert a["gpu_memory_utilization"] == b["gpu_memory_utilization"] == 0.46
    a, b, c = capacity.share(gpus(2), [(small, {}, None), (small, {}, None), (small, {}, None)])
    assert not c["fits"]
    assert c["why"] == ["no GPU is left for it on this host"]


CONFIGS = st.sampled_from([QWEN3_MOE, BIG, HYBRID, GPT_OSS, LATENT])
MACHINES = st.one_of(
    st.builds(gpus, st.integers(1, 8), st.floats(8, 192)), st.builds(nodes, st.integers(1, 4), st.floats(4, 500))
)


@settings(max_examples=300, deadline=None)
@given(MACHINES, CONFIGS, st.floats(1, 500), st.sampled_from([None, 4096, 65536, 131072]))
def test_what_fits_fits_with_its_own_figures(
    machine: dict[str, Any], config: dict[str, Any], size: float, context: int | None
) -> None:
    """The values that an assessment gives, given back as explicit wishes, fit as well, and stay what they are."""
    model = entry(config, size)
    found = capacity.assess(machine, model, {"max_model_len": context})
    if not found["fits"]:
        assert found["why"]
        assert not any(found["sessions"].values())
        return
    assert found["weights"] + found["overhead"] <= found["budget"]
    names = ["max_model_len", "max_num_seqs", "tensor_parallel_size", "pipeline_parallel_size"]
    names += ["kv_cache_memory_bytes"] if machine["kind"] == "cpu" else ["gpu_memory_utilization"]
    again = capacity.assess(machine, model, {name: found[name] for name in names})
    assert again["fits"], (found, again)
    for name in names:
        assert again[name] == found[name], name
    if context:
        assert found["max_model_len"] == context
    else:
        assert found["max_model_len"] >= 65536
    blocks = capacity.pool(capacity.layers(model, found["tensor_parallel_size"]), found["block"])
    assert found["kv_cache_memory_bytes"] >= blocks.request(found["max_model_len"]) * 0.5


@settings(max_examples=200, deadline=None)
@given(CONFIGS, st.floats(1, 200), st.floats(1, 100), st.floats(1.01, 4))
def test_more_memory_never_fits_less(config: dict[str, Any], size: float, memory: float, factor: float) -> None:
    model = entry(config, size)
    less, more = (capacity.assess(nodes(1, memory * times), model) for times in (1, factor))
    assert more["fits"] >= less["fits"]
    assert more["sessions"][65536] >= less["sessions"][65536]


@settings(max_examples=200, deadline=None)
@given(CONFIGS, st.floats(0.1, 64), st.integers(1024, 262144))
def test_the_longest_request_is_the_longest(config: dict[str, Any], memory: float, most: int) -> None:
    blocks = capacity.pool(capacity.layers(entry(config)))
    longest = blocks.longest(memory * GIB, most)
    if longest:
        assert blocks.request(longest) <= memory * GIB
    if longest < most:
        assert blocks.request(longest + blocks.block) > memory * GIB


def test_speeds_come_from_bandwidth_and_arithmetic() -> None:
    model = entry(QWEN3_MOE, 56.9, parameters=30.5, active_parameters=3.3)
    one, two = (capacity.assess(nodes(count, 200), model) for count in (1, 2))
    assert 1.3 < two["decode"] / one["decode"] < 2
    assert two["prefill"] == pytest.approx(2 * one["prefill"])
    assert one["first_turn"] == pytest.approx(
        capacity.FIRST_PROMPT / one["prefill"] + capacity.FIRST_ANSWER / one["decode"]
    )
    fast = capacity.assess(gpus(1), {**model, "quantization": "fp8"})
    old = capacity.assess({**gpus(1), "compute_capability": 8.0}, {**model, "quantization": "fp8"})
    assert fast["prefill"] == pytest.approx(2 * old["prefill"], rel=0.01)


WISHES = st.fixed_dictionaries(
    {},
    optional={
        "tensor_parallel_size": st.integers(1, 16),
        "pipeline_parallel_size": st.integers(1, 9),
        "max_model_len": st.integers(1, 1 << 21),
        "max_num_seqs": st.integers(1, 4096),
        "kv_cache_memory_bytes": st.integers(1, 1 << 42),
        "gpu_memory_utilization": st.floats(0.01, 1),
        "kv_cache_dtype": st.sampled_from(["auto", "fp8", "float32", "nonsense"]),
        "max_num_batched_tokens": st.integers(1, 1 << 17),
        "block_size": st.sampled_from([1, 16, 128, 256]),
        "enforce_eager": st.booleans(),
    },
)


@settings(max_examples=500, deadline=None)
@given(MACHINES, CONFIGS, st.floats(0.001, 900), WISHES)
def test_any_wish_is_granted_or_explained(
    machine: dict[str, Any], config: dict[str, Any], size: float, wish: dict[str, Any]
) -> None:
    found = capacity.assess(machine, entry(config, size), wish)
    assert found["fits"] or found["why"]
    for name in ("tensor_parallel_size", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes"):
        if name in wish:
            assert found[name] == wish[name]
    assert found["decode"] is None or found["decode"] > 0


def test_an_unknown_model_is_said_to_be_unknown() -> None:
    found = capacity.assess(gpus(1), {"id": "mine", "source": {"path": "/x"}})
    assert not found["fits"]
    assert not found["known"]
    assert "not known" in found["why"][0]


def test_defaults_become_flags_with_their_origin() -> None:
    model = entry(QWEN3_MOE, 57, flags={"enable_auto_tool_choice": True, "tool_call_parser": "qwen3_coder"})
    instance = {"name": "coder", "model": model}

    def flags(machine: Any, **more: Any) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
        (found,) = vllm_flags.effective_instances([{**instance, **more}], {}, "0.32.0", machine=machine)
        return found["flags"], found["origins"], found["environment"]

    values, origins, environment = flags(nodes(2, 100))
    assert values["tensor_parallel_size"] == 2
    assert origins["tensor_parallel_size"] == "capacity of this host"
    assert values["kv_cache_memory_bytes"] >= 12 * GIB // 2
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "1-13|15-27"
    values, origins, environment = flags(nodes(2, 100), tensor_parallel_size=1, max_model_len=65536)
    assert values["tensor_parallel_size"] == 1
    assert origins["tensor_parallel_size"] == "instance coder"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "1-13"
    values, _origins, environment = flags(gpus(4))
    assert values["gpu_memory_utilization"] == 0.92
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    values, _origins, _environment = flags(gpus(1), flags={"kv_cache_memory_bytes": 8 * GIB})
    assert values["kv_cache_memory_bytes"] == 8 * GIB
    values, origins, _environment = flags(nodes(1, 66))
    assert values["max_model_len"] < 131072
    assert origins["max_model_len"] == "capacity of this host"
    values, _origins, _environment = flags(nodes(1, 200), flags={"max_num_batched_tokens": None, "dtype": "bfloat16"})
    assert values["dtype"] == "bfloat16"
    (unknown,) = vllm_flags.effective_instances(
        [{"name": "mine", "model": {"id": "mine", "source": {"path": "/x"}}}], {}, "0.32.0", machine=nodes(1, 64)
    )
    assert unknown["flags"]["kv_cache_memory_bytes"] == vllm_flags.UNKNOWN_KV_CACHE


def test_ranges() -> None:
    assert capacity.ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert math.isclose(capacity.linear_state(HYBRID["text_config"], 1) / 1024, 3132, rel_tol=0.01)
