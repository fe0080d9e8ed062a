# MIT licence (see LICENSE)
"""What can be wrong with `vllm_instances` and its neighbours. Pure; runs on the controller."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import catalog, vllm_backends, vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.inventory_validation import specs, unprintable
from ansible_collections.modelhost.serving.plugins.module_utils.problems import hint, nearest, problem, some
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_flag_validation import (
    OWNED_ENVIRONMENT,
    environment_problems,
    flag_problems,
)
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_model_validation import (
    Asked,
    Site,
    entry_problems,
    model_problems,
)

HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def number(value: Any) -> bool:
    """Whether this is a whole number; YAML's true is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def instance_keys() -> dict[str, Any]:
    """Keys of an instance with their specification."""
    keys = specs()["vllm"]["vllm_instances"]["options"]
    assert isinstance(keys, dict)
    return keys


def form_problems(
    host: str, where: str, instance: dict[str, Any], entries: dict[str, Any], version: str
) -> list[dict[str, Any]]:
    """The keys of one item of vllm_instances and the form of their values."""
    found = []
    keys = instance_keys()
    for key in instance:
        if key not in keys:
            known = vllm_flags.engine_description(version)["flags"]
            is_flag = vllm_flags.python_name(str(key)) in known
            fix = f"move it to {where}.flags" if is_flag else f"remove it{hint(key, keys)}"
            found.append(problem(host, f"{where}.{key}", instance[key], "an instance has no such key", fix))
    name, model = instance.get("name"), instance.get("model")
    if not isinstance(name, str) or not vllm_flags.NAME.fullmatch(name):
        why = "the name goes into a unit's name and a model's public id"
        fix = "use 1 to 31 lower-case letters, digits and dashes, such as `coder`"
        found.append(problem(host, f"{where}.name", name, why, fix))
    if model is None:
        fix = f"set an id of the catalogue: {some(entries, 'catalog/models/')}"
        found.append(problem(host, f"{where}.model", None, "no model is set", fix))
    elif isinstance(model, dict):
        found += entry_problems(host, f"{where}.model", model, version)
    elif not isinstance(model, str) or model not in entries:
        # The hub's own name (Qwen/Qwen2.5-Coder-32B-Instruct) is what guides give.
        near = nearest(str(model).rsplit("/")[-1].lower(), entries)
        fix = f"did you mean `{near}`? " if near else ""
        fix += f"choose one of: {some(entries, 'catalog/models/')}; or describe it in vllm_models"
        found.append(problem(host, f"{where}.model", model, "the catalogue has no model of this id", fix))
    port = instance.get("port", 8000)
    if not number(port) or not 1024 <= port <= 65535:
        why = "this is no TCP port that an engine without privileges may open"
        found.append(problem(host, f"{where}.port", port, why, "set a number from 1024 to 65535"))
    for key in ("max_model_len", "max_num_seqs", "tensor_parallel_size"):
        value = instance.get(key)
        if value is not None and (not number(value) or not 1 <= value < 1 << 31):
            why, fix = "this is no positive whole number", "set a whole number above 0, or leave it out"
            found.append(problem(host, f"{where}.{key}", value, why, fix))
    found += device_problems(host, f"{where}.devices", instance.get("devices"))
    names = instance.get("served_model_name")
    for served in [] if names is None else names if isinstance(names, list) else [names]:
        if not isinstance(served, str) or not served or "/" in served or unprintable(served):
            why = "clients cannot ask for such a name"
            found.append(problem(host, f"{where}.served_model_name", served, why, "use text without `/`"))
    choices = keys["runtime"]["choices"]
    runtime = instance.get("runtime")
    if runtime is not None and runtime not in choices:
        why, fix = "engines cannot be run this way", f"set one of: {', '.join(choices)}; or leave it out"
        found.append(problem(host, f"{where}.runtime", runtime, why, fix))
    chatting = instance.get("allow_chat_only")
    if chatting is not None and not isinstance(chatting, bool):
        why, fix = "this is not true or false", "set it to true, or leave it out"
        found.append(problem(host, f"{where}.allow_chat_only", chatting, why, fix))
    flags, environment = instance.get("flags"), instance.get("environment")
    found += flag_problems(host, f"{where}.flags", {} if flags is None else flags, version)
    return found + environment_problems(
        host, f"{where}.environment", {} if environment is None else environment, OWNED_ENVIRONMENT
    )


def device_problems(host: str, where: str, devices: Any) -> list[dict[str, Any]]:
    """Indices of GPUs."""
    if devices is None:
        return []
    if not isinstance(devices, list) or not all(number(item) and item >= 0 for item in devices):
        return [problem(host, where, devices, "these are no indices of GPUs", "write them as `[0, 1]`")]
    if not devices:
        fix = "leave it out for as many as it needs, or name some"
        return [problem(host, where, devices, "an engine without devices cannot run", fix)]
    if len(set(devices)) < len(devices):
        return [problem(host, where, devices, "a GPU is named twice", "name each GPU once")]
    return []


def judged(
    host: str, where: str, instance: dict[str, Any], entries: dict[str, Any], common: Any, wrong: list[dict[str, Any]]
) -> Asked | None:
    """An instance without what was found wrong with it (`wrong`), for the checks that need its model; or nothing."""
    bad = {item["variable"] for item in wrong}
    if any(place == f"{where}.name" or place.startswith(f"{where}.model") for place in bad):
        return None
    sound = {key: value for key, value in instance.items() if f"{where}.{key}" not in bad}

    def flags(variable: str, values: Any) -> dict[str, Any]:
        if variable in bad or not isinstance(values, dict):
            return {}
        return {flag: value for flag, value in values.items() if f"{variable}.{flag}" not in bad}

    sound["flags"] = flags(f"{where}.flags", instance.get("flags"))
    model = instance["model"]
    entry = model if isinstance(model, dict) else entries[model]
    chosen = vllm_flags.chosen_flags(sound, entry, flags("vllm_flags", common))
    return Asked(
        host,
        where,
        sound,
        entry,
        flags={name: value for name, (value, _origin) in chosen.items()},
        places={name: f"vllm_flags.{name}" for name, (_value, origin) in chosen.items() if origin == "vllm_flags"},
    )


def pair_problems(host: str, instances: list[Any]) -> list[dict[str, Any]]:
    """Two instances of one host that want the same name or port."""
    found = []
    seen: dict[tuple[str, str], str] = {}
    for index, instance in enumerate(instances):
        if not isinstance(instance, dict):
            continue
        where = f"vllm_instances[{index}]"
        for key, value in (("name", instance.get("name")), ("port", instance.get("port", 8000))):
            first = seen.setdefault((key, str(value)), where)
            if first != where:
                why, fix = f"{first} has the same {key}", f"give each instance of a host its own {key}"
                found.append(problem(host, f"{where}.{key}", value, why, fix))
    return found


def share_problems(asked: list[Asked]) -> list[dict[str, Any]]:
    """Instances of one host that together ask for more of a GPU than there is."""
    found = []
    shares: dict[int, list[tuple[Asked, float]]] = {}
    for item in asked:
        share = item.flags.get("gpu_memory_utilization")
        if isinstance(share, (int, float)):
            for device in item.instance.get("devices") or []:
                shares.setdefault(device, []).append((item, float(share)))
    for device, parts in shares.items():
        total = sum(share for _item, share in parts)
        if len(parts) > 1 and total > 1:
            listed = " + ".join(f"{share:g} ({item.instance['name']})" for item, share in parts)
            why = f"GPU {device} is shared, and together they ask for {total:.2f} of it: {listed}"
            fix = "lower gpu_memory_utilization so that all together stay below 1, or leave it out and it is divided"
            last, share = parts[-1]
            found.append(problem(last.host, last.place("gpu_memory_utilization"), share, why, fix))
    return found


def address_problems(host: str, variables: dict[str, Any], gateways: list[str]) -> list[dict[str, Any]]:
    """Where engines listen."""
    bind = str(variables.get("vllm_bind_address") or vllm_backends.BIND_ADDRESS)
    elsewhere = [gateway for gateway in gateways if gateway != host]
    wrong = address_problem(bind)
    if wrong:
        return [problem(host, "vllm_bind_address", bind, *wrong)]
    advertised = str(variables.get("vllm_advertise_address") or "")
    wrong = address_problem(advertised) if advertised else None
    if wrong:
        return [problem(host, "vllm_advertise_address", advertised, *wrong)]
    if elsewhere and vllm_backends.is_loopback(bind):
        why = f"the gateway {elsewhere[0]} is another host and cannot reach a loopback address"
        return [problem(host, "vllm_bind_address", bind, why, "set this host's address on the private network")]
    if vllm_backends.is_loopback(bind):
        return []
    why = "engines answer in plain HTTP: whoever can listen in on the network there reads their keys and all prompts"
    fix = "let hosts talk to engines over a network of their own, such as a VLAN, or through WireGuard"
    if bind in ("0.0.0.0", "::"):
        why = f"engines listen on every network of this host; {why}"
        fix = "set this host's address on the private network, or keep 127.0.0.1 if the gateway is on this host"
    return [problem(host, "vllm_bind_address", bind, why, fix, "warning")]


def network_problems(host: str, variable: str, networks: Any) -> list[dict[str, Any]]:
    """A list of addresses and networks."""
    found = []
    for at, item in enumerate(networks if isinstance(networks, list) else []):
        try:
            # A number would be taken for an address.
            ipaddress.ip_network(item if isinstance(item, str) else "")
        except ValueError:
            fix = "write an address such as 10.0.0.5, or a network such as 10.0.9.0/24 whose last bits are 0"
            found.append(problem(host, f"{variable}[{at}]", item, "this is no address and no network", fix))
    return found


def address_problem(address: str) -> tuple[str, str] | None:
    """Why a service cannot be told to listen here, and what to write."""
    try:
        if ipaddress.ip_address(address).version == 6 and address != "::":
            return "addresses of IPv6 are not supported here yet", "set an IPv4 address, or :: for all addresses"
    except ValueError:
        if not HOST_NAME.fullmatch(address) or re.fullmatch(r"[\d.]+", address):
            return "this is no address", "set an IPv4 address of this host, such as 10.0.0.11"
    return None


def replica_problems(asked: list[Asked]) -> list[dict[str, Any]]:
    """One name on several hosts is one service."""
    found = []
    firsts: dict[str, Asked] = {}
    for item in asked:
        name = item.instance["name"]
        first = firsts.setdefault(name, item)
        served = item.instance.get("served_model_name")
        deliberate = served and served == first.instance.get("served_model_name")
        if item.host != first.host and item.entry["id"] != first.entry["id"] and not deliberate:
            why = (
                f"{name} on {first.host} is {first.entry['id']}: one name on several hosts makes replicas, and "
                "requests would be answered by one model or the other"
            )
            fix = "give one of them another name; if that is meant, give both the same served_model_name"
            found.append(problem(item.host, f"{item.where}.model", item.entry["id"], why, fix))
    return found


def problems(hostvars: Any, groups: dict[str, list[str]], versions: dict[str, str]) -> list[dict[str, Any]]:
    """Everything about engines, over all hosts. `versions` maps the variant to vLLM's version."""
    found: list[dict[str, Any]] = []
    asked: list[Asked] = []
    for host in groups.get("engines", []):
        if hostvars[host].get("vllm_state") != "absent":
            items, own = host_problems(host, hostvars[host], groups, versions)
            found += items
            asked += own
    return found + replica_problems(asked)


def host_problems(
    host: str, variables: dict[str, Any], groups: dict[str, list[str]], versions: dict[str, str]
) -> tuple[list[dict[str, Any]], list[Asked]]:
    """Everything about the engines of one host, and those that are sound by themselves."""
    variant = str(variables.get("vllm_variant") or "auto")
    version = versions["cuda" if variant == "cuda" else "cpu"]
    entries, found = own_entries(host, variables.get("vllm_models"), version)
    common = variables.get("vllm_flags")
    wrong_flags = flag_problems(host, "vllm_flags", {} if common is None else common, version)
    found += wrong_flags
    for variable in ("vllm_environment", "vllm_accelerator_environment"):
        own = variables.get(variable)
        found += environment_problems(host, variable, {} if own is None else own, OWNED_ENVIRONMENT)
    found += address_problems(host, variables, groups.get("gateways", []))
    found += network_problems(host, "vllm_metrics_clients", variables.get("vllm_metrics_clients"))
    instances = variables.get("vllm_instances")
    if instances in (None, []):
        why = "this host is in the group `engines` but runs nothing"
        fix = "set vllm_instances, for example `[{name: coder, model: loopback}]`, or take it out"
        return [*found, problem(host, "vllm_instances", None, why, fix)], []
    if not isinstance(instances, list):
        fix = "write `vllm_instances: [{name: coder, model: …}]`"
        return [*found, problem(host, "vllm_instances", instances, "this is not a list", fix)], []
    site = Site(variant, version, entries, claude_code=bool(groups.get("gateways") or groups.get("clients")))
    asked = []
    for index, instance in enumerate(instances):
        where = f"vllm_instances[{index}]"
        if not isinstance(instance, dict):
            fix = "write `- {name: coder, model: …}`"
            found.append(problem(host, where, instance, "this is not a mapping", fix))
            continue
        wrong = form_problems(host, where, instance, entries, version)
        if variant == "cpu" and instance.get("devices"):
            wrong.append(
                problem(
                    host,
                    f"{where}.devices",
                    instance["devices"],
                    "these are GPUs, and vllm_variant is cpu",
                    "remove it",
                )
            )
        found += wrong
        item = judged(host, where, instance, entries, common, [*wrong, *wrong_flags])
        if item:
            found += model_problems(item, site)
            asked.append(item)
    return [*found, *pair_problems(host, instances), *share_problems(asked)], asked


def own_entries(host: str, own: Any, version: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The catalogue with a host's own entries, and what is wrong with those."""
    found: list[dict[str, Any]] = []
    sound: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for at, entry in enumerate(own if isinstance(own, list) else []):
        wrong = entry_problems(host, f"vllm_models[{at}]", entry, version)
        found += wrong
        if wrong:
            continue
        for flat in catalog.expand(entry):
            first = seen.setdefault(flat["id"], at)
            if first != at:
                why, fix = f"vllm_models[{first}] has the same id", "give each model an id of its own"
                found.append(problem(host, f"vllm_models[{at}].id", flat["id"], why, fix))
        sound.append(entry)
    return catalog.entries(sound), found
