# MIT licence (see LICENSE)
"""Everything that can be wrong with an inventory, in one list. Pure; runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import (
    bundle_use,
    containers_validation,
    docker_engine_validation,
    hf_mirror_validation,
    host_base_validation,
    inventory_validation,
    known_bad,
    litellm_validation,
    vllm_validation,
)
from ansible_collections.modelhost.serving.plugins.module_utils.problems import hint, problem
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_flag_validation import environment_problems


def check(
    values: dict[str, dict[str, Any]],
    own: dict[str, dict[str, Any]],
    groups: dict[str, list[str]],
    versions: dict[str, str],
) -> list[dict[str, Any]]:
    """All problems of all hosts.

    values: each host's variables; own: what its inventory says of the variables that the wiring sets; versions: those
    of the engine by variant, of `claude_code`, and the pinned images (`image_cpu`, `image_cuda`, `image_litellm`).
    """
    found = [*inventory_validation.group_problems(groups), *known_bad.shipped_problems()]
    sound: dict[str, dict[str, Any]] = {}
    for host, variables in values.items():
        wrong = inventory_validation.spec_problems(host, variables)
        found += wrong + inventory_validation.wired_problems(host, own.get(host, {}))
        # Values of a wrong type have been reported; judging them further would only confuse.
        bad = {item["variable"].split("[")[0] for item in wrong if "." not in item["variable"]}
        sound[host] = {name: value for name, value in variables.items() if name not in bad}
    found += vllm_validation.problems(sound, groups, versions)
    found += litellm_validation.problems(sound, groups)
    for host, variables in sound.items():
        found += bundle_use.problems(host, variables)
        found += host_base_validation.problems(host, variables)
        found += docker_engine_validation.problems(host, variables)
        found += hf_mirror_validation.problems(host, variables, groups)
        found += containers_validation.problems(host, variables, groups, versions)
    found += gateway_problems(sound, groups)
    found += client_problems(sound, groups, versions)
    return [item for at, item in enumerate(found) if item not in found[:at]]


def gateway_problems(values: dict[str, dict[str, Any]], groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Gateways with nothing behind them, or nobody before them."""
    found = []
    engines = groups.get("engines", [])
    going = engines and all(values[host].get("vllm_state") == "absent" for host in engines)
    for host in groups.get("gateways", []):
        if values[host].get("litellm_state") == "absent":
            continue
        if going:
            why = "vllm_state of all engines is absent, so this would be a gateway to nothing"
            found.append(problem(host, "gateways", None, why, "set litellm_state: absent as well"))
        if values[host].get("litellm_users", []) == []:
            why = "nobody has a key but the checks' own user"
            fix = "set litellm_users: [{name: alice}]"
            found.append(problem(host, "litellm_users", None, why, fix, "warning"))
    return found


def client_problems(
    values: dict[str, dict[str, Any]], groups: dict[str, list[str]], versions: dict[str, str]
) -> list[dict[str, Any]]:
    """Hosts that get Claude Code: users, keys and instances that do not exist."""
    found = []
    gateways = groups.get("gateways") or []
    names = litellm_validation.instances_of(values, groups)
    keys: dict[str, Any] = {}
    users = values[gateways[0]].get("litellm_users") if gateways else []
    for user in users if isinstance(users, list) else []:
        if isinstance(user, dict) and isinstance(user.get("name"), str):
            models = user.get("models")
            keys[user["name"]] = [str(model) for model in models] if isinstance(models, list) and models else names
    for host in groups.get("clients", []):
        variables = values[host]
        if variables.get("claude_code_state") == "absent":
            continue
        if not gateways:
            why = "there is no gateway that Claude Code could be pointed at"
            found.append(problem(host, "clients", None, why, "put a host into the group `gateways`"))
            continue
        version = variables.get("claude_code_version", versions["claude_code"])
        if str(version) != versions["claude_code"]:
            why = f"the lock file of this release holds {versions['claude_code']}"
            fix = "remove the line; another version comes with another release of this project"
            found.append(problem(host, "claude_code_version", version, why, fix))
        # A null takes one of ours out.
        environment = {name: value for name, value in (variables.get("claude_code_environment") or {}).items() if value}
        found += environment_problems(host, "claude_code_environment", environment, {})
        seen: dict[str, int] = {}
        for index, user in enumerate(variables.get("claude_code_users") or []):
            where = f"claude_code_users[{index}]"
            name, key = str(user.get("name")), str(user.get("litellm_user"))
            first = seen.setdefault(name, index)
            if first != index:
                why = f"claude_code_users[{first}] is the same account, and an account has one ~/.claude/settings.json"
                found.append(problem(host, f"{where}.name", name, why, "remove one of the two"))
            if key not in keys and user.get("litellm_user"):
                why = f"litellm_users of {gateways[0]} has no user of this name, so there is no key"
                fix = f"choose one of: {', '.join(keys) or 'none yet'}{hint(key, keys)}; or add it to litellm_users"
                found.append(problem(host, f"{where}.litellm_user", key, why, fix))
            instance = user.get("instance")
            if not isinstance(instance, str) or not instance or not names:
                continue
            if instance not in names:
                why = "no engine has an instance of this name"
                fix = f"choose one of: {', '.join(names) or 'none yet'}{hint(instance, names)}"
                found.append(problem(host, f"{where}.instance", instance, why, fix))
            elif key in keys and instance not in keys[key]:
                why = f"the key of {key} is not valid for this instance"
                fix = f"add {instance} to `models` of {key} in litellm_users, or choose one of: {', '.join(keys[key])}"
                found.append(problem(host, f"{where}.instance", instance, why, fix))
    return found
