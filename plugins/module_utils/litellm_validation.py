# MIT licence (see LICENSE)
"""What can be wrong with the gateway's variables. Pure; runs on the controller."""

from __future__ import annotations

import difflib
import re
from datetime import date, datetime, timezone
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.litellm_config import (
    CHECKS_USER,
    FAMILY,
    LIMITS,
    OWNED,
    PREFIX,
    SECTIONS,
    WILDCARD,
    last_day,
)
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_flag_validation import environment_problems
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_validation import (
    address_problem,
    network_problems,
)

USER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
#: What an entry of litellm_users can have.
USER_SETTINGS = ("name", "models", "key", *LIMITS, "expires")
#: The highest value of each limit; above it somebody means "no limit", which is 0.
MOST = {"requests_per_minute": 100_000, "tokens_per_minute": 1_000_000_000, "max_parallel_requests": 10_000}
#: Tokens that the first request of a Claude Code session has at least.
SMALL = 20_000
#: Shortest key that a user may bring along.
KEY_LENGTH = 20
KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
#: Kept equal to the role's defaults by a test.
PORT = 4000
BIND_ADDRESS = "127.0.0.1"
#: Least and most that `litellm_max_request_bytes` may be.
REQUEST_BYTES = (1 << 20, 256 << 20)
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*\*?")
#: Environment variables that the role or LiteLLM's start sets, with what to set instead.
OWNED_ENVIRONMENT = {
    "LITELLM_MASTER_KEY": "remove it: no master key is usable here; users' keys come from litellm_users",
    "LITELLM_SALT_KEY": "remove it: this release runs without a database",
    "DATABASE_URL": "remove it: this release runs without a database",
    "LITELLM_LOG": "set litellm_log_level",
    "LITELLM_WORKER_STARTUP_HOOKS": "remove it: the check of users' keys starts by it",
    "MODELHOST_USAGE": "remove it: it names the file of users' counters",
    "MODELHOST_KEY_HASHES": "remove it: it names the file of users' keys",
    "MODELHOST_MAX_REQUEST_BYTES": "set litellm_max_request_bytes",
    "MODELHOST_BODY_TIMEOUT": "set litellm_body_timeout",
    "GRACEFUL_SHUTDOWN_TIMEOUT": "set litellm_stop_timeout",
    "PYTHONPATH": "remove it: the check of users' keys is found by it",
    "PORT": "set litellm_port",
    "HOST": "set litellm_bind_address",
}


def weakness(key: Any) -> str:
    """What is wrong with a key that a user brings along; empty if nothing."""
    if not isinstance(key, str):
        return "the key is not text"
    if len(key) < KEY_LENGTH:
        return f"the key has {len(key)} characters; at least {KEY_LENGTH} are needed against guessing"
    if not KEY.fullmatch(key):
        return "the key has characters that an HTTP header does not carry safely"
    if len(set(key.removeprefix("sk-"))) < 8:
        return "the key repeats so few characters that it can be guessed"
    if re.search(r"1234|abcd|password|changeme|secret|example", key, re.IGNORECASE):
        return "the key contains a word or sequence that is guessed first"
    return ""


def instances_of(hostvars: Any, groups: dict[str, list[str]]) -> list[str]:
    """Names of the instances of all engine hosts, each once."""
    found: dict[str, None] = {}
    for host in groups.get("engines", []):
        variables = hostvars.get(host, {})
        instances = variables.get("vllm_instances")
        for instance in instances if isinstance(instances, list) else []:
            name = instance.get("name") if isinstance(instance, dict) else None
            if isinstance(name, str) and vllm_flags.NAME.fullmatch(name):
                found[name] = None
    return list(found)


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def user_problems(host: str, users: Any, names: list[str]) -> list[dict[str, Any]]:
    """`litellm_users`."""
    if not isinstance(users, list):
        return [
            problem(host, "litellm_users", None, "this is no list of users", "write `- {name: alice, models: [coder]}`")
        ]
    found = []
    seen: dict[str, int] = {}
    keys: dict[str, int] = {}
    for index, user in enumerate(users):
        where = f"litellm_users[{index}]"
        if not isinstance(user, dict):
            found.append(problem(host, where, None, "a user is a mapping", "write `- {name: alice, models: [coder]}`"))
            continue
        for unknown in user:
            if unknown not in USER_SETTINGS:
                # The value could be a key under a misspelt name, so it is not shown.
                fix = "a user has " + ", ".join(USER_SETTINGS) + _near(str(unknown), list(USER_SETTINGS))
                found.append(problem(host, f"{where}.{unknown}", None, "a user has no such setting", fix))
        name = user.get("name")
        if not isinstance(name, str) or not USER_NAME.fullmatch(name):
            found.append(
                problem(
                    host,
                    f"{where}.name",
                    name,
                    "the name becomes a file's name and stands in logs",
                    "use 1 to 63 lower-case letters, digits, dots, dashes and underscores",
                )
            )
        elif name == CHECKS_USER:
            found.append(
                problem(host, f"{where}.name", name, "this name is the checks' own user", "choose another name")
            )
        elif name in seen:
            found.append(
                problem(
                    host,
                    f"{where}.name",
                    name,
                    f"litellm_users[{seen[name]}] has the same name",
                    "remove one of the two",
                )
            )
        else:
            seen[name] = index
        models = user.get("models")
        if models is not None and not isinstance(models, list):
            found.append(
                problem(
                    host,
                    f"{where}.models",
                    models,
                    "this is no list of instances",
                    f"write [{models}]" if models in names else f"choose from: {', '.join(names)}",
                )
            )
        if models == []:
            # A list without anything would stand for everything.
            why, fix = "this user may use nothing", "leave `models` out for all instances, or take the user out"
            found.append(problem(host, f"{where}.models", models, why, fix))
        for model in models if isinstance(models, list) else []:
            # Without any instance that is what is wrong, and said where they belong.
            if names and model not in names:
                found.append(
                    problem(
                        host,
                        f"{where}.models",
                        model,
                        "no engine has an instance of this name",
                        f"choose from: {', '.join(names) or 'none yet'}{_near(str(model), names)}",
                    )
                )
        found += limit_problems(host, f"{where}.", user) + expiry_problems(host, f"{where}.expires", user)
        if "key" in user:
            why = weakness(user["key"]) if user["key"] is not None else "the key is empty"
            if why:
                found.append(
                    problem(
                        host,
                        f"{where}.key",
                        None,
                        why,
                        "leave `key` out and a good one is generated, or set one made with `openssl rand -hex 32`",
                    )
                )
            elif user["key"] in keys:
                found.append(
                    problem(
                        host,
                        f"{where}.key",
                        None,
                        f"litellm_users[{keys[user['key']]}] has the same key",
                        "give each user a key of their own",
                    )
                )
            else:
                keys[user["key"]] = index
    return found


def limit_problems(host: str, prefix: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Limits, of one user (`litellm_users[0].`) or of all that have none of their own (`litellm_default_`)."""
    found = []
    at_top = prefix.endswith("_")
    for name in LIMITS:
        place = prefix + name
        value = _number(values.get(place)) if at_top else values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST[name]:
            why = "this is no limit that can hold"
            fix = f"set a whole number from 1 to {MOST[name]}, or 0 for no limit"
            found.append(problem(host, place, value, why, fix))
        elif name == "tokens_per_minute" and 0 < value < SMALL:
            why = "a prompt of Claude Code alone has more tokens, so this is one request a minute"
            found.append(problem(host, place, value, why, f"set {SMALL} or more, or 0 for no limit", level="warning"))
    return found


def expiry_problems(host: str, place: str, user: dict[str, Any]) -> list[dict[str, Any]]:
    """The last day of a user's key."""
    value = user.get("expires")
    if value is None:
        return []
    try:
        day = date.fromisoformat(str(last_day(value)))
    except ValueError:
        shown = value.isoformat() if isinstance(value, datetime) else value
        fix = "write the last day on which the key shall work, such as 2027-06-30"
        return [problem(host, place, shown, "this is no date", fix)]
    if day < datetime.now(timezone.utc).date():
        why = "this day has passed, so the user's key does not work"
        fix = "set a later day, or take the user out of litellm_users"
        return [problem(host, place, day.isoformat(), why, fix, level="warning")]
    return []


def extra_config_problems(host: str, extra: Any) -> list[dict[str, Any]]:
    """`litellm_extra_config`."""
    variable = "litellm_extra_config"
    if not isinstance(extra, dict):
        return [problem(host, variable, extra, "this is no mapping of sections", "write `{litellm_settings: {…}}`")]
    found = []
    for section, values in extra.items():
        place = f"{variable}.{section}"
        if section == "drop_params":
            found.append(
                problem(
                    host,
                    place,
                    values,
                    "LiteLLM reads drop_params only in litellm_settings",
                    "remove it here and set litellm_drop_params (default: true)",
                )
            )
            continue
        if section in ("model_list", "environment_variables"):
            instead = "vllm_instances and litellm_aliases" if section == "model_list" else "litellm_environment"
            found.append(problem(host, place, None, "the role writes this section itself", f"set {instead}"))
            continue
        if section not in SECTIONS:
            found.append(
                problem(
                    host,
                    place,
                    None,
                    "LiteLLM's configuration has no such section here",
                    f"use one of: {', '.join(SECTIONS)}{_near(str(section), list(SECTIONS))}",
                )
            )
            continue
        if not isinstance(values, dict):
            found.append(problem(host, place, None, "a section is a mapping", "write `{name: value}`"))
            continue
        for name in values:
            if name == "drop_params" and section != "litellm_settings":
                found.append(
                    problem(
                        host,
                        f"{place}.{name}",
                        values[name],
                        f"LiteLLM does not read drop_params under {section}, so it would have no effect",
                        "remove it here and set litellm_drop_params (default: true)",
                    )
                )
            elif name in OWNED[section]:
                instead = OWNED[section][name]
                found.append(
                    problem(
                        host,
                        f"{place}.{name}",
                        None,
                        "the role writes this setting itself",
                        f"set {instead}"
                        if instead.startswith("litellm_")
                        else "remove it: " + instead.removeprefix("nothing: "),
                    )
                )
    return found


def _number(value: Any) -> Any:
    """A number also where it came as text (`-e litellm_port=8080`); anything else stays."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def number_problems(host: str, variables: Any) -> list[dict[str, Any]]:
    """Port and times."""
    found = []
    port = _number(variables.get("litellm_port", PORT))
    if not isinstance(port, int) or isinstance(port, bool) or not 1024 <= port <= 65535:
        found.append(
            problem(
                host,
                "litellm_port",
                port,
                "the gateway runs without privileges and needs a port above 1023",
                "set a number from 1024 to 65535; usual are 4000 and 8080",
            )
        )
    for name in (
        "litellm_request_timeout",
        "litellm_stream_timeout",
        "litellm_start_timeout",
        "litellm_body_timeout",
    ):
        value = _number(variables.get(name))
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            found.append(problem(host, name, value, "this is no number of seconds", "set a whole number above 0"))
    size = _number(variables.get("litellm_max_request_bytes"))
    low, high = REQUEST_BYTES
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not low <= size <= high):
        found.append(
            problem(
                host,
                "litellm_max_request_bytes",
                size,
                "Claude Code's first request alone has about 100 KB, and the gateway holds several bodies in memory",
                f"set a number of bytes from {low} to {high}",
            )
        )
    return found


def instance_problems(host: str, variables: Any, names: list[str]) -> list[dict[str, Any]]:
    """The default instance and aliases."""
    found = []
    default = variables.get("litellm_default_instance") or ""
    if not names:
        return []
    if default and default not in names:
        found.append(
            problem(
                host,
                "litellm_default_instance",
                default,
                "no engine has an instance of this name",
                f"choose one of: {', '.join(names) or 'none yet'}{_near(str(default), names)}",
            )
        )
    elif not default and len(names) > 1:
        found.append(
            problem(
                host,
                "litellm_default_instance",
                None,
                f"there are {len(names)} instances, and one has to answer to {WILDCARD}, {', '.join(FAMILY)}",
                f"set it to one of: {', '.join(names)}",
            )
        )
    aliases = variables.get("litellm_aliases") or {}
    for alias, name in aliases.items() if isinstance(aliases, dict) else []:
        if not isinstance(alias, str) or not ALIAS.fullmatch(alias) or alias.startswith(PREFIX):
            found.append(
                problem(
                    host,
                    f"litellm_aliases.{alias}",
                    name,
                    "this cannot be a model's public name",
                    f"use letters, digits, dots and dashes, not {PREFIX}…; a `*` only at the end",
                )
            )
        if name not in names:
            found.append(
                problem(
                    host,
                    f"litellm_aliases.{alias}",
                    name,
                    "no engine has an instance of this name",
                    f"choose one of: {', '.join(names) or 'none yet'}{_near(str(name), names)}",
                )
            )
    return found


def address_problems(host: str, variables: Any, groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Clash of ports with an engine, and who can reach the gateway."""
    found = []
    port = _number(variables.get("litellm_port", PORT))
    instances = variables.get("vllm_instances") if host in groups.get("engines", []) else []
    for index, instance in enumerate(instances if isinstance(instances, list) else []):
        if isinstance(instance, dict) and instance.get("port", 8000) == port:
            found.append(
                problem(
                    host,
                    "litellm_port",
                    port,
                    f"vllm_instances[{index}] ({instance.get('name')}) has the same port on this host",
                    f"set another one, such as {PORT if port != PORT else 8080}",
                )
            )
    found += network_problems(host, "litellm_client_networks", variables.get("litellm_client_networks"))
    address = str(variables.get("litellm_bind_address", BIND_ADDRESS))
    wrong = address_problem(address)
    if wrong:
        found.append(problem(host, "litellm_bind_address", address, *wrong))
    elif not (address.startswith("127.") or address in ("::1", "localhost")):
        found.append(
            problem(
                host,
                "litellm_bind_address",
                address,
                "the gateway is reachable from other machines, and keys travel without TLS",
                "keep 127.0.0.1 behind a TLS proxy, or make sure that the network is trusted",
                level="warning",
            )
        )
    return found


def problems(hostvars: Any, groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Everything that is wrong with the gateways of an inventory."""
    names = instances_of(hostvars, groups)
    found = []
    for host in groups.get("gateways", []):
        variables = hostvars.get(host, {})
        if variables.get("litellm_state") == "absent":
            continue
        users = variables.get("litellm_users")
        found += user_problems(host, [] if users is None else users, names)
        found += extra_config_problems(host, variables.get("litellm_extra_config") or {})
        found += number_problems(host, variables) + limit_problems(host, "litellm_default_", variables)
        found += instance_problems(host, variables, names)
        found += address_problems(host, variables, groups)
        environment = variables.get("litellm_environment") or {}
        found += environment_problems(host, "litellm_environment", environment, OWNED_ENVIRONMENT)
    return found
