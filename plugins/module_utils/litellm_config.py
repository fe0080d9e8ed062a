# MIT licence (see LICENSE)
"""LiteLLM's configuration from the inventory's engines. Pure; runs on the controller.

A backend is what `vllm_backends` yields: host, instance, model, served_model_name, url,
max_model_len, key_file.
"""

from __future__ import annotations

import hashlib
import re
from datetime import date, datetime
from typing import Any

#: Public id of an instance. Names that begin with `claude-` would make Claude Code assume the
#: window of the real model of that name.
PREFIX = "local-claude-"
WILDCARD = "claude-*"
FAMILY = ("default", "opus", "sonnet", "haiku", "fable")

NATIVE_ENDPOINTS = ("/v1/chat/completions", "/v1/messages")

#: What the role itself writes, with the variable to use instead.
OWNED = {
    "model_list": {},
    "environment_variables": {},
    "general_settings": {
        "master_key": "nothing: no master key is usable; users' keys come from litellm_users",
        "custom_auth": "litellm_users",
        "custom_auth_run_common_checks": "nothing: without it users' models would not be enforced",
        "database_url": "nothing: this release runs without a database",
    },
    "litellm_settings": {
        "drop_params": "litellm_drop_params",
        "telemetry": "nothing: telemetry stays off",
        "enable_post_custom_auth_checks": "nothing: without it users' models would not be enforced",
        "request_timeout": "litellm_request_timeout",
        "num_retries": "litellm_retries",
    },
    "router_settings": {
        "model_group_alias": "litellm_aliases",
        "num_retries": "litellm_retries",
        "timeout": "litellm_request_timeout",
        "stream_timeout": "litellm_stream_timeout",
        "allowed_fails": "litellm_cooldown",
        "allowed_fails_policy": "litellm_cooldown",
        "cooldown_time": "litellm_cooldown",
        "disable_cooldowns": "litellm_cooldown",
    },
}
#: Limits of a user, as they are called in `litellm_users`, behind `litellm_default_`, and in the file of key hashes.
LIMITS = ("requests_per_minute", "tokens_per_minute", "max_parallel_requests")
#: The checks' own user. Only root reads its key, and a check that is refused would say nothing about the engine.
CHECKS_USER = "verify"
SECTIONS = ("general_settings", "litellm_settings", "router_settings")


def instance_names(backends: list[dict[str, Any]]) -> list[str]:
    """Names of instances, each once, in the inventory's order."""
    return list(dict.fromkeys(str(item["instance"]) for item in backends))


def default_instance(backends: list[dict[str, Any]], wanted: str) -> str:
    """The instance that answers to names of other vendors' models."""
    names = instance_names(backends)
    return wanted or (names[0] if len(names) == 1 else "")


def public_names(
    backends: list[dict[str, Any]],
    wanted_default: str,
    aliases: dict[str, str] | None = None,
    dated: list[str] | None = None,
) -> dict[str, str]:
    """Every public model name -> the instance that answers to it."""
    default = default_instance(backends, wanted_default)
    names = {PREFIX + name: name for name in instance_names(backends)}
    # The catalogue's id; with several instances of one model, the default one or the first.
    for item in sorted(backends, key=lambda item: item["instance"] != default):
        names.setdefault(str(item["model"]), str(item["instance"]))
    if default:
        for name in (*FAMILY, *(dated or []), WILDCARD):
            names.setdefault(name, default)
    names.update(aliases or {})
    return names


def environment_name(backend: dict[str, Any]) -> str:
    """Variable that carries a backend's key. The hash tells `gpu-1` from `gpu_1`."""
    plain = f"{backend['host']}/{backend['instance']}"
    readable = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_").upper()
    return f"BACKEND_KEY_{readable}_{hashlib.sha256(plain.encode()).hexdigest()[:6].upper()}"


def deployment(name: str, backend: dict[str, Any], settings: dict[str, Any], cooldown: int) -> dict[str, Any]:
    """One item of model_list."""
    info: dict[str, Any] = {
        # Stable, so that what is counted for a deployment survives a restart.
        "id": f"{backend['host']}/{backend['instance']}/{name}",
        "mode": "chat",
        "supports_function_calling": True,
    }
    if settings["messages_route"] == "native":
        info["supported_endpoints"] = list(NATIVE_ENDPOINTS)
    if cooldown:
        info["modelhost_cooldown"] = cooldown
    if backend.get("max_model_len"):
        info["max_input_tokens"] = int(backend["max_model_len"])
        info["max_tokens"] = int(backend["max_model_len"])
    return {
        "model_name": name,
        "litellm_params": {
            "model": "hosted_vllm/" + str(backend["served_model_name"]),
            "api_base": str(backend["url"]).rstrip("/") + "/v1",
            "api_key": "os.environ/" + environment_name(backend),
            "timeout": settings["request_timeout"],
            "stream_timeout": settings["stream_timeout"],
        },
        "model_info": info,
    }


def config(backends: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The whole of config.yaml."""
    names = public_names(
        backends, settings.get("default_instance", ""), settings.get("aliases"), settings.get("dated_names")
    )
    replicas = len(backends) > len(instance_names(backends))
    retries = settings.get("retries", -1)
    if retries < 0:
        # Another try makes sense where another engine can answer it.
        retries = 2 if replicas else 0
    cooldown = settings.get("cooldown", -1)
    if cooldown < 0:
        cooldown = 5 if replicas else 0
    router: dict[str, Any] = {
        "num_retries": retries,
        # modelhost_gateway.replicas decides which engine is passed over, by what stands in model_info.
        "disable_cooldowns": True,
        # A slow engine is not made faster by asking twice.
        "retry_policy": {"TimeoutErrorRetries": 0, "BadRequestErrorRetries": 0},
    }
    result: dict[str, Any] = {
        "model_list": [
            deployment(name, backend, settings, cooldown)
            for name, instance in names.items()
            for backend in backends
            if backend["instance"] == instance
        ],
        "litellm_settings": {
            "drop_params": settings["drop_params"],
            "telemetry": False,
            # Without these two the models of a user are not enforced by LiteLLM.
            "enable_post_custom_auth_checks": True,
            "request_timeout": settings["request_timeout"],
        },
        "general_settings": {
            "custom_auth": "modelhost_gateway.user_api_key_auth",
            "custom_auth_run_common_checks": True,
        },
        "router_settings": router,
    }
    for section, values in (settings.get("extra") or {}).items():
        result[section] = {**result.get(section, {}), **values}
    return result


def access(
    users: list[dict[str, Any]],
    backends: list[dict[str, Any]],
    wanted_default: str,
    aliases: dict[str, str] | None = None,
    dated: list[str] | None = None,
    default_limits: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All public names, and for each user the own ones, limits and the last day. Keys are not in it.

    A user without `models` may use every instance; one without a limit has the default; 0 is no limit.
    """
    names = public_names(backends, wanted_default, aliases, dated)
    return {
        "models": list(names),
        "users": [
            {
                "name": user["name"],
                "models": [
                    name for name, instance in names.items() if not user.get("models") or instance in user["models"]
                ],
                "limits": {} if user["name"] == CHECKS_USER else limits(user, default_limits or {}),
                "expires": last_day(user.get("expires")),
            }
            for user in users
        ],
    }


def default_limits(variables: dict[str, Any]) -> dict[str, Any]:
    """The limits of users who have none of their own, from a gateway's variables."""
    return {name: variables["litellm_default_" + name] for name in LIMITS}


def limits(user: dict[str, Any], defaults: dict[str, Any]) -> dict[str, int]:
    """The limits that hold for a user."""
    found = {}
    for name in LIMITS:
        value = user.get(name)
        found[name] = int(defaults.get(name) or 0) if value is None else int(value)
    return {name: value for name, value in found.items() if value}


def last_day(value: Any) -> str | None:
    """A date as YAML reads it, or as text -> `2027-06-30`; ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        return date.fromisoformat(value).isoformat()
    raise ValueError(f"{value!r} is no date")


def environment_value(text: str) -> str:
    """A value as systemd's EnvironmentFile reads it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
