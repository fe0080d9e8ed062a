# MIT licence (see LICENSE)
"""What a host must have for what its inventory asks of it. Pure; runs on the controller.

What engines need of GPUs is in preflight_gpu.py.
"""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import (
    catalog,
    model_store,
    preflight_capacity,
    preflight_docker,
    preflight_gpu,
    runtime,
    vllm_backends,
    vllm_flags,
)
from ansible_collections.modelhost.serving.plugins.module_utils.capacity import gib
from ansible_collections.modelhost.serving.plugins.module_utils.preflight_gpu import version
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem
from packaging.specifiers import InvalidSpecifier, SpecifierSet

#: Floors, each with its source; those of the services are in runtime.py.
CLIENT_GLIBC = (2, 28)  # wheels of Node.js are manylinux_2_28
MIN_PYTHON = "3.8"  # ansible-core 2.19 on hosts (ansible/module_utils/basic.py); its message names its own
HUB_PYTHON = ">=3.11.1,<3.14"  # what python_release takes for the hub's client
GIB = 1024**3
#: Files of the releases of an engine, a gateway and a client together (97,000 were counted with the CPU build).
FILES = 120_000
#: Share of the memory that others may hold before it is worth a word.
OTHERS = 0.25
#: Seconds by which a clock may be behind the host's own files.
DAY = 24 * 3600

SUPPORTED = {("ubuntu", "22.04"), ("ubuntu", "24.04"), ("debian", "12")}
#: Systems on which services run in containers, with what they bring.
OLD = {
    ("ubuntu", "18.04"): "glibc 2.27 and systemd 237",
    ("ubuntu", "20.04"): "glibc 2.31 and systemd 245",
    ("debian", "11"): "glibc 2.31 and systemd 247",
}
#: Ubuntu 18.04's own Python is too old for Ansible; it has another one beside it.
BIONIC = ["python3.8", "python3.8-venv", "python3-distutils", "ca-certificates", "procps"]
BIONIC_PYTHON = "/usr/bin/python3.8"
NEWER = "use Ubuntu 22.04 or 24.04 or Debian 12 there"
TRIED = "expect surprises; tried are Debian 12, and Ubuntu 22.04 and 24.04 by rendering"
WAY_OUT = "set it to auto or docker, so that it runs in a container on this host; or " + NEWER
GUIDE = "docs/old-systems.md"


def serves(host: str, groups: dict[str, list[str]]) -> bool:
    """Whether the host runs services of ours, and not a client alone."""
    return host in groups.get("engines", []) or host in groups.get("gateways", [])


def resolved_variant(probe: dict[str, Any], variables: Any) -> str:
    """The build that the role would take."""
    variant = str(variables.get("vllm_variant") or "auto")
    return variant if variant != "auto" else "cuda" if preflight_gpu.will_have_driver(probe, variables) else "cpu"


# --- the system --------------------------------------------------------------------------------------------------


def bare_problems(host: str, told: str, error: str) -> list[dict[str, Any]]:
    """A host on which Ansible's modules do not run: what its shell tells (`told`), and how the module ended."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', told, re.M))
    name = fields.get("PRETTY_NAME", "")
    # What Ansible took for its Python, or what the shell calls so.
    python = re.search(r"Current version: (\d+\.\d+\.\d+)", error) or re.search(r"Python (\d+\.\d+\.\d+)", told)
    named = re.search(r"minimum of Python version (\d+\.\d+)", error)
    least = named.group(1) if named else MIN_PYTHON
    if python and version(python.group(1)) < version(least):
        why = f"Ansible needs Python {least} or later on hosts, and this one has {python.group(1)}"
        fix = "install a newer Python beside it and name it in ansible_python_interpreter"
        if (fields.get("ID"), fields.get("VERSION_ID")) == ("ubuntu", "18.04"):
            fix = (
                f"sudo apt-get install --no-install-recommends {' '.join(BIONIC)} docker.io; then set "
                f"ansible_python_interpreter: {BIONIC_PYTHON} for this host. Engines run in containers there: see "
                f"{GUIDE}"
            )
        elif fields.get("ID") in ("centos", "rhel"):
            fix = f"{NEWER}; this project installs packages with apt"
        return [problem(host, "ansible_python_interpreter", name or None, why, fix)]
    if told and not python:
        why = f"Ansible needs Python {least} or later on hosts, and this one has none"
        fix = "sudo apt-get install python3, or name one in ansible_python_interpreter"
        return [problem(host, "ansible_python_interpreter", name or None, why, fix)]
    why = "this host could not be looked at: " + (" ".join(error.split())[:300] or "see its error above")
    if re.search(r"(?i)sudo|become|privilege", error):
        fix = "let the connecting user sudo, and pass --ask-become-pass if it needs a password"
        return [problem(host, "ansible_become", None, why, fix)]
    return [problem(host, "connection", None, why, "try `ansible -m ping` with the same inventory")]


def platform_problems(
    host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Distribution, architecture, systemd, C library, rights."""
    found = []
    services = serves(host, groups)
    if not probe["is_root"]:
        why = "the tasks do not run as root on this host"
        fix = "let the connecting user sudo, and pass --ask-become-pass if it needs a password"
        found.append(problem(host, "ansible_become", None, why, fix))
    found += system_problems(host, probe, variables, groups)
    if services:
        found += venv_problems(host, probe, variables, groups) + systemd_problems(host, probe)
    if not services and not (probe["glibc"] and version(probe["glibc"]) >= CLIENT_GLIBC):
        why = "Node.js, which installs Claude Code, needs glibc 2.28 or later"
        found.append(problem(host, "glibc", probe["glibc"] or None, why, NEWER))
    if services and probe["architecture"] != "x86_64":
        why = "the lock files of this release hold x86-64 builds of vLLM and LiteLLM only"
        fix = "use an x86-64 host for engines and gateways; clients may be ARM machines"
        found.append(problem(host, "architecture", probe["architecture"], why, fix))
    return found


def system_problems(
    host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """The distribution: what it cannot do, and how far it was tried."""
    place, name = "operating system", probe["distribution_name"] or None
    system = (probe["distribution"], probe["distribution_version"])
    facts = probe.get("system")
    if facts and not facts.get("apt"):
        why = "this project installs packages with apt, and this system has none"
        return [problem(host, place, name, why, NEWER)]
    if system in OLD:
        why = "vLLM's builds are too new for this system, so what needs them runs in containers here"
        fix = f"nothing, if that is meant; {GUIDE} says what was tried"
        if not runtime.uses_containers(host, probe, variables, groups):
            why, fix = "this system is old, and little was tried on it", f"see {GUIDE}"
        return [problem(host, place, name, why, fix, "warning")]
    if system not in SUPPORTED:
        return [problem(host, place, name, "this system was never tried with this project", TRIED, "warning")]
    return []


def venv_problems(
    host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Services that shall run from a virtual environment where it cannot be; `auto` would have said docker."""
    wanted: list[tuple[str, str, tuple[int, int]]] = []
    if host in groups.get("engines", []):
        named = [item for item in variables.get("vllm_instances") or [] if isinstance(item, dict)]
        kinds = runtime.of_engines(probe, variables)
        for index, item in enumerate(named):
            place = f"vllm_instances[{index}].runtime" if item.get("runtime") else "vllm_runtime"
            if kinds[str(item.get("name"))] == "venv" and place not in [row[0] for row in wanted]:
                wanted.append((place, "vLLM's builds need", runtime.ENGINE_GLIBC))
    if host in groups.get("gateways", []) and runtime.of_gateway(probe, variables) == "venv":
        wanted.append(("litellm_runtime", "LiteLLM's builds need", runtime.GATEWAY_GLIBC))
    found = []
    for place, what, least in wanted:
        why = []
        if not probe["glibc"]:
            why.append("this system has another C library, and no build fits it")
        elif version(probe["glibc"]) < least:
            why.append(f"{what} glibc {least[0]}.{least[1]} or later, and this host has {probe['glibc']}")
        if 0 < int(probe["systemd"] or 0) < runtime.VENV_SYSTEMD:
            why.append(f"its unit needs systemd {runtime.VENV_SYSTEMD} or later, and this host has {probe['systemd']}")
        if why:
            found.append(problem(host, place, "venv", "; ".join(why), WAY_OUT))
    return found


def systemd_problems(host: str, probe: dict[str, Any]) -> list[dict[str, Any]]:
    """The first process and its version."""
    if not probe["systemd_is_init"]:
        why = "the services are systemd units, and systemd is not the first process here"
        fix = "use a machine that starts with systemd"
        if probe["wsl"]:
            fix = "write [boot] and below it systemd=true to /etc/wsl.conf, then run `wsl --shutdown` in Windows"
            if version(probe["kernel"])[:1] == (4,):
                why = "this is WSL 1, which has no Linux kernel, no systemd and no GPUs"
                fix = "run `wsl --set-version <distribution> 2` in Windows"
        elif probe["container"]:
            why = f"this is a container ({probe['container']}) without systemd, and the services are systemd units"
            fix = "use a virtual machine, or a container that starts /sbin/init (LXC; docker run with an init image)"
        return [problem(host, "systemd", "not running", why, fix)]
    if int(probe["systemd"] or 0) < runtime.DOCKER_SYSTEMD:
        why = f"even units that run containers need systemd {runtime.DOCKER_SYSTEMD} or later"
        return [problem(host, "systemd", probe["systemd"] or None, why, NEWER)]
    return []


def package_problems(
    host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Packages that are missing where Ansible cannot install any.

    Its modules need python3-apt, which a distribution has for its own Python alone, and that has to be one that Ansible
    runs on: on Ubuntu 18.04 it is not.
    """
    facts = probe.get("system") or {}
    own, there = facts.get("system_python"), facts.get("packages")
    if not own or there is None or version(own) >= version(MIN_PYTHON):
        return []
    python = str(facts.get("interpreter") or "").rpartition("/")[2]
    wanted = ["ca-certificates", "procps"]
    if re.fullmatch(r"python3\.\d+", python):
        wanted += [f"{python}-venv"] + (["python3-distutils"] if python == "python3.8" else [])
    docker = there.keys() & {"docker.io", "docker-ce"} or (probe.get("docker") or {}).get("version")
    if runtime.uses_containers(host, probe, variables, groups) and not docker:
        wanted.append("docker.io")
    missing = [name for name in wanted if name not in there]
    if not missing:
        return []
    why = (
        f"Ansible cannot install packages here: its module for that needs Python {MIN_PYTHON}, python3-apt is for {own}"
    )
    fix = f"sudo apt-get install --no-install-recommends {' '.join(missing)}"
    return [problem(host, "packages", ", ".join(missing), why, fix)]


def network_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """What makes downloads fail: a wrong clock, a mirror of another distribution, proxies that nobody told us of."""
    facts, found = probe.get("system") or {}, []
    if facts.get("clock_behind", 0) > DAY:
        days = facts["clock_behind"] // DAY
        why = f"it is {days} day(s) behind this host's own files, so certificates would be refused"
        found.append(
            problem(host, "clock", None, why, "set it: sudo timedatectl set-ntp true, or timedatectl set-time")
        )
    mirror = str(variables.get("host_base_apt_mirror") or "")
    holds = mirror.rstrip("/").rpartition("/")[2]
    wanted = str(probe["distribution"])
    if wanted == "ubuntu" and probe["architecture"] not in ("x86_64", "i686"):
        wanted = "ubuntu-ports"
    if {holds, wanted} <= {"debian", "ubuntu", "ubuntu-ports"} and holds != wanted:
        why = f"this mirror holds {holds}, and packages of this host ({probe['distribution_name']}) are in {wanted}"
        found.append(problem(host, "host_base_apt_mirror", mirror, why, f"name a mirror that ends in /{wanted} for it"))
    set_here = variables.get("host_base_http_proxy") or variables.get("host_base_https_proxy")
    if facts.get("proxies") and not set_here and not probe.get("deployed"):
        why = "this host has proxies in /etc/environment or /etc/profile.d, and our downloads go by variables alone"
        fix = "set host_base_http_proxy and host_base_https_proxy as well, if it reaches nothing without"
        found.append(problem(host, "host_base_https_proxy", None, why, fix, "warning"))
    return found


def python_problems(
    host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """A Python that engines and gateways run on: the host's own, or one that uv fetches."""
    if probe.get("deployed") or variables.get("host_base_python_mirror") or variables.get("bundle"):
        return []
    wanted = []
    kinds = set(runtime.of_engines(probe, variables).values())
    if host in groups.get("engines", []) and "venv" in kinds:
        wanted.append(("vllm_python", variables.get("vllm_python")))
    if host in groups.get("gateways", []) and runtime.of_gateway(probe, variables) == "venv":
        wanted.append(("litellm_python", variables.get("litellm_python")))
    if host in groups.get("engines", []) and not wanted and fetches_weights(variables):
        wanted.append(("host_base_python_mirror", HUB_PYTHON))
    found = []
    for variable, value in wanted:
        specifier = str(value or ">=3.11.1,<3.14")
        if specifier.startswith("/"):
            continue
        try:
            fitting = SpecifierSet(specifier if specifier[:1] in "<>=!~" else f"=={specifier}.*")
        except InvalidSpecifier:
            continue
        if not any(fitting.contains(f"{name}.99") for name in probe["pythons"]):
            have = ", ".join(probe["pythons"]) or "none"
            what = " the hub's client" if variable == "host_base_python_mirror" else ""
            why = f"no Python of this host fits{what} ({have}), so uv will download one from GitHub"
            fix = (
                "nothing, if the host may reach github.com; else install one from packages (python3.12), or name a "
                "mirror in host_base_python_mirror"
            )
            seen = None if variable == "host_base_python_mirror" else specifier
            found.append(problem(host, variable, seen, why, fix, "warning"))
    return found[:1]


def fetches_weights(variables: Any) -> bool:
    """Whether weights come from a hub."""
    entries = catalog.entries(variables.get("vllm_models") or [])
    models = [vllm_flags.resolve(instance, entries) for instance in variables.get("vllm_instances") or []]
    return any("repo" in entry["source"] for entry in models)


# --- engines -----------------------------------------------------------------------------------------------------


def cpu_problems(host: str, probe: dict[str, Any]) -> list[dict[str, Any]]:
    """Instructions that vLLM's CPU build is made of."""
    flags, name = probe["cpu_flags"], probe["cpu_model"]
    if probe["architecture"] != "x86_64" or "avx2" in flags:
        return []
    has = "has AVX but not AVX2" if "avx" in flags else "has neither AVX nor AVX2"
    why = f"vLLM on CPU needs AVX2, and this CPU {has}"
    fix = "use a machine with AVX2 (Intel since 2013, AMD since 2015) or with an NVIDIA GPU"
    old = re.search(r"\bE[57]-\d{4}[A-Z]?\b(?: (v\d))?", name)
    if old and "avx" in flags and old.group(1) in (None, "v2"):
        generation = "v2 (Ivy Bridge)" if old.group(1) else "v1 (Sandy Bridge)"
        why += f": it is the {generation} of its name, and AVX2 came with v3 (Haswell)"
        fix = "put in v3 or v4 processors if the board takes them, or use another machine or one with an NVIDIA GPU"
    elif probe["virtualization"] or "hypervisor" in flags:
        why += ", or the virtual machine hides it"
        fix = "give the virtual machine the host's own CPU (QEMU, Proxmox: type `host`), or use another machine"
    return [problem(host, "CPU", name or None, why, f"{fix}; or take the host out of the group `engines`")]


def others_problems(host: str, probe: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory that other programs hold; an engine that has to share it may be ended by the kernel."""
    memory = probe["memory"]
    others = memory["total"] - memory["available"] - memory.get("engines", 0)
    if others <= OTHERS * memory["total"]:
        return []
    why = f"other programs hold {gib(others)} of {gib(memory['total'])}"
    fix = "make sure that they and the engines fit together, or set what they need as vllm_memory_reserved_gib"
    return [problem(host, "memory", f"{gib(memory['available'])} free", why, fix, "warning")]


def engine_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """CPU, GPUs and memory against the instances."""
    variant = resolved_variant(probe, variables)
    entries = catalog.entries(variables.get("vllm_models") or [])
    found = preflight_gpu.driver_problems(host, probe, variables, variant)
    for index, instance in enumerate(variables.get("vllm_instances") or []):
        entry = vllm_flags.resolve(instance, entries)
        place = f"vllm_instances[{index}].model"
        runs_on = entry.get("runs_on") or ["cpu", "cuda"]
        # What the inventory says outright was judged before; this is what `auto` turned out to be.
        if variant not in runs_on and str(variables.get("vllm_variant") or "auto") == "auto":
            what = "an NVIDIA driver" if variant == "cuda" else "no NVIDIA driver"
            why = f"this checkpoint runs on {' and '.join(runs_on)} only, and this host has {what}"
            found.append(problem(host, place, entry["id"], why, "choose another model for this host"))
        found += folder_problems(host, place, entry, probe)
    own = preflight_gpu.gpu_problems(host, probe, variables) if variant == "cuda" else cpu_problems(host, probe)
    # Where GPUs are missing or too old, that is what is wrong and not the room on them.
    said = {item["variable"].split("]")[0] for item in own if item["level"] == "error"}
    # GPUs whose driver this run installs cannot be asked yet; they are judged after it.
    waits = preflight_gpu.driver_comes(probe, variables)
    room = [] if waits else preflight_capacity.problems(host, probe, variables)
    room = [item for item in room if item["variable"].split("]")[0] not in said]
    if variant == "cpu" and not room and not variables.get("vllm_memory_reserved_gib"):
        room = others_problems(host, probe)
    return found + own + room


def folder_problems(host: str, place: str, entry: dict[str, Any], probe: dict[str, Any]) -> list[dict[str, Any]]:
    """Weights that a user put on the host."""
    path = entry["source"].get("path")
    seen = (probe.get("paths") or {}).get(path)
    if not path or seen is None:
        return []
    why, fix = "", "put config.json, the tokenizer and the safetensors files there, or name another folder"
    if not seen["exists"]:
        why = "this host has no such folder"
    elif seen["config"] is None:
        why = "this folder holds no config.json that can be read"
    elif not seen["safetensors_bytes"]:
        why = "this folder holds no *.safetensors files"
    elif not seen["readable"]:
        why = "the engine runs under its own account (vllm), which may not read this folder"
        fix = f"sudo chmod -R a+rX {path}, and a+x for the folders above it"
    return [problem(host, f"{place}.source.path", path, why, fix)] if why else []


# --- ports, firewalls, disks -------------------------------------------------------------------------------------


def wanted_ports(host: str, variables: Any, groups: dict[str, list[str]]) -> list[tuple[int, str, str]]:
    """(port, unit, variable) of everything that shall listen."""
    ports = []
    if host in groups.get("engines", []):
        for index, instance in enumerate(variables.get("vllm_instances") or []):
            unit = f"vllm@{instance['name']}.service"
            ports.append((int(instance.get("port", 8000)), unit, f"vllm_instances[{index}].port"))
    if host in groups.get("gateways", []):
        ports.append((int(variables.get("litellm_port") or 4000), "litellm@main.service", "litellm_port"))
    if host in groups.get("mirrors", []):
        ports.append((int(variables.get("hf_mirror_port") or 8090), "hf-mirror.service", "hf_mirror_port"))
    return ports


def port_problems(host: str, probe: dict[str, Any], wanted: list[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """Ports that somebody else holds; `wanted` holds (port, unit, variable)."""
    found = []
    for port, unit, variable in wanted:
        for owner in probe["listeners"].get(str(port), []):
            ours = owner["unit"] == unit or (
                not owner["process"] and owner["user"] == re.split("[@.]", unit)[0] and unit in probe["active_units"]
            )
            if not ours:
                who = owner["unit"] or owner["process"] or "another program"
                found.append(
                    problem(
                        host,
                        variable,
                        port,
                        f"port {port} is taken on this host: {who} listens on {owner['address']}",
                        f"stop it, or set {variable} to a free port",
                    )
                )
                break
    return found


def firewall_problems(
    host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]], addresses: dict[str, str]
) -> list[dict[str, Any]]:
    """Firewalls in the way of those who shall reach a port. addresses: those of gateways and engines by name."""
    firewall = probe.get("firewall") or {}
    active = [name for name in ("ufw", "firewalld") if firewall.get(name) == "active"]
    if not active:
        return []
    found = []
    for port, unit, variable in wanted_ports(host, variables, groups):
        service = variable.split("_port")[0] if not unit.startswith("vllm@") else "vllm"
        gateway = service == "litellm"
        callers = [name for name in groups.get("engines" if service == "hf_mirror" else "gateways", []) if name != host]
        bind = str(variables.get(f"{service}_bind_address") or "127.0.0.1")
        if vllm_backends.is_loopback(bind) or any(first <= port <= last for first, last in firewall["open_ports"]):
            continue
        sources = [] if gateway else [addresses.get(name, name) for name in callers]
        if not gateway and not sources:
            continue
        who = "clients" if gateway else ", ".join(callers)
        source = "<their network>" if gateway else sources[0]
        fixes = {
            "ufw": f"sudo ufw allow from {source} to any port {port} proto tcp",
            "firewalld": "sudo firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source "
            f"address={source} port port={port} protocol=tcp accept' && sudo firewall-cmd --reload",
        }
        why = f"{' and '.join(active)} may not let {who} reach this port"
        fix = "unless a rule of yours does already: " + "; ".join(fixes[name] for name in active)
        found.append(problem(host, variable, port, why, fix, "warning"))
    return found


def disk_problems(
    host: str, probe: dict[str, Any], settings: dict[str, Any], weights: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Space on each mount for releases, caches and the weights (catalogue entries) that are not there yet."""
    least = float(settings["min_disk_gib"])
    models_dir = settings.get("models_dir") or "/var/lib/modelhost/models"
    needs: dict[str, dict[str, float]] = {}
    for path, space in probe["disk"].items():
        parts = needs.setdefault(space["mount"], {})
        # Releases that are installed already are not asked for again.
        if path in settings["paths"] and not probe.get("deployed"):
            parts["releases and caches"] = least
    place = probe["disk"].get(models_dir) or next(
        (space for path, space in probe["disk"].items() if models_dir.startswith(path)), None
    )
    for item in model_store.models(weights, models_dir):
        there = (probe.get("paths") or {}).get(item["path"]) or {}
        missing = item["weights_bytes"] - there.get("safetensors_bytes", 0) - there.get("elsewhere_bytes", 0)
        if place and missing > 0:
            needs[place["mount"]][f"weights of {item['id']}"] = missing / GIB
    found = []
    for mount, parts in needs.items():
        space = next(item for item in probe["disk"].values() if item["mount"] == mount)
        if space.get("read_only"):
            why = "this file system is mounted read-only"
            found.append(problem(host, f"disk space on {mount}", None, why, "mount it read-write"))
            continue
        if "releases and caches" in parts and space.get("noexec"):
            why = "this file system is mounted noexec, and programs are installed there"
            found.append(problem(host, f"disk space on {mount}", None, why, "mount it without noexec"))
        files = space.get("files_free")
        if "releases and caches" in parts and files is not None and files < FILES:
            why = f"releases consist of {FILES} files, and this file system has room for no more than {files} (inodes)"
            fix = "remove files there, or use a file system that was made with more inodes (df -i shows them)"
            found.append(problem(host, f"disk space on {mount}", f"{files} files free", why, fix))
        need = sum(parts.values())
        if parts and space["free"] < need * GIB:
            listed = ", ".join(f"{amount:.1f} GiB for {what}" for what, amount in parts.items())
            why = f"{need:.1f} GiB are needed there: {listed}"
            fix = "free space, or lower host_preflight_min_disk_gib if you know better"
            if len(parts) > 1 or "releases and caches" not in parts:
                fix = "free space, choose a smaller model, or set model_store_dir to a folder on a larger disk"
            found.append(problem(host, f"disk space on {mount}", gib(space["free"]) + " free", why, fix))
    return found


def account_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """Accounts that Claude Code shall be set up for."""
    why, fix = "this host has no account of this name", "create the account, or name another"
    return [
        problem(host, f"claude_code_users[{index}].name", user.get("name"), why, fix)
        for index, user in enumerate(variables.get("claude_code_users") or [])
        if user.get("name") not in probe["accounts"]
    ]


def problems(
    host: str,
    probe: dict[str, Any],
    settings: dict[str, Any],
    variables: Any,
    groups: dict[str, list[str]],
    addresses: dict[str, str] | None = None,
    weights: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Everything that stands against this host.

    addresses: those of gateways and engines, by name. weights: the catalogue entries whose weights shall lie here, if
    those are not just the ones of its own engines.
    """
    found = platform_problems(host, probe, variables, groups)
    found += package_problems(host, probe, variables, groups) + network_problems(host, probe, variables)
    if serves(host, groups):
        found += python_problems(host, probe, variables, groups)
    if runtime.uses_containers(host, probe, variables, groups):
        found += preflight_docker.problems(host, probe, variables, groups)
    if host in groups.get("engines", []):
        found += engine_problems(host, probe, variables)
    found += port_problems(host, probe, wanted_ports(host, variables, groups))
    found += firewall_problems(host, probe, variables, groups, addresses or {})
    if host in groups.get("clients", []):
        found += account_problems(host, probe, variables)
    if weights is None:
        weights = model_store.of_host(variables) if host in groups.get("engines", []) else []
    return found + disk_problems(host, probe, settings, weights)
