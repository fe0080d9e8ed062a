# MIT licence (see LICENSE)
"""Every variable of every host against the roles' argument_specs. Pure; runs on the controller.

Ansible accepts misspelt variables silently; this does not.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.modelhost.serving.plugins.module_utils import vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml
from ansible_collections.modelhost.serving.plugins.module_utils.problems import hint, is_secret, nearest, problem

ROOT = Path(__file__).resolve().parents[2]

#: Variables of earlier releases, with what took their place.
RENAMED: dict[str, str] = {}
#: Names that other guides and roles use, with what does the same here.
ELSEWHERE = {
    "model_store_hub_endpoint": "set hf_mirror_sources: [{type: hub, url: …}], which takes several places",
    "hf_endpoint": "set hf_mirror_sources: [{type: hub, url: …}]",
    "hf_token": "set the key `token` of an item of hf_mirror_sources",
    "litellm_master_key": "remove it: no master key is usable here; users' keys come from litellm_users",
    "litellm_api_key": "remove it: each user gets a key of their own, see litellm_users",
    "litellm_config": "set litellm_extra_config for what no other variable of litellm covers",
    "litellm_model_list": "remove it: the list is made from vllm_instances and litellm_aliases",
    "litellm_host": "set litellm_bind_address",
    "vllm_model": "set vllm_instances: [{name: coder, model: …}]",
    "vllm_host": "set vllm_bind_address",
    "vllm_port": "set the key `port` of an item of vllm_instances",
    "vllm_api_key": "remove it: each engine's key is generated on its host",
    "vllm_extra_args": "set vllm_flags, a mapping of flags to typed values",
    "claude_code_model": "set the key `instance` of an item of claude_code_users, or litellm_default_instance",
    "claude_code_api_key": "remove it: set the key `litellm_user` of an item of claude_code_users",
}
#: What group_vars/all/wiring.yml works out, with what users set instead.
WIRED = {
    "wiring_backends": "remove it: it follows from vllm_instances of the hosts in the group engines",
    "wiring_gateway": "remove it: it is the first host of the group gateways",
    "litellm_backends": "set vllm_instances of the hosts in the group engines",
    "vllm_models_dir": "set model_store_dir, which both roles use",
    "vllm_facts": "remove it: preflight reads it from the host",
    "litellm_facts": "remove it: preflight reads it from the host",
    "claude_code_facts": "remove it: preflight reads it from the host",
    "docker_engine_facts": "remove it: preflight reads it from the host",
    "docker_engine_wanted": "set vllm_runtime or litellm_runtime; only containers need Docker",
    "docker_engine_proxies": "set host_base_http_proxy, host_base_https_proxy and host_base_no_proxy",
    "docker_engine_nvidia": "remove it: it follows from the host's GPUs and vllm_runtime",
    "accelerator_engine_build": "set vllm_variant",
    "accelerator_facts": "remove it: preflight reads it from the host",
    "accelerator_container_toolkit": "remove it: it follows from the host's GPUs and vllm_runtime",
    "vllm_accelerator_environment": "set accelerator_cpu_preload, or vllm_environment for variables of your own",
    "vllm_reserved_cores": "set accelerator_cpu_reserved_cores",
    "accelerator_cpu_containers": "remove it: it follows from vllm_runtime",
    "wiring_containers": "set vllm_runtime or litellm_runtime",
    "model_store_entries": "set vllm_instances, and vllm_models for models of your own",
    "model_store_keep": "remove it: it follows from vllm_instances of the hosts in the group engines",
    "hf_mirror_peers": "put the host that shall serve weights to others into the group mirrors",
    "hf_mirror_serves": "put the host that shall serve weights to others into the group mirrors",
    "hf_mirror_clients": "set hf_mirror_allowed_addresses",
    "hf_mirror_models_dir": "set model_store_dir, which all roles use",
    "wiring_bundle": "set bundle on the command line: -e bundle=/path",
    "host_base_bundle": "set bundle on the command line: -e bundle=/path",
    "hf_mirror_bundle_sources": "set bundle on the command line: -e bundle=/path",
    "serving_verify_backends": "set vllm_instances of the hosts in the group engines",
    "serving_verify_url": "set litellm_port or litellm_bind_address of the gateway",
    "claude_code_backends": "set vllm_instances of the hosts in the group engines",
    "claude_code_gateway_host": "put the host that clients use first into the group gateways",
    "claude_code_default_instance": "set litellm_default_instance of the gateway",
    "claude_code_base_url": "set litellm_public_url of the gateway",
    "claude_code_public_url": "set litellm_public_url of the gateway",
    "host_preflight_models": "set vllm_instances, and vllm_models for models of your own",
    "host_preflight_models_dir": "set model_store_dir",
}
#: Groups that mean something; hosts in none of them are left alone.
GROUPS = ("engines", "gateways", "monitoring", "clients", "mirrors")

#: Variables whose items other modules judge (vllm_validation, litellm_validation), so that nothing is said twice.
JUDGED = ("vllm_instances", "litellm_users")
#: How close a name without a role's prefix must be to a real one to count as a typing error.
SIMILAR = 0.9

KINDS = {
    "str": "text",
    "path": "a path",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
SWITCHES = ("true", "false", "yes", "no", "on", "off", "1", "0")
#: Ends of names whose values are addresses of the web.
ADDRESSES = ("_url", "_registry", "_endpoint", "_mirror", "_http_proxy", "_https_proxy", "_apt_proxy")
MEMORY = re.compile(r"infinity|\d+(\.\d+)?[KMGT%]?")


@functools.cache
def specs() -> dict[str, dict[str, Any]]:
    """Role → its options, from meta/argument_specs.yml of each role."""
    found = {}
    for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        data = read_yaml(path)
        found[path.parent.parent.name] = data["argument_specs"]["main"].get("options", {})
    return found


@functools.cache
def options() -> dict[str, dict[str, Any]]:
    """Every public variable with its specification."""
    return {name: option for role in specs().values() for name, option in role.items()}


def validator_spec(known: dict[str, Any]) -> dict[str, Any]:
    """Options in the form that Ansible's own validator takes (no defaults, nothing required at the top)."""
    spec = {}
    for name, option in known.items():
        spec[name] = {key: option[key] for key in ("type", "elements", "choices", "no_log") if key in option}
        if "options" in option:
            below = validator_spec(option["options"])
            for key, item in option["options"].items():
                below[key]["required"] = item.get("required", False)
            spec[name]["options"] = below
    return spec


# --- names -------------------------------------------------------------------------------------------------------


def name_problems(host: str, names: Any) -> list[dict[str, Any]]:
    """Names that no role has but that look as if one should."""
    found = []
    for name in names:
        if name in options():
            continue
        fix = advice(str(name))
        if fix:
            why = (
                f"this variable is now called {RENAMED[name]}"
                if name in RENAMED
                else "no role has a variable of this name"
            )
            found.append(problem(host, str(name), None, why, fix))
    return found


def advice(name: str) -> str:
    """What somebody who wrote this name should do, or nothing where it can only be a name of their own."""
    if name in RENAMED:
        return f"rename it to {RENAMED[name]}"
    # HF_TOKEN is how the programs of others spell it.
    if name.lower() in ELSEWHERE:
        return ELSEWHERE[name.lower()]
    if name.startswith("vllm_"):
        # Flags with the role's prefix are what other roles take.
        flag = name.removeprefix("vllm_")
        if flag in vllm_flags.OWNED_FLAGS:
            return f"set {vllm_flags.OWNED_FLAGS[flag]}"
        if flag in flag_names():
            return f"set vllm_flags: {{{flag}: …}}"
    for role, known in specs().items():
        if name.startswith(f"{role}_"):
            # The prefix is alike in all of them and must not count.
            short = nearest(name.removeprefix(f"{role}_"), [item.removeprefix(f"{role}_") for item in known])
            near = f"{role}_{short}" if short else nearest(name, options(), 0.8)
            return f"did you mean {near}?" if near else f"remove it; roles/{role}/README.md lists what there is"
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
    if plain in options():
        return f"did you mean {plain}?"
    near = nearest(plain, options(), SIMILAR)
    # Somebody's own name that is built from a real one (my_vllm_flags) is no typing error.
    return f"did you mean {near}?" if near and near not in plain else ""


@functools.cache
def flag_names() -> frozenset[str]:
    """Flags of all versions of vLLM that are described."""
    found: set[str] = set()
    for path in (ROOT / "catalog" / "engines").glob("vllm-*.json"):
        found |= set(vllm_flags.engine_description(path.stem.removeprefix("vllm-"))["flags"])
    return frozenset(found)


def wired_problems(host: str, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Variables that the repository's wiring sets over an inventory's; `own` is what the inventory itself says."""
    return [
        problem(
            host,
            name,
            own[name],
            "this value has no effect: group_vars/all/wiring.yml works it out and wins",
            WIRED[name],
        )
        for name in sorted(WIRED.keys() & own.keys())
    ]


def group_problems(groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """No hosts, a missing group of engines, and groups whose name is nearly one that means something."""
    if not groups.get("all"):
        fix = "name an inventory that has hosts, with -i; inventories/prod is an example to copy"
        return [problem("inventory", "hosts", None, "the inventory has no hosts, so there is nothing to do", fix)]
    found = []
    for name, members in groups.items():
        if name in (*GROUPS, "all", "ungrouped"):
            continue
        near = nearest(str(name).lower(), GROUPS, 0.85)
        left_out = [host for host in members if host not in groups.get(near, [])]
        if near and left_out:
            found.append(
                problem(
                    "inventory",
                    str(name),
                    None,
                    f"no play works on a group of this name ({', '.join(left_out)})",
                    f"did you mean {near}?",
                )
            )
    if not groups.get("engines"):
        gateways = groups.get("gateways") or []
        why = "the group `engines` has no host" + (
            f", so {', '.join(gateways)} would be a gateway to nothing" if gateways else ""
        )
        fix = "put the hosts that run a model into the group `engines`"
        found.append(problem("inventory", "engines", None, why, fix))
    return found


# --- values ------------------------------------------------------------------------------------------------------


def spec_problems(host: str, variables: dict[str, Any]) -> list[dict[str, Any]]:
    """Wrong names, wrong types, values outside the choices."""
    found = name_problems(host, variables)
    for name, value in variables.items():
        option = options().get(name)
        if option is None or (name in JUDGED and value is not None):
            continue
        wrong = value_problems(host, name, option, value)
        if not wrong and value is not None:
            # What a role itself would refuse later must not pass here.
            result = ArgumentSpecValidator(validator_spec({name: option})).validate({name: value})
            wrong = [
                problem(host, name, None, "this is not of the form that the role takes", f"write it as {form(option)}")
                for _message in result.error_messages[:1]
            ]
        found += wrong
    return found


def form(option: dict[str, Any]) -> str:
    """What a variable takes, in words."""
    if "choices" in option:
        return "one of: " + ", ".join(str(choice) for choice in option["choices"])
    kind = KINDS.get(option.get("type", "str"), "any value")
    if option.get("type") == "list" and "elements" in option:
        kind += f" of {plural(option['elements'])}"
    example = option.get("default")
    if isinstance(example, list):
        example = f"[{', '.join(map(str, example)) or '…'}]"
    elif isinstance(example, dict):
        example = "{name: value}"
    known = not isinstance(example, bool) and example not in (None, "") and "{{" not in str(example)
    return f"{kind}, such as {example}" if known else kind


def plural(kind: str) -> str:
    """`dict` → `mappings`"""
    return {"str": "texts", "path": "paths", "int": "whole numbers", "dict": "mappings"}.get(kind, "values")


def fits(kind: str, value: Any) -> bool:
    """Whether a value is of a type. Numbers and switches may come as text: `-e` gives nothing else."""
    if kind == "str":
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if kind == "path":
        return isinstance(value, str)
    if kind == "int":
        if isinstance(value, str):
            return bool(re.fullmatch(r"-?[0-9]{1,18}", value))
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        if isinstance(value, str):
            return bool(re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]+)?", value))
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind == "bool":
        return isinstance(value, bool) or (isinstance(value, str) and value.lower() in SWITCHES)
    if kind == "list":
        return isinstance(value, (list, tuple))
    if kind == "dict":
        return isinstance(value, dict)
    return True


def quiet(name: str, option: dict[str, Any]) -> bool:
    """Whether a value may hold a secret, so that messages do not show it."""
    below = option.get("options") or {}
    return bool(
        option.get("no_log")
        or is_secret(name)
        or name.endswith("_environment")
        or any(quiet(key, item) for key, item in below.items())
    )


def value_problems(host: str, place: str, option: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """One value against its specification, with what lies below it."""
    kind, name = option.get("type", "str"), place.split("[")[0].rsplit(".")[-1]
    seen = None if quiet(name, option) else value
    if value is None:
        # Below the top Ansible takes nothing for left out, but not where there are choices.
        if ("." in place or "[" in place) and "choices" not in option:
            return []
        why = "it is set to nothing, and that is not the same as leaving it out"
        return [problem(host, place, None, why, f"remove the line, or set it to {form(option)}")]
    if not fits(kind, value):
        return [problem(host, place, seen, f"this is not {KINDS.get(kind, kind)}", f"set it to {form(option)}")]
    if "choices" in option and value not in option["choices"]:
        near = hint(value, [str(choice) for choice in option["choices"]])
        return [problem(host, place, seen, "this is none of the values it can have", f"set {form(option)}{near}")]
    if kind in ("str", "path"):
        return text_problems(host, place, str(value), seen)
    if kind in ("int", "float"):
        lowest = option.get("default")
        if isinstance(lowest, (int, float)) and float(value) < min(0, lowest):
            return [problem(host, place, seen, "this number is too small", f"set it to {min(0, lowest)} or more")]
    found: list[dict[str, Any]] = []
    if kind == "list":
        for at, item in enumerate(value):
            found += element_problems(host, f"{place}[{at}]", option, item)
    elif kind == "dict" and "options" in option:
        found += mapping_problems(host, place, option["options"], value)
    return found


def element_problems(host: str, place: str, option: dict[str, Any], item: Any) -> list[dict[str, Any]]:
    """One item of a list."""
    kind = option.get("elements", "raw")
    if kind == "dict" and "options" in option:
        if not isinstance(item, dict):
            name = place.split("[")[0]
            seen = None if quiet(name, option) else item
            keys = ", ".join(f"{key}: …" for key, below in option["options"].items() if below.get("required"))
            return [problem(host, place, seen, "this is not a mapping", f"write `- {{{keys}}}`")]
        return mapping_problems(host, place, option["options"], item)
    if item is None:
        return [problem(host, place, None, "this item is empty", f"remove it, or set {KINDS.get(kind, 'a value')}")]
    return value_problems(host, place, {"type": kind}, item)


def mapping_problems(host: str, place: str, known: dict[str, Any], value: dict[str, Any]) -> list[dict[str, Any]]:
    """The keys of a mapping that has a specification of its own."""
    found = []
    for key, item in value.items():
        if key in known:
            found += value_problems(host, f"{place}.{key}", known[key], item)
        else:
            # The value could be a secret under a misspelt name, so it is not shown.
            fix = f"remove it{hint(key, known)}; known here: {', '.join(known)}"
            found.append(problem(host, f"{place}.{key}", None, "there is no such key here", fix))
    for key, option in known.items():
        if option.get("required") and value.get(key) is None:
            found.append(problem(host, f"{place}.{key}", None, "this is missing", f"set it to {form(option)}"))
    return found


def text_problems(host: str, place: str, text: str, seen: Any) -> list[dict[str, Any]]:
    """Text that no file, unit or command line could carry, and addresses that are none."""
    if unprintable(text):
        why = "the text holds a line break or another control character"
        return [problem(host, place, seen, why, "write it on one line, without such characters")]
    if place.endswith(ADDRESSES) and text and not re.fullmatch(r"(https?|file|socks5h?)://[^\s/]*\S*", text):
        return [problem(host, place, seen, "this is no URL", "write it as http://… or https://…")]
    if place.endswith("_memory_max") and not MEMORY.fullmatch(text):
        fix = "write a number of bytes with K, M, G or T, a percentage, or infinity"
        return [problem(host, place, seen, "systemd would ignore this limit", fix)]
    return []


def unprintable(text: str) -> bool:
    """Whether text holds what a line of a file cannot hold: control characters, or halves of characters."""
    return bool(re.search(r"[\x00-\x1f\x7f\u0085\u2028\u2029\ud800-\udfff]", text))
