# MIT licence (see LICENSE)
"""What stands against Docker on a host, and where its engine would come from. Pure; runs on the controller."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import runtime
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

#: 20.10 is the first engine that knows cgroup v2, which Ubuntu 22.04 and Debian 12 have
#: (https://docs.docker.com/engine/release-notes/20.10/).
FLOOR = (20, 10)
#: CDI devices (`--device nvidia.com/gpu=…`) came with 25.0 (https://docs.docker.com/engine/release-notes/25.0/).
GPU_FLOOR = (25, 0)

#: Distributions that Docker's apt repository has.
DISTRIBUTIONS = ("debian", "ubuntu")
#: Storage drivers that waste the space of large images, or are on their way out.
POOR_DRIVERS = {
    "vfs": "copies every layer whole, so that an image of vLLM takes several times its size",
    "btrfs": "keeps every layer as a subvolume, which fills the disk quietly and is slow to remove",
    "devicemapper": "was removed in Docker 25",
    "aufs": "was removed in Docker 24",
    "overlay": "was removed in Docker 24",
}
#: Releases whose own docker.io is too old for GPUs (Debian 12 has 20.10.24; Ubuntu updates its own).
OLD_DISTRIBUTION = {"bookworm": "20.10", "bullseye": "20.10"}
#: Releases whose docker.io comes without the client.
SPLIT = ("trixie", "forky", "sid")
#: Packages that Docker's own conflict with (https://docs.docker.com/engine/install/ubuntu/#uninstall-old-versions).
FOREIGN = ("docker.io", "moby-engine", "docker-engine")


def version(text: Any) -> tuple[int, ...]:
    """`20.10.24+dfsg1` → (20, 10, 24)"""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(text or ""))
    return tuple(int(part) for part in found.groups() if part) if found else ()


def floor(nvidia: bool) -> tuple[int, int]:
    """The oldest engine that will do."""
    return GPU_FLOOR if nvidia else FLOOR


def pinned(suite: str) -> dict[str, Any]:
    """The pins for a release of a distribution: Docker no longer builds for the older ones."""
    older: dict[str, Any] = pin("docker_engine.older")
    found: dict[str, Any] = older.get(suite) or pin("docker_engine")
    return found


def plan(docker: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What the role installs. settings: source, version, packages, repository_url, key_url, nvidia."""
    come_from = source(docker, settings["source"])
    repository = docker.get("repository") or {}
    suite = str(repository.get("suite") or "")
    pins = pinned(suite)
    url = f"{str(settings['repository_url']).rstrip('/')}/{repository.get('distribution')}"
    version_ = str(settings.get("version") or pins["version"])
    packages = {"keep": [], "distribution": ["docker.io", "iptables"]}.get(come_from)
    if packages is None:
        wanted = {**pins["packages"], **(settings.get("packages") or {})}
        # Of what apt calls 5:29.8.2-1~ubuntu.24.04~noble only the release is pinned; the rest follows from the suite.
        packages = [f"docker-ce=5:{version_}-*", f"docker-ce-cli=5:{version_}-*"]
        packages += [f"{name}={number}-*" if number else name for name, number in wanted.items()]
    elif come_from == "distribution" and suite in SPLIT:
        packages.append("docker-cli")
    texts = {
        "keep": f"Docker {docker.get('version')} is here already and is kept",
        "distribution": "Docker Engine comes from the distribution (docker.io)",
        "docker": f"Docker Engine {version_} comes from {url}",
    }
    return {
        "source": come_from,
        "packages": packages,
        "names": [name.partition("=")[0] for name in packages],
        "repository_url": url,
        "key_url": settings.get("key_url") or f"{url}/gpg",
        "suite": suite,
        "floor": ".".join(map(str, floor(settings["nvidia"]))),
        "text": texts[come_from],
    }


def source(docker: dict[str, Any], wish: str) -> str:
    """Where the engine comes from: `docker`, `distribution`, or `keep` for one that somebody else installed."""
    if wish in ("docker", "distribution"):
        return wish
    ours = docker.get("ours") or []
    if "docker-ce" in ours:
        return "docker"
    if "docker.io" in ours:
        return "distribution"
    return "keep" if docker.get("version") else "docker"


def wants_nvidia(host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]] | None) -> bool:
    """Whether GPUs are to be used in containers: as the role is told, and in preflight as the wiring will tell it."""
    if not groups:
        return bool(variables.get("docker_engine_nvidia"))
    gpus = bool(probe.get("nvidia_devices") or probe.get("nvidia_driver"))
    on_gpus = gpus and str(variables.get("vllm_variant") or "auto") != "cpu"
    return on_gpus and runtime.engines_use_containers(host, probe, variables, groups)


def problems(
    host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]] | None = None
) -> list[dict[str, Any]]:
    """Everything about Docker that stands against this host. The caller knows that containers are wanted here."""
    docker = probe.get("docker")
    # Facts that were saved by an earlier release, or a machine that somebody described.
    if not isinstance(docker, dict):
        return []
    wish = str(variables.get("docker_engine_source") or "auto")
    nvidia = wants_nvidia(host, probe, variables, groups)
    come_from = source(docker, wish)
    found = stand_ins(host, docker)
    if not found:
        found = age_problems(host, docker, come_from, nvidia, variables) + package_problems(host, docker, come_from)
    return found + repository_problems(host, docker, come_from) + state_problems(host, docker, variables)


def stand_ins(host: str, docker: dict[str, Any]) -> list[dict[str, Any]]:
    """Programs that call themselves Docker and are not what is needed."""
    if docker.get("snap"):
        why = (
            "Docker is installed as a snap: it reads another daemon.json, sees only parts of the file system, and the "
            "NVIDIA runtime does not work in it"
        )
        fix = "sudo snap remove docker (its images and volumes go with it), and run this again"
        return [problem(host, "Docker", "snap", why, fix)]
    if docker.get("podman"):
        why = "the command `docker` is Podman's (package podman-docker), which has no daemon that could be set up"
        fix = "sudo apt-get remove podman-docker; Podman itself may stay"
        return [problem(host, "Docker", "podman-docker", why, fix)]
    if docker.get("rootless"):
        why = "the Docker daemon runs without root's rights, which is out of this project's scope"
        return [problem(host, "Docker", "rootless", why, "stop it, and let this project install one for the system")]
    return []


def age_problems(
    host: str, docker: dict[str, Any], come_from: str, nvidia: bool, variables: Any
) -> list[dict[str, Any]]:
    """An engine that is too old: one that is there, or the one that would be installed."""
    suite = str((docker.get("repository") or {}).get("suite") or "")
    least = floor(nvidia)
    fix = "upgrade it from where it came, or remove it, so that this project installs one"
    have, name, value = docker.get("version"), "Docker", docker.get("version")
    if come_from == "distribution" and not have:
        have, name, value = OLD_DISTRIBUTION.get(suite), "docker_engine_source", come_from
        fix = "set docker_engine_source: docker"
    elif come_from == "docker":
        have, name = variables.get("docker_engine_version") or pinned(suite)["version"], "docker_engine_version"
        value, fix = (
            have,
            "name a later one, or use a newer release of the distribution (Docker builds no later one for this)",
        )
    if not have or version(have) >= least:
        return []
    reason = "GPUs are given to containers by CDI, which" if nvidia else "cgroup v2, which today's systems have,"
    why = f"{reason} needs Docker {least[0]}.{least[1]} or later"
    why += f", and this would be {have}" if value != have else ""
    return [problem(host, name, value, why, fix)]


def package_problems(host: str, docker: dict[str, Any], come_from: str) -> list[dict[str, Any]]:
    """Packages in the way of those that are to be installed."""
    installed = docker.get("packages") or {}
    if come_from == "docker":
        # Where docker-ce is there already, apt has settled this.
        there = [name for name in FOREIGN if name in installed and "docker-ce" not in installed]
        why, other = "Docker's own packages (docker-ce) cannot stand beside it", "distribution"
    elif come_from == "distribution":
        there = [name for name in ("docker-ce", "moby-engine", "docker-engine") if name in installed]
        why, other = "the distribution's package (docker.io) cannot stand beside it", "docker"
    else:
        return []
    if not there:
        return []
    kept = f"set docker_engine_source: {other}" if there == ["docker-ce"] else "set docker_engine_source: auto"
    fix = f"{kept}, which keeps it; or stop its containers and sudo apt-get remove {' '.join(there)} (images stay)"
    return [problem(host, "docker_engine_source", come_from, f"{' and '.join(there)} is installed here. {why}", fix)]


def repository_problems(host: str, docker: dict[str, Any], come_from: str) -> list[dict[str, Any]]:
    """Docker builds for some distributions only."""
    repository = docker.get("repository") or {}
    name, suite = repository.get("distribution"), repository.get("suite")
    if come_from == "keep" or not name or (name in DISTRIBUTIONS and suite):
        return []
    if name not in DISTRIBUTIONS:
        why = "this role installs Docker on Debian and Ubuntu alone"
        fix = "install Docker yourself (https://docs.docker.com/engine/install/); it is then kept and set up"
        return [problem(host, "operating system", name, why, fix)]
    if come_from == "docker":
        why = "Docker's repository goes by a release's name, and this system does not say its own (VERSION_CODENAME)"
        return [problem(host, "docker_engine_source", come_from, why, "set docker_engine_source: distribution")]
    return []


def state_problems(host: str, docker: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """The configuration that is there, and what the running daemon says."""
    found = []
    if docker.get("config_error"):
        why = f"it is no valid JSON: {docker['config_error']}. The role merges its keys into it and does not guess"
        found.append(problem(host, "/etc/docker/daemon.json", None, why, "mend it, or move it away"))
    driver = str(docker.get("storage_driver") or "")
    if driver in POOR_DRIVERS:
        why = f"this storage driver {POOR_DRIVERS[driver]}"
        fix = "move the data root to ext4 or XFS, where Docker takes overlay2"
        found.append(problem(host, "Docker's storage driver", driver, why, fix, "warning"))
    live = variables.get("docker_engine_live_restore")
    if docker.get("swarm") and (live is None or str(live).lower() in ("true", "yes", "1")):
        why = "this host is part of a swarm, and a swarm does not start with live-restore"
        fix = "leave the swarm, or set docker_engine_live_restore: false; a restart of Docker then stops its containers"
        found.append(problem(host, "docker_engine_live_restore", True, why, fix))
    root = str(variables.get("docker_engine_data_root") or "")
    if root and docker.get("image_store") == "containerd":
        why = "this engine keeps its images in containerd (/var/lib/containerd), which the data root does not move"
        fix = "put /var/lib/containerd on a large disk as well"
        found.append(problem(host, "docker_engine_data_root", root, why, fix, "warning"))
    return found
