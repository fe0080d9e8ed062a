# MIT licence (see LICENSE)
"""What can be wrong with `vllm_instances` and its neighbours. Pure; runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import catalog, vllm_backends, vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

#: Below this Claude Code compacts all the time: it keeps max_output (8–16K) and 13K free.
CLAUDE_CODE_CONTEXT = 65536


def flag_problems(host: str, variable: str, flags: Any, version: str) -> list[dict[str, Any]]:
    """Flags that a role owns, that are gone, or that never were."""
    if not isinstance(flags, dict):
        return [
            problem(
                host,
                variable,
                flags,
                "flags are a mapping of names to values",
                "write `{max_num_batched_tokens: 4096}`",
            )
        ]
    known = vllm_flags.engine_description(version)
    found = []
    for flag, value in flags.items():
        name, place = vllm_flags.python_name(str(flag)), f"{variable}.{flag}"
        if name in vllm_flags.OWNED_FLAGS:
            found.append(
                problem(
                    host,
                    place,
                    value,
                    f"--{name.replace('_', '-')} is not set by way of flags",
                    f"set {vllm_flags.OWNED_FLAGS[name]}",
                )
            )
        elif name in vllm_flags.REMOVED_FLAGS:
            found.append(
                problem(
                    host,
                    place,
                    value,
                    f"vLLM {version} no longer has this flag",
                    f"remove it; in its place: {vllm_flags.REMOVED_FLAGS[name]}",
                )
            )
        elif name.startswith("no_") and name[3:] in known["flags"]:
            found.append(problem(host, place, value, "a flag is switched off by its value", f"write {name[3:]}: false"))
        elif name not in known["flags"]:
            found.append(
                problem(
                    host,
                    place,
                    value,
                    f"vLLM {version} has no flag of this name",
                    f"look at `vllm serve --help`{vllm_flags.nearest(name, known['flags'])}",
                )
            )
        elif known["flags"][name] in ("boolean", "switch") and value is not None and not isinstance(value, bool):
            found.append(problem(host, place, value, "this flag is a switch", "set it to true or false"))
        elif name == "gpu_memory_utilization" and not (
            isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
        ):
            found.append(
                problem(
                    host,
                    place,
                    value,
                    "this is a share of a GPU's memory",
                    "set a number above 0 and up to 1; on CPU set kv_cache_memory_bytes",
                )
            )
        elif name in ("tool_call_parser", "reasoning_parser") and value is not None:
            names = known["tool_parsers" if name.startswith("tool") else "reasoning_parsers"]
            if value not in names and "tool_parser_plugin" not in flags and "reasoning_parser_plugin" not in flags:
                found.append(
                    problem(
                        host,
                        place,
                        value,
                        f"vLLM {version} has no parser of this name",
                        f"choose one of: {', '.join(names)}{vllm_flags.nearest(str(value), names)}",
                    )
                )
    return found


def entry_problems(host: str, where: str, entry: Any) -> list[dict[str, Any]]:
    """A catalogue entry that a user wrote: what is needed to find its weights."""
    fix = "write it in the form of catalog/models/*.yml: {id: my-model, source: {path: /data/my-model}}"
    if not isinstance(entry, dict):
        return [problem(host, where, entry, "a catalogue entry is a mapping", fix)]
    missing = [key for key, kind in (("id", str), ("source", dict)) if not isinstance(entry.get(key), kind)]
    if missing:
        return [problem(host, where, entry, f"the entry lacks {', '.join(missing)}", fix)]
    kinds = [key for key in ("path", "repo", "builder") if isinstance(entry["source"].get(key), str)]
    if len(kinds) != 1 or set(entry["source"]) - {"path", "repo", "builder", "revision"}:
        return [
            problem(
                host,
                f"{where}.source",
                entry["source"],
                "a source is one of path, repo (with revision) or builder",
                fix,
            )
        ]
    if kinds == ["builder"] and entry["source"]["builder"] != "loopback_model":
        return [problem(host, f"{where}.source", entry["source"], "there is no such builder", fix)]
    if not isinstance(entry.get("flags") or {}, dict):
        return [problem(host, f"{where}.flags", entry["flags"], "flags are a mapping of names to values", fix)]
    return []


def instance_problems(
    host: str, index: int, instance: Any, entries: dict[str, Any], version: str
) -> list[dict[str, Any]]:
    """One item of vllm_instances."""
    where = f"vllm_instances[{index}]"
    if not isinstance(instance, dict):
        return [problem(host, where, instance, "an instance is a mapping", "write `- {name: coder, model: …}`")]
    found = []
    for key in instance:
        if key not in vllm_flags.INSTANCE_KEYS:
            known = vllm_flags.engine_description(version)["flags"]
            python = vllm_flags.python_name(str(key))
            fix = (
                f"move it to {where}.flags"
                if python in known
                else f"remove it{vllm_flags.nearest(str(key), vllm_flags.INSTANCE_KEYS)}"
            )
            found.append(problem(host, f"{where}.{key}", instance[key], "an instance has no such key", fix))
    name, model = instance.get("name"), instance.get("model")
    if not isinstance(name, str) or not vllm_flags.NAME.match(name):
        found.append(
            problem(
                host,
                f"{where}.name",
                name,
                "the name goes into a unit's name and a model's public id",
                "use 1 to 31 lower-case letters, digits and dashes, such as `coder`",
            )
        )
    if model is None:
        found.append(
            problem(
                host,
                f"{where}.model",
                None,
                "no model is set",
                f"set an id of the catalogue: {', '.join(sorted(entries))}",
            )
        )
    elif isinstance(model, dict):
        broken = entry_problems(host, f"{where}.model", model)
        if broken:
            return found + broken
    elif str(model) not in entries:
        found.append(
            problem(
                host,
                f"{where}.model",
                model,
                "the catalogue has no model of this id",
                f"choose one of: {', '.join(sorted(entries))}"
                f"{vllm_flags.nearest(str(model), entries)}; or describe it in vllm_models",
            )
        )
    entry = model if isinstance(model, dict) else entries.get(str(model))
    port = instance.get("port", 8000)
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        found.append(problem(host, f"{where}.port", port, "this is no TCP port", "set a number from 1 to 65535"))
    for key in ("max_model_len", "max_num_seqs", "tensor_parallel_size"):
        value = instance.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            found.append(
                problem(
                    host,
                    f"{where}.{key}",
                    value,
                    "this is no positive whole number",
                    "set a whole number above 0, or leave it out",
                )
            )
    devices = instance.get("devices")
    if devices is not None and not (
        isinstance(devices, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in devices)
    ):
        found.append(
            problem(host, f"{where}.devices", devices, "these are no indices of GPUs", "write them as `[0, 1]`")
        )
    names = instance.get("served_model_name")
    for served in [] if names is None else names if isinstance(names, list) else [names]:
        if not isinstance(served, str) or not served or "/" in served:
            found.append(
                problem(
                    host,
                    f"{where}.served_model_name",
                    served,
                    "clients cannot ask for such a name",
                    "use text without `/`",
                )
            )
    environment = instance.get("environment")
    if environment is not None and not isinstance(environment, dict):
        found.append(
            problem(
                host,
                f"{where}.environment",
                environment,
                "environment variables are a mapping of names to values",
                "write `{OMP_NUM_THREADS: 8}`",
            )
        )
    found += flag_problems(host, f"{where}.flags", instance.get("flags") or {}, version)
    if entry:
        context = instance.get("max_model_len") or entry.get("max_model_len")
        if isinstance(context, int) and not isinstance(context, bool):
            native = entry.get("native_context")
            stretched = any(
                "hf_overrides" in (flags or {}) for flags in (entry.get("flags"), instance.get("flags")) if flags
            )
            if native and context > native and not stretched:
                found.append(
                    problem(
                        host,
                        f"{where}.max_model_len",
                        context,
                        f"{entry['id']} was made for at most {native} tokens",
                        f"set at most {native}, or stretch it with flags.hf_overrides",
                    )
                )
            if context < CLAUDE_CODE_CONTEXT:
                found.append(
                    problem(
                        host,
                        f"{where}.max_model_len",
                        context,
                        "Claude Code sends 11–29K tokens before the user has typed anything, "
                        "and with this context it will compact all the time",
                        f"set {CLAUDE_CODE_CONTEXT} or more",
                        "warning",
                    )
                )
        if "repo" in entry["source"] and entry["source"].get("revision") in (None, "unverified"):
            found.append(
                problem(
                    host,
                    f"{where}.model",
                    entry["id"],
                    "the catalogue knows no verified revision of these weights",
                    f"describe the model in vllm_models with source: {{repo: {entry['source']['repo']}, "
                    "revision: <commit>}, or with source: {path: <folder on the host>}",
                )
            )
    return found


def problems(hostvars: Any, groups: dict[str, list[str]], versions: dict[str, str]) -> list[dict[str, Any]]:
    """Everything about engines, over all hosts. `versions` maps the variant to vLLM's version."""
    found = []
    gateways = groups.get("gateways", [])
    for host in groups.get("engines", []):
        variables = hostvars[host]
        own = variables.get("vllm_models") or []
        broken = [(entry, entry_problems(host, f"vllm_models[{at}]", entry)) for at, entry in enumerate(own)]
        found += [item for _entry, items in broken for item in items]
        entries = catalog.entries([entry for entry, items in broken if not items])
        variant = str(variables.get("vllm_variant") or "auto")
        version = versions["cuda" if variant == "cuda" else "cpu"]
        instances = variables.get("vllm_instances")
        if not instances:
            found.append(
                problem(
                    host,
                    "vllm_instances",
                    None,
                    "this host is in the group `engines` but runs nothing",
                    "set vllm_instances, for example `[{name: coder, model: loopback}]`, or take it out",
                )
            )
            continue
        if not isinstance(instances, list):
            found.append(
                problem(
                    host,
                    "vllm_instances",
                    instances,
                    "this is a list of instances",
                    "write `vllm_instances: [{name: coder, model: …}]`",
                )
            )
            continue
        seen: dict[Any, str] = {}
        for index, instance in enumerate(instances):
            found += instance_problems(host, index, instance, entries, version)
            if not isinstance(instance, dict):
                continue
            for key, value in (("name", instance.get("name")), ("port", instance.get("port", 8000))):
                first = seen.setdefault((key, str(value)), f"vllm_instances[{index}]")
                if first != f"vllm_instances[{index}]":
                    found.append(
                        problem(
                            host,
                            f"vllm_instances[{index}].{key}",
                            value,
                            f"{first} has the same {key}",
                            f"give each instance of a host its own {key}",
                        )
                    )
        found += flag_problems(host, "vllm_flags", variables.get("vllm_flags") or {}, version)
        bind = str(variables.get("vllm_bind_address") or vllm_backends.BIND_ADDRESS)
        elsewhere = [gateway for gateway in gateways if gateway != host]
        if elsewhere and vllm_backends.is_loopback(bind):
            found.append(
                problem(
                    host,
                    "vllm_bind_address",
                    bind,
                    f"the gateway {elsewhere[0]} is another host and cannot reach a loopback address",
                    "set this host's address on the private network",
                )
            )
    return found
