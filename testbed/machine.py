#!/usr/bin/env python3
"""Say how this machine reaches package sources, so that hosts made on it can do the same.

An inventory script: inventories/{demo,local}/machine.py and Molecule's inventory link here. It emits
`host_base_*` variables for what this machine has and a fresh host lacks: extra CA certificates,
proxies, a Python package index, local wheel folders, an npm registry. On a machine that
has none of these it emits nothing. An inventory's group_vars override every one of them.

`machine.py --env` prints the same as shell assignments for uv, for `./run`.
"""

from __future__ import annotations

import configparser
import glob
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# Where distributions look for certificates that an administrator added (Debian, Ubuntu).
EXTRA_CA = "/usr/local/share/ca-certificates"
SYSTEM_PIP_CONF = "/etc/pip.conf"
SYSTEM_NPMRC = ("/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc")


def pip_settings() -> dict[str, list[str]]:
    """pip's settings in its own order: global, user and venv files, then the environment."""
    home = Path.home()
    files: list[str | Path] = [
        *(f"{folder}/pip/pip.conf" for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")),
        SYSTEM_PIP_CONF,
        home / ".pip/pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip/pip.conf",
    ]
    if os.environ.get("PIP_CONFIG_FILE"):
        files.append(os.environ["PIP_CONFIG_FILE"])
    found: dict[str, list[str]] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                for key, value in parser.items(section):
                    found[key.replace("_", "-")] = value.split()
    for key in ("index-url", "extra-index-url", "find-links"):
        setting = os.environ.get("PIP_" + key.replace("-", "_").upper())
        if setting:
            found[key] = setting.split()
    return found


def local_folder(link: str) -> str:
    """The folder behind a path or file: URL, or '' for anything else."""
    path = unquote(urlsplit(link).path) if link.startswith("file:") else link
    return path if path.startswith("/") and os.path.isdir(path) else ""


def npm_registry() -> str:
    """npm's registry, read from its environment and files (npm itself may not be here)."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or os.environ.get("npm_config_registry") or ""
    for file in (Path.home() / ".npmrc", *SYSTEM_NPMRC):
        if registry:
            break
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        match = re.search(r"^\s*registry\s*=\s*(\S+)", text, re.M)
        registry = match.group(1) if match else ""
    return registry


def apt_proxy() -> str:
    """apt's HTTP proxy, in apt's own words."""
    try:
        done = subprocess.run(
            ["apt-config", "shell", "proxy", "Acquire::http::Proxy"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    words = shlex.split(done.stdout)
    return words[0].partition("=")[2] if words else ""


def detect() -> dict[str, Any]:
    """This machine's settings as inventory variables; empty ones are left out."""
    pip = pip_settings()
    index = (os.environ.get("UV_DEFAULT_INDEX") or (pip.get("index-url") or [""])[0]).rstrip("/")
    links = pip.get("find-links", []) + os.environ.get("UV_FIND_LINKS", "").replace(",", " ").split()
    links = list(dict.fromkeys(local_folder(link) or link for link in links))
    registry = npm_registry()
    settings: dict[str, Any] = {
        "host_base_extra_ca_certificates": [
            # Not those that host_base put there itself: with inventories/local this machine is the host.
            path
            for path in sorted(glob.glob(f"{EXTRA_CA}/**/*.crt", recursive=True))
            if not os.path.basename(path).startswith("modelhost-")
        ],
        "host_base_pip_index_url": index,
        "host_base_pip_find_links": links,
        "host_base_npm_registry": registry,
        "host_base_apt_proxy": apt_proxy(),
    }
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        settings[f"host_base_{name}"] = os.environ.get(name) or os.environ.get(name.upper()) or ""
    if settings["host_base_no_proxy"]:
        # The role's default, which a bare no_proxy would lose.
        settings["host_base_no_proxy"] += ",localhost,127.0.0.1,::1"
    # pip's extra-index-url is left out on purpose: pip takes the best of all indexes, uv the first that knows a name.
    # Folders that test hosts get read-only under the same path.
    settings["testbed_shared_folders"] = [folder for link in links if (folder := local_folder(link))]
    return {key: value for key, value in settings.items() if value}


def uv_environment(settings: dict[str, Any]) -> dict[str, str]:
    """What uv needs, because it reads none of pip's settings."""
    environment = {"UV_SYSTEM_CERTS": "true"}
    if "host_base_pip_index_url" in settings:
        environment["UV_DEFAULT_INDEX"] = settings["host_base_pip_index_url"]
    if "host_base_pip_find_links" in settings:
        environment["UV_FIND_LINKS"] = ",".join(settings["host_base_pip_find_links"])
    return environment


def main(arguments: list[str]) -> None:
    settings = detect()
    if "--env" in arguments:
        for key, value in uv_environment(settings).items():
            print(f"export {key}={shlex.quote(value)}")
    elif "--host" in arguments:
        print("{}")
    else:
        print(json.dumps({"all": {"vars": settings}, "_meta": {"hostvars": {}}}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
