# MIT licence (see LICENSE)
"""What argument specs cannot say about the variables of docker_engine. Pure; needs no host."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

#: Keys of daemon.json that a variable of their own sets.
OWN = {
    "data-root": "docker_engine_data_root",
    "registry-mirrors": "docker_engine_registry_mirrors",
    "proxies": "host_base_http_proxy and host_base_https_proxy",
}
#: Keys that cannot work or must not be set, and why.
REFUSED = {
    "hosts": (
        "the unit says `-H fd://` already, and the daemon does not start with both; an address besides the local "
        "socket is as good as root's password for everyone who reaches it",
        "leave it out; use `docker context` over SSH, or a drop-in of docker.service",
    ),
    "graph": ("it was removed in Docker 23", "set docker_engine_data_root"),
    "exec-root": ("run-container and this role expect the packaged one", "leave it out"),
    "pidfile": ("the unit expects the packaged one", "leave it out"),
}
SIZE = re.compile(r"^(-1|[1-9]\d*[kmg]?)$", re.I)
VERSION = re.compile(r"^\d+\.\d+(\.\d+)?$")
FINGERPRINT = re.compile(r"^[0-9A-Fa-f]{40}$")


def problems(host: str, variables: Any) -> list[dict[str, Any]]:
    """Everything that is wrong with them. Of wrong types the specs complain."""
    return (
        option_problems(host, variables)
        + mirror_problems(host, variables)
        + repository_problems(host, variables)
        + log_problems(host, variables)
        + root_problems(host, variables)
    )


def option_problems(host: str, variables: Any) -> list[dict[str, Any]]:
    """docker_engine_daemon_options."""
    options = variables.get("docker_engine_daemon_options")
    if not isinstance(options, dict):
        return []
    found = []
    for key in sorted(options, key=str):
        name = f"docker_engine_daemon_options.{key}"
        if key in OWN:
            why, fix = "this key has a variable of its own", f"set {OWN[key]}"
        elif key in REFUSED:
            why, fix = REFUSED[key]
        elif key == "log-opts" and "log-driver" not in options and not isinstance(options[key], dict):
            why, fix = "log-opts is an object of options", 'write it as {max-size: "50m"}'
        else:
            continue
        found.append(problem(host, name, options[key] if key != "proxies" else None, why, fix))
    if isinstance(options.get("log-opts"), dict):
        for key, value in sorted(options["log-opts"].items()):
            if not isinstance(value, str):
                why = (
                    "Docker takes options of a log driver as text alone, and does not start with a number or a boolean"
                )
                fix = f'quote it: {key}: "{json.dumps(value)}"'
                found.append(problem(host, f"docker_engine_daemon_options.log-opts.{key}", value, why, fix))
    return found


def mirror_problems(host: str, variables: Any) -> list[dict[str, Any]]:
    """Registry mirrors, which Docker takes as a bare address."""
    mirrors = variables.get("docker_engine_registry_mirrors")
    found = []
    for index, mirror in enumerate(mirrors if isinstance(mirrors, list) else []):
        name, url = f"docker_engine_registry_mirrors[{index}]", urlsplit(str(mirror))
        if url.scheme not in ("http", "https") or not url.netloc:
            found.append(problem(host, name, mirror, "this is no address of a web server", "write https://host[:port]"))
        elif url.path.strip("/") or url.query or url.fragment or url.username:
            why = "Docker refuses to start with a mirror that has a path, a query or a user's name"
            fix = f"write {url.scheme}://{url.netloc.rpartition('@')[2]}"
            found.append(problem(host, name, mirror, why, fix))
    return found


def repository_problems(host: str, variables: Any) -> list[dict[str, Any]]:
    """Where packages come from, and which."""
    found = []
    for name in ("docker_engine_repository_url", "docker_engine_repository_key_url"):
        value = variables.get(name)
        if value and urlsplit(str(value)).scheme not in ("http", "https", "file"):
            why = "this is no address"
            found.append(problem(host, name, value, why, "write https://mirror.example/docker-ce/linux"))
        elif value and name.endswith("repository_url") and re.search(r"/(debian|ubuntu)/?$", str(value)):
            why = "the name of the distribution is added to this address"
            fix = f"write {re.sub(r'/(debian|ubuntu)/?$', '', str(value))}"
            found.append(problem(host, name, value, why, fix))
    pinned = variables.get("docker_engine_version")
    if pinned and not VERSION.match(str(pinned)):
        why = "this is no version of Docker Engine; what apt adds to it (5:…-1~ubuntu.24.04~noble) is left out"
        found.append(problem(host, "docker_engine_version", pinned, why, "write it as 29.8.2"))
    for index, value in enumerate(variables.get("docker_engine_repository_fingerprints") or []):
        if not FINGERPRINT.match(re.sub(r"\s", "", str(value))):
            why = "a fingerprint has 40 hexadecimal digits; a short number of a key can be forged"
            fix = "copy the whole fingerprint from who makes the repository"
            found.append(problem(host, f"docker_engine_repository_fingerprints[{index}]", value, why, fix))
    return found


def log_problems(host: str, variables: Any) -> list[dict[str, Any]]:
    """The rotation of logs."""
    size, files = variables.get("docker_engine_log_max_size"), variables.get("docker_engine_log_max_file")
    found = []
    if size is not None and not SIZE.match(str(size)):
        why = "this is no size: a whole number with k, m or g"
        found.append(problem(host, "docker_engine_log_max_size", size, why, "write it as 50m"))
    if files is not None and str(files).isdigit() and int(files) < 1:
        found.append(problem(host, "docker_engine_log_max_file", files, "at least one file is kept", "write 3"))
    return found


def root_problems(host: str, variables: Any) -> list[dict[str, Any]]:
    """The folder of images, containers and volumes."""
    root = variables.get("docker_engine_data_root")
    if not root:
        return []
    if not str(root).startswith("/") or str(root).rstrip("/") in ("", "/var", "/home", "/usr", "/etc", "/opt", "/srv"):
        why = "Docker needs a folder of its own, named from the root on"
        return [problem(host, "docker_engine_data_root", root, why, "write it as /data/docker")]
    return []
