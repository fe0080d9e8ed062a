# MIT licence (see LICENSE)
"""Whether a host's instances fit into it, by the capacity module. Pure; runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import capacity, catalog, hardware, vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem


def alternative(machine: dict[str, Any], entry: dict[str, Any], entries: dict[str, Any], wish: dict[str, Any]) -> str:
    """What else would fit, as the end of a sentence."""
    parts = []
    family = [item for item in entries.values() if item["id"] != entry["id"] and item.get("config")]
    shape = capacity.text_config(entry.get("config") or {})
    same = [
        item
        for item in family
        if item.get("parameters") == entry.get("parameters")
        and capacity.text_config(item["config"]).get("num_hidden_layers") == shape.get("num_hidden_layers")
        and capacity.assess(machine, item, {key: wish[key] for key in ("max_model_len",) if key in wish})["fits"]
    ]
    if same:
        best = max(same, key=lambda item: float(item["weights_gib"]))
        parts.append(f"model: {best['id']} ({best['weights_gib']:.1f} GiB), which fits")
    return " or ".join([*parts, "another model (`./run plan` shows which fit)", "a host with more memory"])


def hidden_by_nodes(machine: dict[str, Any], probe: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """NUMA nodes that show less free memory than the KV cache takes, although there is enough: vLLM would refuse."""
    if machine["kind"] != "cpu" or machine["memory_nodes"] == 1:
        return []
    return [
        node
        for node in probe["numa"]
        if node["node"] in result["devices"]
        and node.get("memory_shown_free", result["kv_cache_memory_bytes"]) < result["kv_cache_memory_bytes"]
    ]


def nodes_problem(
    host: str, index: int, entry: dict[str, Any], probe: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """The sentence for hidden_by_nodes()."""
    machine = hardware.machine(probe, "cpu")
    node = min(hidden_by_nodes(machine, probe, result), key=lambda item: int(item["memory_shown_free"]))
    shown = int(node["memory_shown_free"])
    why = (
        f"{entry['id']} gets {capacity.gib(result['kv_cache_memory_bytes'])} of KV cache on each NUMA node, and node "
        f"{node['node']} shows {capacity.gib(shown)} of free memory, though this machine has more: some kernels count "
        "memory for a node only when it was used once; vLLM goes by the node and would refuse to start"
    )
    fix = (
        "use the memory once (`stress-ng --vm 1 --vm-bytes 90% --vm-populate --timeout 60s`) and run again, or set "
        f"kv_cache_memory_bytes: {shown // 2} in its flags"
    )
    return problem(host, f"vllm_instances[{index}].model", entry["id"], why, fix)


def problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """Instances that do not fit: into the machine, or into what others leave of it."""
    whole = hardware.of_host({**variables, "host_preflight_probe": probe})
    free = hardware.of_host({**variables, "host_preflight_probe": probe}, free=True)
    if not whole or not free or not whole["devices"]:
        return []
    entries = catalog.entries(variables.get("vllm_models") or [])
    instances, flags = variables.get("vllm_instances") or [], variables.get("vllm_flags")
    found = []
    judged = vllm_flags.assessments(instances, entries, flags, whole)
    wishes = []
    for instance, result in zip(instances, judged, strict=True):
        entry = catalog.on_host(vllm_flags.resolve(instance, entries), probe.get("paths"))
        chosen = vllm_flags.chosen_flags(instance, entry, flags)
        defaults, _environment = vllm_flags.host_defaults(result, whole)
        values = {**defaults, **{name: value for name, (value, _origin) in chosen.items()}}
        wish = {name: values[name] for name in capacity.WISHES if name in values}
        wishes.append((entry, wish, None))
    # Others on a GPU are judged by what vLLM itself asks for at its start (preflight_gpu.room_problems).
    left = capacity.share(free, wishes) if whole["kind"] == "cpu" else judged
    for index, (instance, result, now) in enumerate(zip(instances, judged, left, strict=True)):
        entry, wish, _devices = wishes[index]
        place = f"vllm_instances[{index}].model"
        if not result["known"] or "budget" not in result:
            # Nothing to reckon with, or hardware that cannot run it at all, which is said elsewhere.
            continue
        if not result["fits"]:
            why = "; ".join(result["why"])
            asked = {name: instance[name] for name in ("max_model_len",) if instance.get(name)}
            found.append(problem(host, place, entry["id"], why, "set " + alternative(whole, entry, entries, asked)))
        elif not now["fits"]:
            others = probe["memory"]["total"] - probe["memory"]["available"] - probe["memory"].get("engines", 0)
            fix = (
                "stop what holds the memory, or set vllm_memory_reserved_gib: "
                f"{max(1, round(others / capacity.GIB + 1))}, and what is left out of flags follows"
            )
            found.append(problem(host, place, entry["id"], "others leave too little: " + "; ".join(now["why"]), fix))
        elif hidden_by_nodes(whole, probe, result):
            found.append(nodes_problem(host, index, entry, probe, result))
        elif not instance.get("max_model_len") and entry.get("max_model_len"):
            room = result["max_model_len"]
            if room < entry["max_model_len"]:
                why = (
                    f"{entry['id']} could have {entry['max_model_len']} tokens of context, and this host has room for "
                    f"{room}; the engine starts with these"
                )
                fix = f"write max_model_len: {room}, so that clients are told the same whatever host is looked at"
                where = f"vllm_instances[{index}].max_model_len"
                found.append(problem(host, where, None, why, fix, "warning"))
    return found
