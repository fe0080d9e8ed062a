# MIT licence (see LICENSE)
"""daemon.json: whose keys are whose, and what a running Docker daemon has of it. Runs on hosts, under Python 3.8.

A key is a path into the file, so that `log-opts.max-size` can be ours and `log-opts.tag` the host owner's.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import time
from typing import Any

SERVICE = "docker.service"
#: What the daemon started with when we last looked. Root's alone: an owner's keys may hold passwords.
APPLIED = "/etc/modelhost/docker_engine/applied.json"
DATA_ROOT = "/var/lib/docker"

#: What SIGHUP changes, by Docker's reference of dockerd, "Configuration reload behavior"
#: (https://docs.docker.com/reference/cli/dockerd/). `features` stands there as well, but those that matter here (cdi,
#: containerd-snapshotter) are read at the start alone (moby, daemon/reload.go and cmd/dockerd/daemon.go).
RELOADABLE = {
    "debug",
    "labels",
    "live-restore",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "default-runtime",
    "runtimes",
    "authorization-plugins",
    "allow-nondistributable-artifacts",
    "insecure-registries",
    "registry-mirrors",
    "shutdown-timeout",
}
#: Of these, what SIGHUP also takes back when the key is gone from the file (moby, daemon/reload.go).
RESETTABLE = {"max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts"}


class ConfigError(Exception):
    """What is wrong with daemon.json, as a sentence."""


# --- files -------------------------------------------------------------------------------------------------------


def read(path: str) -> str | None:
    """A file's text, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse(text: str | None, path: str) -> dict:
    """daemon.json's content; ConfigError for what is no JSON object."""
    if text is None or not text.strip():
        return {}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            "%s is no valid JSON: %s. Mend it, or move it away; nothing was changed" % (path, error)
        ) from error
    if not isinstance(data, dict):
        raise ConfigError("%s holds no JSON object. Mend it, or move it away; nothing was changed" % path)
    return data


def load(path: str) -> dict:
    """A record of ours; nothing where it is missing or was cut off."""
    try:
        data = json.loads(read(path) or "{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def save(path: str, data: Any, mode: int = 0o600) -> None:
    """Write a record, all of it or nothing; its folder is root's."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    part = path + ".part"
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as handle:
        json.dump(data, handle, indent=2, sort_keys=True)
        handle.write("\n")
    os.replace(part, path)


def digest(path: str) -> str:
    """A file's SHA-256; nothing where it is missing."""
    try:
        with open(path, "rb") as handle:
            return hashlib.sha256(handle.read()).hexdigest()
    except OSError:
        return ""


def modified(path: str) -> float:
    """When a file was written; 0 where it is missing."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


# --- keys --------------------------------------------------------------------------------------------------------


def leaves(data: dict, prefix: tuple = ()) -> dict:
    """Paths to everything that is no (filled) object: {("log-opts", "tag"): "x"}."""
    found = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            found.update(leaves(value, prefix + (key,)))
        else:
            found[prefix + (key,)] = value
    return found


def get(data: Any, path: tuple) -> Any:
    """The value at a path; KeyError where there is none."""
    for key in path:
        if not isinstance(data, dict):
            raise KeyError(key)
        data = data[key]
    return data


def put(data: dict, path: tuple, value: Any) -> None:
    """Set the value at a path."""
    for index, key in enumerate(path[:-1]):
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ConfigError(
                "%s is no object in daemon.json, and this wants to set %s in it"
                % (".".join(path[: index + 1]), ".".join(path))
            )
    data[path[-1]] = value


def drop(data: dict, path: tuple) -> None:
    """Remove a path, and objects that are empty without it."""
    if len(path) > 1:
        drop(data[path[0]], path[1:])
        if data[path[0]]:
            return
    del data[path[0]]


def foreign(present: dict, record: dict) -> dict:
    """The file as its owner would have it: without what we wrote, with what we wrote over.

    A key of ours that somebody changed since is that somebody's.
    """
    data = copy.deepcopy(present)
    for item in record.get("keys", []):
        path = tuple(item["path"])
        try:
            ours = get(data, path) == item["value"]
        except KeyError:
            continue
        if not ours:
            continue
        if "before" in item:
            put(data, path, item["before"])
        else:
            drop(data, path)
    return data


def merged(present: dict, record: dict, options: dict, defaults: list) -> tuple:
    """(new content of the file, new record). Defaults that contradict the owner or the options are left out."""
    owner = foreign(present, record)
    chosen = {**leaves(owner), **leaves(options)}
    wanted = {}
    for group in map(leaves, defaults):
        if all(chosen.get(path, value) == value for path, value in group.items()):
            wanted.update(group)
    wanted.update(leaves(options))
    data, keys = copy.deepcopy(owner), []
    for path, value in sorted(wanted.items()):
        item = {"path": list(path), "value": value}
        with contextlib.suppress(KeyError):
            item["before"] = get(data, path)
        put(data, path, value)
        keys.append(item)
    return data, {"keys": keys}


# --- the daemon --------------------------------------------------------------------------------------------------


def actions(before: dict, after: dict) -> dict:
    """What a running daemon needs to go from one content to another: {key: `reload` or `restart`}."""
    found = {}
    for key in sorted(set(before) | set(after)):
        if before.get(key) == after.get(key) and (key in before) == (key in after):
            continue
        by_signal = RELOADABLE if key in after else RESETTABLE
        found[key] = "reload" if key in by_signal else "restart"
    return found


def show(module: Any, *properties: str) -> dict:
    """Properties of the daemon's unit."""
    command = ["systemctl", "show", "-p", ",".join(properties), SERVICE]
    _code, out, _err = module.run_command(command, check_rc=True)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def started(state: dict) -> float:
    """When the daemon's unit last left the state inactive, in seconds since the epoch."""
    passed = time.clock_gettime(time.CLOCK_MONOTONIC) - int(state["InactiveExitTimestampMonotonic"] or 0) / 1e6
    return time.time() - passed


def applied(state: dict, config: str, depends: list, record: str = APPLIED) -> dict:
    """What the running daemon has: {invocation, config, files}. `config` and a file's digest are None where that cannot
    be known: it was written after the start, and is not what we saw before."""
    former, start = load(record), started(state)
    same = former.get("invocation") == state["InvocationID"]
    files = {}
    for path in depends:
        known, present = former.get("files", {}).get(path), digest(path)
        # A bundle of certificates is written anew again and again with the same content.
        files[path] = (
            known if same and known is not None else present if modified(path) <= start or known == present else None
        )
    content = former.get("config")
    if not same or content is None:
        now = parse(read(config), config)
        content = now if modified(config) <= start or content == now else None
    return {"invocation": state["InvocationID"], "config": content, "files": files}
