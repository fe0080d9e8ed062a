# MIT licence (see LICENSE)
"""What fits on a machine, for how many sessions, and how fast.

Preflight, plan, the engines' defaults and the docs use it. Pure arithmetic: a machine (see hardware.py), a
catalogue entry and what somebody wishes go in, an assessment comes out that says how it was reached. Bytes
everywhere, unless a name ends in `_gib`; contexts in tokens. What a figure rests on stands beside it; "measured"
means by this project, with vLLM 0.32.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

GIB = 1024**3

#: Flags of vLLM that an assessment takes as given when somebody, or the catalogue, sets them.
WISHES = (
    "block_size",
    "dtype",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "kv_cache_memory_bytes",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "tensor_parallel_size",
)

#: Contexts for which sessions are counted. Below the first, Claude Code compacts all the time: it keeps the room of
#: an answer (8–16K) and 13K free.
CONTEXTS = (65536, 131072)
MIN_CONTEXT = CONTEXTS[0]
#: Sessions that the defaults leave room for, where there is room.
SESSIONS = 4
#: Tokens of the first prompt that Claude Code sends before the user's own words (measured: 51 KB headless to 91 KB
#: interactive, 12K to 21K tokens), and of the answer that is waited for.
FIRST_PROMPT = 20000
FIRST_ANSWER = 200

#: Share of the memory's bandwidth and of the arithmetic that real decode and prefill reach. Fitted to published
#: speeds and to measurements of our own (tests/unit/published_capacity.yml).
DECODE_EFFICIENCY = {"cuda": 0.6, "cpu": 0.6}
#: What mixtures of experts reach of that on GPUs: many small matrices.
EXPERT_EFFICIENCY = 0.7
PREFILL_EFFICIENCY = {"cuda": 0.45, "cpu": 0.6}
#: Seconds that a step costs beside the arithmetic: scheduling and sampling, and each all-reduce of a split model
#: (two for each layer).
STEP_SECONDS = {"cuda": 0.002, "cpu": 0.01}
REDUCE_SECONDS = {"cuda": 12e-6, "cpu": 60e-6}
#: Without AVX-512, ranks on a CPU have no shared memory to meet in and talk over loopback (vLLM 0.32.0).
LOOPBACK_REDUCE_SECONDS = 200e-6

#: Seconds that one delta net layer takes for one token of a prompt on one CPU thread, without AVX512-BF16 and with it
#: (measured with vLLM's kernels alone at 4 GHz).
STATE_SECONDS = {False: 1.6e-3, True: 3e-5}

#: Memory of a CPU engine beside weights and KV cache: its front end, core and scheduler; and each rank's own (one for
#: each NUMA node that a model is split over). Measured together: 2.8 GiB eager, 3.3 compiled, 3.6 eager in two ranks.
CPU_ENGINE_GIB = 2.0
CPU_RANK_GIB = 1.3
#: What the system and everybody else keep, when plan counts what is free.
CPU_RESERVE_GIB = 1.0
#: max_num_seqs that we set at most: developers, not a crowd.
MOST_SEQUENCES = {"cuda": 64, "cpu": 8}
#: Bytes that sampling takes for each sequence and word of the vocabulary at its peak (fitted to vLLM's logs on H100 and
#: A100, 0.2x and 0.31: 4.8 GiB with 1024 sequences of 128K words, 5.6 of 152K, 7.4 of 201K).
SAMPLER_BYTES = 38.4

#: vLLM's own default (vllm/config/cache.py, 0.32.0).
GPU_MEMORY_UTILIZATION = 0.92
#: On GPUs with less than 48 GiB, for models with a delta net: its activations are larger than vLLM's profile sees, and
#: engines at 0.92 died (two RTX 5090, reported; 0.85 held).
STATE_UTILIZATION, STATE_GIB = 0.85, 48
#: Share of what nvidia-smi calls a GPU's memory that CUDA can hand out (H100: 79.1 to 79.6 of 79.65 GiB, A100: 79.25
#: of 80, in vLLM's logs). CUDA's context and NCCL's buffers lie in what gpu_memory_utilization leaves over.
GPU_VISIBLE = 0.99

#: A catalogue entry's minimum_cpu → the flag that /proc/cpuinfo shows.
MINIMUM_CPU = {"avx2": "avx2", "avx512": "avx512f", "amx": "amx_bf16"}

#: Bytes of one element of the KV cache.
KV_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float32": 4}


def gib(count: float) -> str:
    """Bytes as GiB with one decimal."""
    return f"{count / GIB:.1f} GiB"


def thousands(tokens: int) -> str:
    """131072 → 128K."""
    return f"{tokens // 1024}K" if tokens >= 1024 else str(tokens)


# --- the KV cache ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    """Layers of one kind of attention.

    kind: full (every token is kept), sliding (those of a window), state (a fixed state for each sequence) or fixed
    (bytes that each sequence takes beside its tokens).
    token: bytes of one token in one layer of one device. state: bytes of one sequence in one layer of one device.
    """

    kind: str
    count: int
    token: int = 0
    window: int = 0
    state: int = 0


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json (multimodal ones nest it)."""
    nested = config.get("text_config") or config.get("llm_config") or {}
    return {**config, **nested}


def latent_attention(entry: dict[str, Any]) -> bool:
    """Whether this is multi-head latent attention."""
    return bool(text_config(entry.get("config") or {}).get("kv_lora_rank"))


def head_dim(config: dict[str, Any]) -> int:
    """Elements of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def layer_kinds(config: dict[str, Any]) -> list[str]:
    """full, sliding or state for each layer, from what config.json says in its various ways."""
    count = int(config["num_hidden_layers"])
    named = config.get("layer_types")
    if named:
        words = {"full_attention": "full", "sliding_attention": "sliding", "linear_attention": "state"}
        return [words.get(name, "full") for name in named[:count]]
    every = config.get("full_attention_interval")
    if every:
        return ["full" if (index + 1) % int(every) == 0 else "state" for index in range(count)]
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        pattern = config.get("sliding_window_pattern")
        if pattern:
            return ["full" if (index + 1) % int(pattern) == 0 else "sliding" for index in range(count)]
        return ["sliding"] * count
    return ["full"] * count


def layers(
    entry: dict[str, Any],
    tensor_parallel_size: int = 1,
    element: int = 2,
    wide_state: bool = False,
    compute_capability: float = 0,
) -> list[Layers]:
    """The attention layers of a catalogue entry as one device holds them.

    element: bytes of one number of the KV cache. wide_state: states are kept in float32 whatever config.json says, as
    on CPUs with AVX512-BF16 or AMX. compute_capability: 0 on CPU.
    """
    own = entry.get("kv_cache")
    if own:
        # Attention that config.json does not explain: what the source says, whole on each device.
        found = [Layers("full", 1, token=math.ceil(own["bytes_per_token"] * element / 2))]
        if own.get("bytes_per_request"):
            found.append(Layers("fixed", 1, state=int(own["bytes_per_request"])))
        return found
    config = text_config(entry["config"])
    kinds = layer_kinds(config)
    if latent_attention(entry):
        return [Layers("full", len(kinds), token=latent_token(config, element, compute_capability, len(kinds)))]
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    found = []
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        if kind == "state":
            found.append(Layers("state", count, state=linear_state(config, tensor_parallel_size, wide_state)))
            continue
        dim, own_heads, window = head_dim(config), heads, 0
        if kind == "sliding":
            window = int(config.get("sliding_window") or 0)
        elif "sliding" in kinds:
            # Gemma's full layers have heads of their own.
            dim = int(config.get("global_head_dim") or dim)
            own_heads = int(config.get("num_global_key_value_heads") or heads)
        token = 2 * max(1, own_heads // tensor_parallel_size) * dim * element
        found.append(Layers(kind, count, token=token, window=window))
    return found


def latent_token(config: dict[str, Any], element: int, compute_capability: float, count: int) -> int:
    """Bytes of one token in one layer of multi-head latent attention: one vector, which every device needs whole."""
    width = int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    indexer = int(config.get("index_head_dim") or 0)
    if not indexer:
        return width * element
    # DeepSeek's sparse attention. In FP8 its rows carry scales and BF16 positions, but not on compute capability 10
    # (656 and 576 bytes of 576 numbers). Some layers keep an FP8 key with one scale beside it, the others share it.
    row = width * element
    if element == 1 and not 10 <= compute_capability < 11:
        row = 656 if width == 576 else width + width // 128 * 4 + int(config.get("qk_rope_head_dim") or 0)
    every, offset = int(config.get("index_topk_freq") or 1), int(config.get("index_skip_topk_offset") or 2)
    pattern = config.get("index_topk_pattern")
    if pattern:
        owners = sum(1 for letter in pattern[:count] if letter != "S")
    else:
        owners = sum(1 for layer in range(count) if max(layer - offset + 1, 0) % every == 0)
    return math.ceil((row * count + (indexer + 4) * owners) / count)


def linear_state(config: dict[str, Any], tensor_parallel_size: int, wide: bool = False) -> int:
    """Bytes that a gated delta net keeps for one sequence in one layer."""
    keys, values = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
    key, value = int(config["linear_key_head_dim"]), int(config["linear_value_head_dim"])
    convolution = (2 * keys * key + values * value) * (int(config.get("linear_conv_kernel_dim") or 4) - 1)
    temporal = values * key * value
    element = 4 if wide or config.get("mamba_ssm_dtype") == "float32" else 2
    return (convolution * 2 + temporal * element) // tensor_parallel_size


@dataclass(frozen=True)
class Pool:
    """vLLM's pool of KV blocks: layers in groups of equal size draw their blocks from it.

    block: tokens of a block. page: bytes of a block in one layer. width: layers of a group.
    """

    kinds: tuple[Layers, ...]
    block: int
    page: int
    width: int
    in_flight: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.page * self.width

    def blocks(self, tokens: int) -> int:
        """Blocks that one request of this many tokens takes."""
        total = 0
        widest = max(kind.token for kind in self.kinds)
        for kind in self.kinds:
            groups = math.ceil(kind.count / self.width)
            # Layers with less for a token get longer blocks, where that comes out even.
            longer = widest // kind.token if kind.token and widest % kind.token == 0 else 1
            block = self.block * longer
            if kind.kind == "state":
                # One state that is computed with and one that the prefix cache keeps.
                total += 2 * groups
            elif kind.kind == "fixed":
                total += math.ceil(kind.state / self.block_bytes)
            elif kind.kind == "sliding":
                held = min(kind.window - 1 + self.in_flight, tokens)
                total += groups * (math.ceil(held / block) + 1)
            else:
                total += groups * math.ceil(tokens / block)
        return total

    def request(self, tokens: int) -> int:
        """Bytes of one request of this many tokens. vLLM keeps one block for itself, so it is counted here."""
        return (self.blocks(tokens) + 1) * self.block_bytes

    def requests(self, memory: float, tokens: int) -> float:
        """Requests of this many tokens that fit into this many bytes ("Maximum concurrency" of vLLM's log)."""
        return int(memory // self.block_bytes) / self.blocks(tokens)

    def tokens(self, memory: float, tokens: int) -> int:
        """ "KV cache size" of vLLM's log for a `max_model_len` of `tokens`."""
        return int(self.requests(memory, tokens) * tokens)

    def longest(self, memory: float, most: int) -> int:
        """The longest request, in tokens and at most `most`, that fits into this many bytes."""
        if self.request(most) <= memory:
            return most
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.request(middle) <= memory else (low, middle - 1)
        return low


def pool(kinds: list[Layers], block: int = 16, in_flight: int = 8192) -> Pool:
    """The pool that vLLM makes for these layers (vllm/v1/core/kv_cache_utils.py, 0.32.0).

    in_flight: tokens that are computed but not settled, which a sliding window keeps beside its own.
    """
    token = max(kind.token for kind in kinds)
    state = max(kind.state for kind in kinds if kind.kind != "fixed")
    if state and token:
        # Blocks grow until one of them holds a whole state.
        block *= max(1, math.ceil(state / (block * token)))
    page = max(block * token, state)
    counts = [kind.count for kind in kinds if kind.kind != "fixed"]
    width = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
    return Pool(tuple(kinds), block, page, width, in_flight)


# --- weights and how they are split ------------------------------------------------------------------------------


def weights(entry: dict[str, Any], wish: dict[str, Any] | None = None) -> float:
    """Bytes of the weights that an engine loads; 0 where nobody said."""
    return float(entry.get("loaded_gib") or entry.get("weights_gib") or 0) * GIB * (2 if widened(entry, wish) else 1)


def widened(entry: dict[str, Any], wish: dict[str, Any] | None) -> bool:
    """Whether an engine makes four bytes of each number that is stored in two."""
    return (wish or {}).get("dtype") in ("float", "float32") and entry.get("quantization") in (None, "none")


def known(entry: dict[str, Any]) -> bool:
    """Whether the entry says enough to work out what it needs."""
    return bool(entry.get("weights_gib") and (entry.get("config") or entry.get("kv_cache")))


def experts(config: dict[str, Any]) -> int:
    """Experts of a mixture; 0 for a dense model."""
    return int(config.get("num_experts") or config.get("n_routed_experts") or config.get("num_local_experts") or 0)


def parallel_problem(entry: dict[str, Any], size: int) -> str:
    """Why a model cannot be split over so many devices, or nothing."""
    if size == 1:
        return ""
    allowed = entry.get("tensor_parallel_sizes")
    if allowed and size not in allowed:
        return f"{entry['id']} runs at a tensor_parallel_size of {', '.join(map(str, allowed))}"
    if not entry.get("config"):
        return ""
    config = text_config(entry["config"])
    for key, name in (("num_attention_heads", "attention heads"), ("linear_num_key_heads", "linear attention heads")):
        if int(config.get(key) or 0) % size:
            return f"its {config[key]} {name} cannot be split evenly over {size}"
    heads = int(config.get("num_key_value_heads") or 0)
    if heads and not config.get("kv_lora_rank") and heads % size and size % heads:
        return f"its {heads} key-value heads can neither be split over nor repeated on {size}"
    stored = config.get("quantization_config") or {}
    block = stored.get("weight_block_size") or stored.get("group_size")
    block = block[0] if isinstance(block, list) else block
    width = int((config.get("moe_intermediate_size") if experts(config) else 0) or config.get("intermediate_size") or 0)
    # With expert parallelism whole experts are divided, not their columns.
    divided = not (experts(config) and (entry.get("flags") or {}).get("enable_expert_parallel"))
    if divided and isinstance(block, int) and block > 0 and width and (width % size or width // size % block):
        return f"{width} / {size} is no multiple of the {block} that its quantisation stores together"
    return ""


def parallel_sizes(entry: dict[str, Any], devices: int) -> list[int]:
    """The tensor_parallel_size values that this model allows on so many devices."""
    return [size for size in range(1, devices + 1) if not parallel_problem(entry, size)]


def default_batched_tokens(machine: dict[str, Any], size: int = 1) -> int:
    """vLLM's own max_num_batched_tokens for its server (engine/arg_utils.py, 0.32.0)."""
    if machine["kind"] == "cpu":
        return 2048 * size
    device = machine["devices"][0]
    if device["total"] >= 160 * GIB:
        return 16384
    return 8192 if device["total"] >= 70 * GIB and "a100" not in device["name"].lower() else 2048


def batched_tokens(machine: dict[str, Any], entry: dict[str, Any], size: int, wish: dict[str, Any]) -> int:
    """max_num_batched_tokens as it will be."""
    if wish.get("max_num_batched_tokens"):
        return int(wish["max_num_batched_tokens"])
    tokens = default_batched_tokens(machine, size)
    if machine["kind"] == "cpu" and latent_attention(entry) and "amx_bf16" not in machine["isa"]:
        # vLLM computes such prompts in one piece there (platforms/cpu.py, 0.32.0).
        return max(tokens, int(wish.get("max_model_len") or entry.get("max_model_len") or 0))
    return tokens


def overhead(machine: dict[str, Any], entry: dict[str, Any], size: int, wish: dict[str, Any]) -> float:
    """Bytes of one device that are neither weights nor KV cache: activations at their peak, runtime, CUDA graphs."""
    config = text_config(entry.get("config") or {})
    tokens = batched_tokens(machine, entry, size, wish)
    hidden = int(config.get("hidden_size") or 4096)
    if experts(config):
        # Each token's vector once for each expert that computes it, and those experts' inner layers.
        width = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0)
        inner = int(config.get("num_experts_per_tok") or 1) * (hidden + 2 * width / size)
    else:
        inner = 2 * int(config.get("intermediate_size") or 4 * hidden) / size
    computing = tokens * (4 * hidden + inner) * (4 if widened(entry, wish) else 2)
    sequences = int(wish.get("max_num_seqs") or MOST_SEQUENCES[machine["kind"]])
    sampling = sequences * int(config.get("vocab_size") or 0) * SAMPLER_BYTES
    # One follows the other; the profile that vLLM takes sees the larger.
    activations = max(computing, sampling)
    if machine["kind"] == "cpu":
        # 9.1 GiB were measured, of which 4 were weights: as if oneDNN kept the output layer in an order of its own too.
        packed = 4 * hidden * int(config.get("vocab_size") or 0) / size if widened(entry, wish) else 0
        return activations + packed + (CPU_RANK_GIB + CPU_ENGINE_GIB / size) * GIB
    graphs = 0 if wish.get("enforce_eager") else (0.2 + 0.004 * int(config.get("num_hidden_layers") or 0)) * GIB
    return activations + graphs + (0.13 + 0.41 * math.log2(size)) * GIB


# --- speed -------------------------------------------------------------------------------------------------------


def speed(
    machine: dict[str, Any],
    entry: dict[str, Any],
    size: int,
    pipeline: int,
    kinds: list[Layers],
    wish: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A roofline's estimate: what memory bandwidth and arithmetic allow, times what real engines reach of it.

    Returns decode (tokens/s of one session), prefill (tokens/s) and first_turn (seconds), or None where the
    hardware's figures or the model's size are not known.
    """
    device, kind = machine["devices"][0], machine["kind"]
    parameters = float(entry.get("parameters") or 0)
    active = float(entry.get("active_parameters") or parameters)
    if not (device.get("bandwidth") and device.get("flops") and parameters and weights(entry)):
        return {"decode": None, "prefill": None, "first_turn": None}
    config = text_config(entry.get("config") or {})
    bandwidth = device["bandwidth"] * DECODE_EFFICIENCY[kind]
    if kind == "cuda" and experts(config):
        bandwidth *= EXPERT_EFFICIENCY
    read = weights(entry, wish) * active / parameters / size
    for layer in kinds:
        read += pipeline * layer.count * (layer.state or layer.token * min(layer.window or FIRST_PROMPT, FIRST_PROMPT))
    count = int(config.get("num_hidden_layers") or 0)
    slow = kind == "cpu" and "avx512f" not in machine["isa"]
    reduce = LOOPBACK_REDUCE_SECONDS if slow else REDUCE_SECONDS[kind]
    step = STEP_SECONDS[kind] + (2 * count * reduce if size > 1 else 0)
    decode = 1 / (read / bandwidth + step)

    native = entry.get("native_compute_capability") or entry.get("minimum_compute_capability")
    eight = entry.get("quantization") == "fp8" and kind == "cuda" and machine["compute_capability"] >= (native or 8.9)
    flops = (device.get("fp8_flops") if eight else None) or device["flops"]
    if experts(config) and device.get("expert_flops"):
        flops = device["expert_flops"]
    elif widened(entry, wish) and device.get("float32_flops"):
        flops = device["float32_flops"]
    attention = 0.0
    for layer in kinds:
        if layer.kind != "state":
            # Each token looks at half the prompt on average, or at its window; scores and values, two operations each.
            width = min(layer.window or FIRST_PROMPT, FIRST_PROMPT / 2)
            dim = int(config.get("num_attention_heads") or 0) * (head_dim(config) if config.get("hidden_size") else 0)
            attention += 4 * dim * width * layer.count * pipeline
    seconds = (2 * active * 1e9 + attention) / (flops * PREFILL_EFFICIENCY[kind] * size)
    if kind == "cpu":
        states = sum(layer.count for layer in kinds if layer.kind == "state")
        threads = size * len(device.get("cores") or [1])
        seconds += states * STATE_SECONDS["avx512_bf16" in machine["isa"]] / threads
    prefill = 1 / seconds
    return {"decode": decode, "prefill": prefill, "first_turn": FIRST_PROMPT / prefill + FIRST_ANSWER / decode}


# --- the assessment ----------------------------------------------------------------------------------------------


def refusals(machine: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """Why this hardware cannot run this checkpoint at all, whatever the memory."""
    kind = machine["kind"]
    name = machine["devices"][0]["name"].split(",")[0]
    form = entry.get("quantization")
    stored = f" ({form})" if form not in (None, "none", "other") else ""
    found = []
    if kind == "cpu" and machine.get("architecture", "x86_64") == "x86_64" and "avx2" not in machine["isa"]:
        found.append(f"vLLM on CPU needs AVX2, and {name} does not have it")
    if kind not in (entry.get("runs_on") or ("cpu", "cuda")):
        found.append(f"vLLM does not run this checkpoint{stored} on {'CPU' if kind == 'cpu' else 'NVIDIA GPUs'}")
    instructions = MINIMUM_CPU.get(str(entry.get("minimum_cpu")))
    if kind == "cpu" and not found and instructions and instructions not in machine["isa"]:
        found.append(f"vLLM's kernels for this checkpoint{stored} need {instructions}, and {name} does not have it")
    needed = entry.get("minimum_compute_capability")
    if kind == "cuda" and needed and machine["compute_capability"] and machine["compute_capability"] < needed:
        found.append(f"it needs compute capability {needed}, and {name} has {machine['compute_capability']}")
    return found


def splits(machine: dict[str, Any], entry: dict[str, Any], wish: dict[str, Any]) -> list[tuple[int, int]]:
    """(tensor_parallel_size, pipeline_parallel_size) worth trying, in the order of preference."""
    devices = len(machine["devices"])
    pipeline = int(wish.get("pipeline_parallel_size") or 0)
    if wish.get("tensor_parallel_size"):
        return [(int(wish["tensor_parallel_size"]), pipeline or 1)]
    sizes = parallel_sizes(entry, devices)
    if machine["kind"] == "cpu":
        # All NUMA nodes give all their bandwidth; fewer only where the model cannot be split so far.
        sizes.reverse()
    else:
        sizes = [size for size in sizes if size & (size - 1) == 0]
    if pipeline:
        return [(size, pipeline) for size in sizes if size * pipeline <= devices] or [(1, pipeline)]
    if machine["kind"] == "cpu":
        return [(size, 1) for size in sizes]
    plain = [(size, 1) for size in sizes]
    # Stages of a pipeline only where tensors cannot be split over all devices.
    widest = sizes[-1]
    staged = [(widest, stages) for stages in range(2, devices // widest + 1)]
    return plain + staged


def assess(
    machine: dict[str, Any], entry: dict[str, Any], wish: dict[str, Any] | None = None, taken: Iterable[float] = ()
) -> dict[str, Any]:
    """What this model needs and gets on this machine.

    wish: any of WISHES, before what the entry's own flags say. taken: bytes of each
    device that other instances of the machine have already.

    Returns fits (with the context wished for, or with Claude Code's 64K), why (the reasons against it, or what
    limits it), the values that vLLM should be started with, sessions by context, speed, and the figures behind it.
    """
    shipped = {name: value for name, value in (entry.get("flags") or {}).items() if name in WISHES}
    wish = {name: value for name, value in {**shipped, **(wish or {})}.items() if value is not None}
    result: dict[str, Any] = {
        "model": entry["id"],
        "kind": machine["kind"],
        "fits": False,
        "why": refusals(machine, entry),
        "known": known(entry),
        "disk_gib": round(float(entry.get("weights_gib") or 0), 1),
        "sessions": dict.fromkeys(CONTEXTS, 0),
        **dict.fromkeys(("decode", "prefill", "first_turn")),
    }
    if result["why"]:
        return result
    if not known(entry):
        result["why"] = ["its weights_gib and config are not known, so nothing can be worked out"]
        return result
    already = [*taken, *[0.0] * len(machine["devices"])]
    tried = [place(machine, entry, wish, size, stages, already) for size, stages in splits(machine, entry, wish)]
    good = [item for item in tried if item["fits"]]
    wanted = int(wish.get("max_num_seqs") or SESSIONS)
    # The first that serves everybody, else the one that serves most.
    enough = [item for item in good if item["sessions"][MIN_CONTEXT] >= wanted]
    if enough:
        return {**result, **enough[0]}
    best = max(good or tried, key=lambda item: (item["sessions"][MIN_CONTEXT], item["room"]))
    return {**result, **best}


def place(
    machine: dict[str, Any], entry: dict[str, Any], wish: dict[str, Any], size: int, stages: int, taken: list[float]
) -> dict[str, Any]:
    """The assessment for one way to split the model."""
    kind = machine["kind"]
    used = size * stages
    problem = parallel_problem(entry, size)
    if used > len(machine["devices"]):
        unit = "GPUs" if kind == "cuda" else "NUMA nodes"
        problem = f"tensor_parallel_size {size}" + (f" × pipeline_parallel_size {stages}" if stages > 1 else "")
        problem += f" needs {used} {unit}, and there are {len(machine['devices'])}"
    devices = machine["devices"][:used]
    device = min(devices, key=lambda item: item["budget"])
    share = weights(entry, wish) / used
    element = KV_BYTES.get(str(wish.get("kv_cache_dtype")), 4 if widened(entry, wish) else 2)
    kinds = [
        Layers(item.kind, math.ceil(item.count / stages), item.token, item.window, item.state)
        for item in layers(
            entry, size, element, kind == "cpu" and "avx512_bf16" in machine["isa"], machine["compute_capability"]
        )
    ]
    batched = batched_tokens(machine, entry, size, wish)
    latent = latent_attention(entry)
    block = int(wish.get("block_size") or ((16 if latent else 128) if kind == "cpu" else (64 if latent else 16)))
    # Asynchronous scheduling, which a CPU does not use, has two batches under way.
    blocks = pool(kinds, block, batched * (1 if kind == "cpu" else 2))

    budget = min(item["budget"] - used_by for item, used_by in zip(devices, taken, strict=False)) if devices else 0
    utilization = float(wish.get("gpu_memory_utilization") or GPU_MEMORY_UTILIZATION)
    if not wish.get("gpu_memory_utilization") and any(item.kind == "state" for item in kinds):
        utilization = STATE_UTILIZATION if device["total"] < STATE_GIB * GIB else utilization
    if kind == "cuda":
        budget = min(budget, utilization * device["total"])
    extra = overhead(machine, entry, size, wish)
    room = budget - share - extra

    native = int(entry.get("max_model_len") or entry.get("native_context") or 0)
    context = int(wish.get("max_model_len") or 0)
    least = context or min(MIN_CONTEXT, native or MIN_CONTEXT)
    explicit = wish.get("kv_cache_memory_bytes")
    if explicit:
        available = float(explicit)
        lacking = available - room
    else:
        available = room
        lacking = blocks.request(least) - room
    if not context:
        context = blocks.longest(max(available, 0), native or MIN_CONTEXT)
        context -= context % 1024 if context < (native or MIN_CONTEXT) else 0
    result: dict[str, Any] = {
        "fits": not problem and lacking <= 0 and (not explicit or blocks.request(context or least) <= available),
        "why": [],
        "tensor_parallel_size": size,
        "pipeline_parallel_size": stages,
        "devices": [item["index"] for item in devices],
        "budget": budget,
        "weights": share,
        "overhead": extra,
        "room": room,
        "minimum": share + extra + (float(explicit) if explicit else blocks.request(least)),
        "max_model_len": context,
        "block": blocks.block,
    }
    where = {"cuda": "GPU", "cpu": "NUMA node" if len(machine["devices"]) > 1 else "machine"}[kind]
    if problem:
        result["why"] = [problem]
    elif explicit and blocks.request(context or least) > available:
        result["why"] = [
            f"one session of {thousands(context or least)} needs {gib(blocks.request(context or least))} of KV cache, "
            f"and kv_cache_memory_bytes is {gib(available)}"
        ]
    elif lacking > 0:
        cache = (
            f"{gib(available)} KV cache"
            if explicit
            else (f"{gib(blocks.request(least))} KV cache for 1 session of {thousands(least)}")
        )
        result["why"] = [
            f"needs {gib(share)} weights + {cache} + {gib(extra)} runtime"
            + (f" on each {where}" if used > 1 else "")
            + f" = {gib(share + extra + (available if explicit else blocks.request(least)))}; "
            f"{'each' if used > 1 else 'this'} {where} has {gib(max(budget, 0))} for it"
            + (
                f" (at gpu_memory_utilization {utilization})"
                if kind == "cuda" and utilization != GPU_MEMORY_UTILIZATION
                else ""
            )
        ]
        shorter = blocks.longest(room, least) if room > 0 else 0
        if shorter >= 1024 and not explicit:
            result["why"].append(f"max_model_len up to {shorter - shorter % 1024} would fit")
    if not explicit:
        available = max(available, 0)
        if kind == "cpu":
            # What is asked for, not all there is: others use a host's memory too, and a page cache.
            wanted = max(blocks.request(context), int(wish.get("max_num_seqs") or SESSIONS) * blocks.request(least))
            available = min(available, wanted)
            # Whole blocks, at least one session.
            available = available // blocks.block_bytes * blocks.block_bytes
    result["kv_cache_memory_bytes"] = int(available)
    for tokens in CONTEXTS:
        reachable = not wish.get("max_model_len") or tokens <= context
        count = blocks.requests(available, tokens) if reachable and tokens <= (native or tokens) else 0
        result.setdefault("sessions", {})[tokens] = int(count) if result["fits"] else 0
    result["kv_tokens"] = blocks.tokens(available, context) if context else 0
    result["kv_bytes_per_token"] = sum(item.count * item.token for item in kinds if item.kind == "full") * stages
    result["max_num_seqs"] = int(
        wish.get("max_num_seqs")
        or max(1, min(MOST_SEQUENCES[kind], 2 * int(blocks.requests(available, min(MIN_CONTEXT, context or 1)))))
    )
    if kind == "cuda":
        result["gpu_memory_utilization"] = utilization
    bound = len(machine["devices"]) > 1 or machine.get("reserved_cores") is not None or machine.get("cpu_quota")
    if kind == "cpu" and not problem and bound:
        result["omp_threads_bind"] = threads_bind(devices, machine.get("reserved_cores"))
    return {**result, **(speed(machine, entry, size, stages, kinds, wish) if not problem else {})}


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] → 0-2,5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def threads_bind(devices: list[dict[str, Any]], reserved: int | None = None, part: int = 0, parts: int = 1) -> str:
    """VLLM_CPU_OMP_THREADS_BIND: one thread for each physical core of each node but the first ones, which are left to
    the scheduler that each rank has and to the gateway. Instances that share a host get a part of each node's cores.

    reserved: cores of the host that are left out, over all of these nodes; None is one of each node.
    """
    sets = []
    for at, device in enumerate(devices):
        cores = [core[0] for core in device.get("cores") or []]
        keep = 1 if reserved is None else (reserved + len(devices) - 1 - at) // len(devices)
        # One is left for each instance, whatever somebody reserved.
        cores = cores[min(keep, max(0, len(cores) - parts)) :]
        own = cores[len(cores) * part // parts : len(cores) * (part + 1) // parts]
        sets.append(ranges(own or cores))
    return "|".join(sets)


def share(
    machine: dict[str, Any], asked: list[tuple[dict[str, Any], dict[str, Any], list[int] | None]]
) -> list[dict[str, Any]]:
    """Assess several instances of one machine together: (entry, wish, devices or None) for each.

    On CPU each leaves the others what they need at least. GPUs go to the instances that name them; the others get what
    is left in their order; those that share one divide gpu_memory_utilization evenly.
    """
    if machine["kind"] == "cpu":
        return share_memory(machine, asked)
    named = [set(devices) for _entry, _wish, devices in asked if devices]
    left = [item for item in machine["devices"] if not any(item["index"] in devices for devices in named)]
    found = []
    for at, (entry, wish, devices) in enumerate(asked):
        if devices:
            own = [item for item in machine["devices"] if item["index"] in devices]
        elif len(asked) == 1:
            own = machine["devices"]
        else:
            own = left
        sharers = 1 + sum(
            1
            for other, (_e, _w, named_by) in enumerate(asked)
            if other != at and devices and named_by and set(devices) & set(named_by)
        )
        if sharers > 1 and not wish.get("gpu_memory_utilization"):
            wish = {**wish, "gpu_memory_utilization": math.floor(100 * GPU_MEMORY_UTILIZATION / sharers) / 100}
        if not own:
            found.append(
                {
                    **assess({**machine, "devices": machine["devices"][:1]}, entry, wish),
                    "fits": False,
                    "why": ["no GPU is left for it on this host"],
                    "devices": [],
                }
            )
            continue
        result = assess({**machine, "devices": own}, entry, wish)
        if devices is None:
            left = [item for item in left if item["index"] not in result.get("devices", [])]
        found.append(result)
    return found


def share_memory(
    machine: dict[str, Any], asked: list[tuple[dict[str, Any], dict[str, Any], list[int] | None]]
) -> list[dict[str, Any]]:
    """share() for the memory of NUMA nodes."""
    count = len(machine["devices"])
    alone = [assess(machine, entry, wish) for entry, wish, _devices in asked]

    def spread(result: dict[str, Any], name: str) -> list[float]:
        used = result.get("devices") or []
        amount = (
            result["minimum"]
            if name == "minimum"
            else (result["weights"] + result["overhead"] + result["kv_cache_memory_bytes"])
        )
        return [amount if device["index"] in used else 0.0 for device in machine["devices"]]

    found: list[dict[str, Any]] = []
    for at, (entry, wish, _devices) in enumerate(asked):
        others = [spread(result, "all") for result in found if "minimum" in result]
        others += [spread(result, "minimum") for result in alone[at + 1 :] if "minimum" in result]
        taken = [sum(column[index] for column in others) for index in range(count)]
        result = assess(machine, entry, wish, taken)
        own = [device for device in machine["devices"] if device["index"] in result.get("devices", [])]
        if len(asked) > 1 and own:
            result["omp_threads_bind"] = threads_bind(own, machine.get("reserved_cores"), at, len(asked))
        found.append(result)
    return found
