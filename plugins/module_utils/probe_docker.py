# MIT licence (see LICENSE)
"""What there is of Docker on a host. Runs there, under Python 3.8; every fact may be missing.

`run(command)` gives (exit status, output), `read(path)` a file's text or nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any

SOCKET = "unix:///var/run/docker.sock"
#: Packages that bring an engine or stand in its way.
PACKAGES = (
    "docker-ce",
    "docker-ce-cli",
    "docker-ce-rootless-extras",
    "docker-buildx-plugin",
    "docker-compose-plugin",
    "containerd.io",
    "docker.io",
    "docker-cli",
    "moby-engine",
    "docker-engine",
    "containerd",
    "runc",
    "podman-docker",
)
#: Where the role writes down what it installed (roles/docker_engine).
RECORD = "/etc/modelhost/docker_engine/packages"


def json_object(text: str) -> dict:
    """A JSON object, or an empty one."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def packages(run: Any) -> dict:
    """{package: version} of those that are installed."""
    form = "${Package} ${Version} ${Status}\\n"
    _status, out = run(["dpkg-query", "--show", "--showformat", form, *PACKAGES])
    return dict(re.findall(r"^(\S+) (\S+) \w+ \w+ installed$", out, re.M))


def release(read: Any) -> dict:
    """The folder and the suite of Docker's repository that this distribution would use."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read("/etc/os-release"), re.M))
    if fields.get("UBUNTU_CODENAME"):
        return {"distribution": "ubuntu", "suite": fields["UBUNTU_CODENAME"]}
    return {"distribution": fields.get("ID", ""), "suite": fields.get("VERSION_CODENAME", "")}


def config(read: Any) -> tuple:
    """daemon.json's keys, and what is wrong with it."""
    text = read("/etc/docker/daemon.json")
    if not text.strip():
        return {}, ""
    try:
        data = json.loads(text)
    except ValueError as error:
        return {}, str(error)
    return (data, "") if isinstance(data, dict) else ({}, "it holds no JSON object")


def facts(run: Any, read: Any) -> dict:
    """All of it."""
    found = packages(run)
    status, out = run(["docker", "--host", SOCKET, "info", "--format", "{{json .}}"])
    daemon = json_object(out) if status == 0 else {}
    running = bool(daemon.get("ServerVersion"))
    version = daemon.get("ServerVersion") or ""
    if not version:
        asked = re.search(r"Docker version (\d+\.\d+[.\d]*)", run(["dockerd", "--version"])[1])
        version = asked.group(1) if asked else ""
    snap_status, _out = run(["snap", "list", "docker"])
    data, error = config(read)
    registry = daemon.get("RegistryConfig") or {}
    return {
        "version": version,
        "running": running,
        "packages": found,
        "ours": read(RECORD).split(),
        "snap": snap_status == 0,
        "podman": "podman-docker" in found or "podman" in run(["docker", "--version"])[1].lower(),
        "live_restore": bool(daemon.get("LiveRestoreEnabled")),
        "containers_running": int(daemon.get("ContainersRunning") or 0),
        "storage_driver": daemon.get("Driver") or "",
        # A string is listed for each fact; the containerd image store says so in one of them.
        "image_store": "containerd" if "io.containerd.snapshotter" in json.dumps(daemon.get("DriverStatus")) else "",
        "cgroup_version": str(daemon.get("CgroupVersion") or ""),
        "data_root": daemon.get("DockerRootDir") or "",
        "registry_mirrors": registry.get("Mirrors") or [],
        "swarm": ((daemon.get("Swarm") or {}).get("LocalNodeState") or "inactive") != "inactive",
        "rootless": any("rootless" in option for option in daemon.get("SecurityOptions") or []),
        "config_error": error,
        # Names alone: values may hold passwords.
        "config_keys": sorted(data),
        "config_live_restore": data.get("live-restore"),
        "apparmor": read("/sys/module/apparmor/parameters/enabled").strip() == "Y",
        "repository": release(read),
    }
