# MIT licence (see LICENSE)
"""What can be wrong with flags of `vllm serve` and with an engine's environment. Pure; runs on the controller."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.inventory_validation import unprintable
from ansible_collections.modelhost.serving.plugins.module_utils.problems import hint, is_secret, problem

ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Environment variables that this project sets itself, with what to set instead.
OWNED_ENVIRONMENT = {
    "VLLM_API_KEY": "remove it: the engine's key is generated on its host and kept out of units",
    "VLLM_ENGINE_READY_TIMEOUT_S": "set vllm_start_timeout",
    "VLLM_CPU_KVCACHE_SPACE": "set the flag kv_cache_memory_bytes, in bytes for each NUMA node",
    "CUDA_VISIBLE_DEVICES": "set the instance's key `devices`",
    "VLLM_PORT": "remove it: it is not the API's port, and engines that share it cannot start; set the key `port`",
    "HOST_IP": "remove it: engines talk to their own processes over loopback",
    "PYTHONPATH": "remove it: the guard that wants the engine's key is found by it",
    "MODELHOST_ENGINE_KEYS": "remove it",
    "MODELHOST_METRICS_CLIENTS": "set vllm_metrics_clients",
    "VLLM_USE_RUST_FRONTEND": "remove it",
}
#: Of these the reason is worth saying.
WHY_OWNED = {
    "VLLM_CPU_KVCACHE_SPACE": "vLLM lets this old variable beat kv_cache_memory_bytes, so the size of its KV cache "
    "would be another one than was planned with",
    "VLLM_USE_RUST_FRONTEND": "this front end takes no middleware, so nothing would want the engine's key",
}

#: Limits that vLLM's configuration classes do not state.
RANGES = {"kv_cache_memory_bytes": {"gt": 0}, "num_gpu_blocks_override": {"gt": 0}, "api_server_count": {"ge": 1}}

KINDS = {
    "int": "a whole number",
    "size": "a whole number",
    "float": "a number",
    "json": "a mapping or a list",
    "str": "text",
    "any": "text or a mapping",
}


def flag_problems(host: str, variable: str, flags: Any, version: str) -> list[dict[str, Any]]:
    """Flags that a role owns, that are gone or never were, and values that they do not take."""
    if not isinstance(flags, dict):
        why, fix = "flags are a mapping of names to values", "write `{max_num_batched_tokens: 4096}`"
        return [problem(host, variable, None, why, fix)]
    known = vllm_flags.engine_description(version)
    found = []
    seen: dict[str, Any] = {}
    for flag, value in flags.items():
        name, place = vllm_flags.python_name(str(flag)), f"{variable}.{flag}"
        verdict = name_verdict(name, value, known, version) or value_verdict(name, value, known, version)
        if not verdict and name in seen:
            verdict = f"`{seen[name]}` is the same flag", "keep one of the two"
        if not verdict and not isinstance(flag, str):
            verdict = "a flag's name is text", f"write it in quotes: '{flag}'"
        if verdict:
            found.append(problem(host, place, value, *verdict))
        seen[name] = flag
    return found


def name_verdict(name: str, value: Any, known: dict[str, Any], version: str) -> tuple[str, str] | None:
    """Why a flag of this name is refused, and what to do."""
    if name in vllm_flags.OWNED_FLAGS:
        instead = vllm_flags.OWNED_FLAGS[name]
        fix = f"remove it: {instead[9:]}" if instead.startswith("nothing: ") else f"set {instead}"
        return f"--{name.replace('_', '-')} is not set by way of flags", fix
    if name in vllm_flags.REMOVED_FLAGS:
        instead = vllm_flags.REMOVED_FLAGS[name]
        fix = f"remove it: {instead[9:]}" if instead.startswith("nothing: ") else f"remove it; in its place: {instead}"
        return f"vLLM {version} no longer has this flag", fix
    if name in known["flags"]:
        return None
    if name.startswith("no_") and name[3:] in known["flags"]:
        return "a flag is switched off by its value", f"write {name[3:]}: false"
    long = known["short"].get(name)
    if long:
        return f"this is the short form of {long}", f"write {long}: {vllm_flags.text(value)}"
    head, dot, tail = name.partition(".")
    if dot and head in known["flags"]:
        return "settings within a flag are a mapping", f"write {head}: {{{tail}: {vllm_flags.text(value)}}}"
    return f"vLLM {version} has no flag of this name", f"look at `vllm serve --help`{hint(name, known['flags'])}"


def value_verdict(name: str, value: Any, known: dict[str, Any], version: str) -> tuple[str, str] | None:
    """Why a flag does not take this value, and what it takes."""
    if value is None:
        return None  # takes the flag out
    if not carried(value):
        return (
            "a command line cannot carry this value",
            "write numbers that are finite, and text (dates in quotes) without control characters",
        )
    kind = known["flags"][name]
    if kind in ("boolean", "switch"):
        return None if isinstance(value, bool) else ("this flag is a switch", "set it to true or false")
    wanted, items = known["types"].get(name, "str"), list(value) if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, (list, tuple)) and kind == "value" and wanted != "json":
        return "this flag takes one value and not a list", f"set it to {KINDS[wanted]}"
    if not items:
        return "this list is empty", "leave the flag out, or set it to null to take it out"
    if kind == "value" and wanted == "json" and isinstance(value, (dict, list)):
        return keys_verdict(value, known["fields"].get(name), version)
    for item in items:
        if name == "lora_modules" and isinstance(item, str) and "=" not in item:
            return "an adapter has a name and a path", "write it as name=path, or as {name: …, path: …}"
        if kind in ("list", "append") and isinstance(item, str) and item.startswith("-"):
            return "what begins with a dash would be taken for another flag", "write it without the dash"
        if not takes(wanted, item):
            fix = f"set it to {KINDS[wanted]}"
            if isinstance(item, str) and wanted in ("int", "size", "float"):
                plain = sized(item) if wanted == "size" else item if re.fullmatch(r"-?\d+(\.\d+)?", item) else None
                fix = f"write {plain}, without quotes" if plain is not None else fix
            return f"this flag takes {KINDS[wanted]}", fix
    choices = known["choices"].get(name)
    if choices:
        for item in items:
            if str(item) not in map(str, choices):
                fix = f"choose one of: {', '.join(map(str, choices))}{hint(item, map(str, choices))}"
                return f"vLLM {version} does not take this value", fix
    return range_verdict(name, items, known)


def keys_verdict(value: Any, keys: list[str] | None, version: str) -> tuple[str, str] | None:
    """A key that the configuration behind a flag does not have."""
    for key in value if isinstance(value, dict) and keys else []:
        if key not in (keys or []):
            return (
                f"vLLM {version} has no `{key}` there",
                f"choose from: {', '.join(keys or [])}{hint(key, keys or [])}",
            )
    return None


def takes(wanted: str, item: Any) -> bool:
    """Whether one value is of the type that an option's own conversion reads."""
    if isinstance(item, bool) or item is None:
        return False
    if wanted in ("int", "size"):
        return isinstance(item, int)
    if wanted == "float":
        return isinstance(item, (int, float))
    if wanted == "json":
        if isinstance(item, str):
            try:
                return isinstance(json.loads(item), (dict, list))
            except ValueError:
                return False
        return isinstance(item, (dict, list))
    if wanted == "any":
        return isinstance(item, (str, dict))
    # Items of lists may be mappings (lora_modules).
    return isinstance(item, (str, int, float, dict))


def sized(item: Any) -> int | None:
    """`4G` and `25.6k` as vLLM itself would read them; the capacity module reckons with numbers."""
    found = re.fullmatch(r"(\d{1,15})(\.\d{1,9})?([kKmMgGtT]?)", item) if isinstance(item, str) else None
    if not found:
        return None
    power = " kmgt".index(found.group(3).lower() or " ")
    return int(float(found.group(1) + (found.group(2) or "")) * (1024 if found.group(3).isupper() else 1000) ** power)


def range_verdict(name: str, items: list[Any], known: dict[str, Any]) -> tuple[str, str] | None:
    """Numbers outside what vLLM's own configuration allows."""
    limits = known["ranges"].get(name) or RANGES.get(name)
    if not limits:
        return None
    words = {"gt": "above {}", "ge": "of {} or more", "lt": "below {}", "le": "up to {}"}
    fix = "set a number " + " and ".join(words[key].format(value) for key, value in limits.items())
    for item in items:
        try:
            amount = float(item)
        except (TypeError, ValueError, OverflowError):
            continue
        low = ("gt" in limits and amount <= limits["gt"]) or ("ge" in limits and amount < limits["ge"])
        high = ("lt" in limits and amount >= limits["lt"]) or ("le" in limits and amount > limits["le"])
        if low or high:
            if name == "gpu_memory_utilization":
                return "this is a share of a GPU's memory", f"{fix}; on CPU set kv_cache_memory_bytes"
            return f"vLLM does not take a number so {'small' if low else 'large'}", fix
    return None


def carried(value: Any) -> bool:
    """Whether a command line or a unit file can hold a value as it is."""
    if isinstance(value, str):
        return not unprintable(re.sub(r"[\n\t\r]", "", value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and carried(key) and carried(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(carried(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return value is None


# --- environment -------------------------------------------------------------------------------------------------


def environment_problems(host: str, variable: str, environment: Any, owned: dict[str, str]) -> list[dict[str, Any]]:
    """Names that are none, values that are no text, and variables that a role sets itself. Values are not shown."""
    if not isinstance(environment, dict):
        why, fix = "environment variables are a mapping of names to values", "write `{OMP_NUM_THREADS: 8}`"
        return [problem(host, variable, None, why, fix)]
    found = []
    for name, value in environment.items():
        place = f"{variable}.{name}"
        if not isinstance(name, str) or not ENVIRONMENT_NAME.fullmatch(name):
            why = "this is no name of an environment variable"
            fix = "use letters, digits and underscores, not a digit first and no `=`; the value stands after the colon"
            found.append(problem(host, place, None, why, fix))
        elif name in owned:
            why = WHY_OWNED.get(name, "this variable is set for you")
            found.append(problem(host, place, None, why, owned[name]))
        elif value is None:
            why = "the variable has no value"
            found.append(problem(host, place, None, why, 'remove the line, or write "" for an empty value'))
        elif isinstance(value, bool):
            why = "programs read True and False of YAML differently"
            found.append(problem(host, place, None, why, 'write "1" or "0", as the program\'s documentation says'))
        elif not isinstance(value, (str, int, float)) or not carried(value):
            found.append(problem(host, place, None, "this is not text that a unit can carry", "write text or a number"))
        elif is_secret(name):
            why = "units are readable by every account of the host, and so is this secret"
            fix = "take it out; weights are staged before, so engines need no token of the hub"
            found.append(problem(host, place, None, why, fix, "warning"))
    return found
