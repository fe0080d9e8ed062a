#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: what a host has, as far as this project cares. Changes nothing.

What runs here may be an old Python (Ansible itself needs 3.8), and any fact may be missing on some Linux: a fact that
cannot be read is left empty, and why stands in `errors`.
"""

import contextlib
import glob
import json
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import (
    probe_docker,
    probe_gpu,
    probe_nvidia,
    probe_system,
)

DOCUMENTATION = r"""
module: host_probe
author: the modelhost authors
short_description: What a host has
description:
  - Reads distribution, CPU, NUMA nodes, memory, disks, NVIDIA GPUs and their driver, C library, Python, systemd,
    firewalls, containers, and who listens on which TCP port. Changes nothing and needs no package.
options:
  paths:
    description: Folders whose file systems are asked for free space. Folders that do not exist count as
      their nearest existing parent.
    type: list
    elements: path
    default: [/]
  models:
    description: Folders with a model of the user's own, whose configuration and size are read.
    type: list
    elements: path
    default: []
"""
EXAMPLES = r"""
- name: Look at the host
  modelhost.serving.host_probe:
    paths: [/opt, /var/lib/modelhost/models]
    models: [/data/my-model]
  register: probe
"""
RETURN = r"""
probe:
  description: What was found; memory and disk in bytes.
  returned: always
  type: dict
"""

#: Before every path that is read; tests put a recorded machine there.
ROOT = ""
#: Seconds for each program that is asked.
TIMEOUT = 20
#: … and for those that take longer: eight GPUs without persistence are started anew for each question.
TIMEOUTS = {"nvidia-smi": 90}


# --- reading -----------------------------------------------------------------------------------------------------


def read(path):
    """A file's text, or nothing."""
    try:
        with open(ROOT + path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def paths_like(pattern):
    """Paths that exist, as they are without ROOT."""
    return sorted(path[len(ROOT) :] for path in glob.glob(glob.escape(ROOT) + pattern))


def run(command):
    """A program's exit status and what it printed; no program: -1; no answer in time: probe_gpu.TIMED_OUT."""
    limit = TIMEOUTS.get(os.path.basename(command[0]), TIMEOUT)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=limit,
            env=dict(os.environ, LC_ALL="C"),
        )
    except subprocess.TimeoutExpired:
        return probe_gpu.TIMED_OUT, "no answer within %g seconds" % limit
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return -1, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def number(text):
    """A whole number, or None for `[N/A]` and its like."""
    found = re.match(r"\s*(-?\d+)(?:\.\d+)?\s*$", text or "")
    return int(found.group(1)) if found else None


def number_list(text):
    """`0-2,8` → [0, 1, 2, 8]"""
    found: list = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found


def kilobytes(text):
    """Fields of a meminfo file, in bytes; those of a NUMA node begin with `Node 0`."""
    return {name: int(size) * 1024 for name, size in re.findall(r"^(?:Node \d+ )?([\w()]+):\s+(\d+) kB", text, re.M)}


def os_release():
    """/etc/os-release as a dictionary."""
    found = {}
    for line in read("/etc/os-release").splitlines():
        name, _sep, value = line.partition("=")
        found[name] = value.strip().strip("\"'")
    return found


# --- processor and memory ----------------------------------------------------------------------------------------


def cpu_text(text):
    """Model, instruction set and sockets from /proc/cpuinfo."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    models = re.findall(r"^(?:model name|cpu model|cpu)\s*:\s*(.*)$", text, re.M)
    return {
        "model": models[0].strip() if models else "",
        "flags": flags.group(1).split() if flags else [],
        "sockets": len(set(re.findall(r"^physical id\s*:\s*(\d+)", text, re.M))),
    }


def allowed_cpus():
    """Logical CPUs on which a service may run: those of the first process, which starts services (a login may have
    fewer or more), less those that the services' own group does not get."""
    found = None
    for pid in (1, 0):
        try:
            found = sorted(os.sched_getaffinity(pid))
            break
        except (AttributeError, OSError):
            continue
    found = found or list(range(os.cpu_count() or 1))
    for folder in cgroup_folders("cpuset"):
        text = read(folder + "/cpuset.cpus.effective") or read(folder + "/cpuset.effective_cpus")
        left = [cpu for cpu in found if cpu in number_list(text)]
        found = left or found
    return found


def cgroup_folders(controller):
    """Groups whose limits bind a service: a container's own and that of all services; cgroup v2 and v1."""
    return [
        path + group for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/" + controller) for group in ("", "/system.slice")
    ]


def cpu_quota():
    """CPUs' worth of time that a container or all services together may use, or 0 for no limit."""
    found = []
    for folder in cgroup_folders("cpu"):
        limit = read(folder + "/cpu.max").split()
        if len(limit) != 2:
            limit = [read("%s/cpu.cfs_%s_us" % (folder, name)).strip() for name in ("quota", "period")]
        if limit[0].isdigit() and limit[1].isdigit() and int(limit[1]):
            found.append(int(limit[0]) / int(limit[1]))
    return min(found, default=0)


def siblings(cpu, allowed):
    """The logical CPUs that share a core with this one."""
    listed = number_list(read("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list" % cpu))
    return [item for item in listed if item in allowed] or [cpu]


def cores_of(cpus, allowed):
    """Logical CPUs by the core that they share."""
    found = []
    for cpu in cpus:
        core = siblings(cpu, allowed)
        if core not in found:
            found.append(core)
    return found


def sockets(allowed, from_cpuinfo):
    """Processors in sockets. Virtual machines on ARM number none."""
    packages = {read("/sys/devices/system/cpu/cpu%d/topology/physical_package_id" % cpu).strip() for cpu in allowed}
    return len(packages - {"", "-1"}) or from_cpuinfo or 1


def max_mhz(allowed, model):
    """The highest clock: what the kernel says, or what the name says."""
    found = [number(read("/sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq" % cpu)) for cpu in allowed]
    named = re.search(r"@\s*([\d.]+)\s*GHz", model)
    return max([kilohertz // 1000 for kilohertz in found if kilohertz] or [0]) or (
        int(float(named.group(1)) * 1000) if named else 0
    )


def numa(allowed, memory_found):
    """NUMA nodes with the CPUs that may be used and their memory. Nodes of memory alone have no CPUs.

    The nodes' own figures only say how the machine's memory is divided: what they add up to can be more (a container's
    limit) or much less (memory that the kernel sets up lazily or that is plugged in later counts for its node when it
    is first used).
    """
    found = []
    for path in paths_like("/sys/devices/system/node/node[0-9]*"):
        cpus = [cpu for cpu in number_list(read(path + "/cpulist")) if cpu in allowed]
        sizes = kilobytes(read(path + "/meminfo"))
        # Pages of files and of the kernel's own caches are given up when somebody needs the memory.
        free = sum(sizes.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable"))
        found.append(
            {
                "node": int(path.rpartition("node")[2]),
                "cpus": cpus,
                "cores": cores_of(cpus, allowed),
                "memory_total": sizes.get("MemTotal", 0),
                "memory_free": free,
                # As the node itself says it, and as vLLM reads it.
                "memory_shown_free": free,
            }
        )
    found.sort(key=lambda node: node["node"])
    if not [node for node in found if node["cpus"] and node["memory_total"]]:
        # Without NUMA in the kernel, or with it hidden in a container: one node is all there is.
        node = {"node": 0, "cpus": list(allowed), "cores": cores_of(allowed, allowed)}
        found = [dict(node, memory_total=1, memory_free=1, memory_shown_free=memory_found["available"])]
    listed = {cpu for node in found for cpu in node["cpus"]}
    stray = [cpu for cpu in allowed if cpu not in listed]
    if stray:
        # CPUs that no node names, as some containers show them.
        first = next(node for node in found if node["cpus"])
        first["cpus"] = sorted(first["cpus"] + stray)
        first["cores"] = cores_of(first["cpus"], allowed)
    divide(found, "memory_total", memory_found["total"])
    divide(found, "memory_free", memory_found["available"])
    usable = memory_nodes()
    for node in found:
        if usable and node["node"] not in usable:
            node.update(memory_total=0, memory_free=0)
        node["memory_free"] = min(node["memory_free"], node["memory_total"])
    return found


def confined(memory_found, nodes):
    """The machine's memory without that of nodes which services may not use."""
    if all(node["memory_total"] for node in nodes) or not memory_nodes():
        return memory_found
    total, free = (sum(node[name] for node in nodes) for name in ("memory_total", "memory_free"))
    return dict(memory_found, total=total, available=min(free, memory_found["available"]))


def memory_nodes():
    """NUMA nodes whose memory a service may use, or None where that is not known."""
    text = re.search(r"^Mems_allowed_list:\s*(\S+)", read("/proc/1/status"), re.M)
    found = number_list(text.group(1)) if text else None
    for folder in cgroup_folders("cpuset"):
        listed = number_list(read(folder + "/cpuset.mems.effective") or read(folder + "/cpuset.effective_mems"))
        if listed:
            found = [node for node in listed if found is None or node in found]
    return found or None


def divide(nodes, name, amount):
    """Bytes of the machine given to its nodes, in proportion to what each says of itself."""
    whole = sum(node[name] for node in nodes)
    for node in nodes:
        node[name] = amount * node[name] // whole if whole else 0


def cgroup_memory():
    """What containers or services together may use at most, and what of that is in use and cannot be given up:
    [(limit, in use), …]"""
    found = []
    for folder in cgroup_folders("memory"):
        for limit, usage, files in (
            ("memory.max", "memory.current", ("active_file", "inactive_file")),
            # From here on the kernel slows down whoever takes more, until nothing moves.
            ("memory.high", "memory.current", ("active_file", "inactive_file")),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
        ):
            most = number(read("%s/%s" % (folder, limit)))
            if most is not None:
                stat = dict(re.findall(r"^(\w+) (\d+)$", read("%s/memory.stat" % folder), re.M))
                used = (number(read("%s/%s" % (folder, usage))) or 0) - sum(int(stat.get(name, 0)) for name in files)
                found.append((most, max(used, 0)))
    return found


def memory():
    """Total and available memory in bytes; a container's own limit counts."""
    found = kilobytes(read("/proc/meminfo"))
    total = found.get("MemTotal", 0)
    # Kernels before 3.14 do not estimate what is available.
    available = found.get("MemAvailable", found.get("MemFree", 0) + found.get("Cached", 0))
    for most, used in cgroup_memory():
        # cgroup v1 writes a number larger than any memory for "no limit".
        if most < found.get("MemTotal", 0):
            total = min(total, most)
            available = min(available, max(most - used, 0))
    return {
        "total": total,
        "available": min(available, total),
        "swap": found.get("SwapTotal", 0),
        "engines": engines_memory(),
    }


def engines_memory():
    """Bytes that our own engines hold and would give back at a restart."""
    found = 0
    for path in paths_like("/proc/[0-9]*/cgroup"):
        if unit_of(path.split("/")[2]).startswith("vllm@"):
            status = kilobytes(read(path[: -len("cgroup")] + "status"))
            found += status.get("RssAnon", 0)
    return found


def memory_devices():
    """Channels and speed of the memory, where dmidecode is there to ask and lets us."""
    status, out = run(["dmidecode", "-t", "17"])
    return parse_memory_devices(out) if status == 0 else {}


def parse_memory_devices(text):
    """What `dmidecode -t 17` says: memory modules that are in place, by their channel."""
    channels: set = set()
    speeds: list = []
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^\t([^:\n]+):[ \t]*(.*)$", block, re.M))
        if not re.match(r"\d+ [MGT]B", fields.get("Size", "")):
            continue
        where = "%s %s" % (fields.get("Bank Locator", ""), fields.get("Locator", ""))
        # `NODE 0 CHANNEL 1 DIMM 0`, `P0 CHANNEL A`, `DIMM_A1`: without the slot's number, so that two modules on one
        # channel count once.
        named = re.search(r"(?i)(?:channel|dimm)[ _-]*([a-z](?=\d|\b)|\d+)", where)
        node = re.search(r"(?i)(?:node|cpu|proc|p)[ _-]*(\d+)", where)
        channels.add((node.group(1) if node else "", named.group(1).lower() if named else len(channels)))
        speed = re.match(
            r"(\d+) MT/s|(\d+) MHz", fields.get("Configured Memory Speed") or fields.get("Configured Clock Speed") or ""
        )
        if speed:
            speeds.append(int(speed.group(1) or speed.group(2)))
    return {"channels": len(channels), "mts": min(speeds)} if channels and speeds else {}


# --- GPUs --------------------------------------------------------------------------------------------------------


def nvidia_smi():
    """The program's path; in WSL2 Windows brings it."""
    return shutil.which("nvidia-smi") or next(
        (path for path in ("/usr/bin/nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi") if os.access(path, os.X_OK)), ""
    )


def driver_version(gpus):
    """The NVIDIA driver's version; in WSL2 only nvidia-smi knows it."""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+[.\d]*)", read("/proc/driver/nvidia/version"))
    if found:
        return found.group(1)
    return next((gpu["driver"] for gpu in gpus if re.match(r"\d+\.\d", gpu["driver"])), "")


def nvidia_pci():
    """NVIDIA's PCI devices by class, driver or not: displays, and the switches that join GPUs."""
    displays, switches = 0, 0
    for path in paths_like("/sys/bus/pci/devices/*"):
        if read(path + "/vendor").strip() == "0x10de":
            kind = read(path + "/class").strip()
            displays += kind.startswith(("0x0300", "0x0302"))
            switches += kind.startswith("0x0680")
    return displays, switches


# --- the system --------------------------------------------------------------------------------------------------


def unit_state(name):
    """active, inactive or absent."""
    _status, out = run(["systemctl", "show", "-p", "LoadState", "-p", "ActiveState", name])
    fields = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    if fields.get("LoadState") != "loaded":
        return "absent"
    return "active" if fields.get("ActiveState") == "active" else "inactive"


#: Ids of our containers with their units, when they were asked for.
CONTAINERS: dict = {}


def containers():
    """Ids of the containers that run for our units."""
    if not CONTAINERS:
        label = '{{.ID}} {{.Label "modelhost.unit"}}'
        command = ["docker", "ps", "--no-trunc", "--filter", "label=modelhost.unit", "--format", label]
        status, out = run(command) if shutil.which("docker") else (-1, "")
        # The empty entry says that the question was asked.
        CONTAINERS[""] = ""
        for line in out.splitlines() if status == 0 else []:
            container_id, _space, unit = line.partition(" ")
            CONTAINERS[container_id] = unit
    return CONTAINERS


def unit_of(pid):
    """The service that a process belongs to, or nothing. A container's processes belong to the unit that runs it."""
    group = read("/proc/%s/cgroup" % pid)
    for container_id in reversed(re.findall(r"\b[0-9a-f]{64}\b", group)):
        if container_id in containers():
            return containers()[container_id]
    units = re.findall(r"([^/\n]+\.service)", group)
    return units[-1] if units else ""


def firewall():
    """Firewalls that a newly opened port has to pass, and ports that they let in already."""
    # ufw's unit is active even where ufw is switched off.
    enabled = re.search(r"^ENABLED=(\w+)", read("/etc/ufw/ufw.conf"), re.M)
    found = {
        "ufw": "absent" if not enabled else "active" if enabled.group(1).lower() == "yes" else "inactive",
        "firewalld": unit_state("firewalld.service"),
        "open_ports": [],
    }
    if found["ufw"] == "active":
        found["open_ports"] += ufw_ports(read("/etc/ufw/user.rules"))
    if found["firewalld"] == "active":
        found["open_ports"] += firewalld_ports(run(["firewall-cmd", "--list-ports"])[1])
    return found


def ufw_ports(text):
    """TCP ports that ufw's rules let in, as [first, last]."""
    found = []
    for ports in re.findall(r"^### tuple ### allow (?:tcp|any) (\S+) .* in\b", text, re.M):
        if ports == "any":
            found.append([1, 65535])
        else:
            found += [[int(first), int(last or first)] for first, last in re.findall(r"(\d+)(?::(\d+))?", ports)]
    return found


def firewalld_ports(text):
    """TCP ports of `firewall-cmd --list-ports`, as [first, last]."""
    return [[int(first), int(last or first)] for first, last in re.findall(r"(\d+)(?:-(\d+))?/tcp", text)]


def container():
    """The kind of container that this is, or nothing."""
    status, out = run(["systemd-detect-virt", "--container"])
    name = out.strip().splitlines()[0] if out.strip() else ""
    if status == 0 and name not in ("", "none"):
        return "" if name == "wsl" else name
    if os.path.exists(ROOT + "/.dockerenv"):
        return "docker"
    if os.path.exists(ROOT + "/run/.containerenv"):
        return "podman"
    named = re.search(r"(?:^|\0)container=([\w-]+)", read("/proc/1/environ"))
    return named.group(1) if named and named.group(1) != "wsl" else ""


def virtualization():
    """The kind of virtual machine that this is, or nothing."""
    status, out = run(["systemd-detect-virt", "--vm"])
    return out.strip() if status == 0 else ""


def disk(path):
    """What is free of the file system that holds a path, which mount that is, and what it forbids."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    mount = os.path.realpath(path)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    usage = shutil.disk_usage(path)
    system = os.statvfs(path)
    return {
        "free": usage.free,
        "total": usage.total,
        # Some file systems make room for files as they come, and count none.
        "files_free": system.f_favail if system.f_files else None,
        "mount": mount,
        "read_only": bool(system.f_flag & os.ST_RDONLY),
        "noexec": bool(system.f_flag & os.ST_NOEXEC),
    }


def model_folder(path):
    """What a folder of weights holds."""
    config = None
    with contextlib.suppress(ValueError):
        config = json.loads(read(path + "/config.json"))
    weights = glob.glob(glob.escape(ROOT + path) + "/*.safetensors")
    return {
        "exists": os.path.isdir(ROOT + path),
        "config": config if isinstance(config, dict) else None,
        "safetensors_bytes": sum(os.path.getsize(name) for name in weights if os.path.isfile(name)),
        "readable": all(open_to_all(name) for name in [ROOT + path + "/config.json"] + weights[:1]),
        "elsewhere_bytes": 0 if weights else elsewhere(path),
    }


#: Where weights for <store>/<org>/<repo>/<revision> may lie beside their place: on their way, or fetched by hand.
ELSEWHERE = (
    "{store}/.staging/{org}/{repo}/{revision}/*.safetensors*",
    "{store}/.incoming/{org}/{repo}/{revision}/*.safetensors",
    "{home}/.cache/huggingface/hub/models--{org}--{repo}/snapshots/*/*.safetensors",
    "{home}/.cache/modelscope/hub/{org}/{repo}/*.safetensors",
    "{home}/.cache/modelscope/hub/models/{org}/{repo}/*.safetensors",
)


def elsewhere(path):
    """Bytes of weights that need no more space, or will be linked: the fullest folder that may hold these."""
    parts = path.rstrip("/").rsplit("/", 3)
    if len(parts) < 4:
        return 0
    words = {key: glob.escape(part) for key, part in zip(("store", "org", "repo", "revision"), parts)}
    sizes: dict = {}
    for pattern in ELSEWHERE:
        for home in ("/root", "/home/*"):
            for name in glob.glob(glob.escape(ROOT) + pattern.format(home=home, **words)):
                folder = os.path.dirname(name)
                sizes.setdefault(folder, {})[os.path.realpath(name)] = os.path.getsize(name)
    return max([sum(files.values()) for files in sizes.values()] or [0])


def open_to_all(path):
    """Whether a service account can read a file: the file, and each folder on the way."""
    path = os.path.realpath(path)
    try:
        if not os.stat(path).st_mode & 0o004:
            return False
        while os.path.dirname(path) != path:
            path = os.path.dirname(path)
            if not os.stat(path).st_mode & 0o001:
                return False
    except OSError:
        return False
    return True


def listeners():
    """TCP ports somebody listens on: {port: [{address, process, unit, user}]}."""
    sockets_found = {}
    for path, width in (("/proc/net/tcp", 8), ("/proc/net/tcp6", 32)):
        for line in read(path).splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10 or fields[3] != "0A":
                continue
            address, port = fields[1].split(":")
            raw = bytes.fromhex(address)
            family = socket.AF_INET if width == 8 else socket.AF_INET6
            words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
            sockets_found[fields[9]] = (int(port, 16), socket.inet_ntop(family, words), int(fields[7]))
    owners: dict = {}
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in sockets_found:
            owners.setdefault(target[8:-1], link.split("/")[2])
    found: dict = {}
    for inode, (port, address, uid) in sockets_found.items():
        pid = owners.get(inode, "")
        found.setdefault(str(port), []).append(
            {
                "address": address,
                "process": read("/proc/%s/comm" % pid).strip() if pid else "",
                "unit": unit_of(pid) if pid else "",
                "user": user_name(uid),
            }
        )
    return found


def user_name(uid):
    """An account's name, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def active_units():
    """Units of ours that run. Where a root without all rights cannot see into processes, this and
    the account tell whose port it is."""
    status, out = run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "vllm@*", "litellm@*"]
    )
    return [line.split()[0] for line in out.splitlines() if line.strip()] if status == 0 else []


def version_of(command, pattern):
    """A program's version as text, or nothing where there is no such program."""
    found = re.search(pattern, run(command)[1])
    return found.group(1) if found else ""


def pythons():
    """Versions of the Pythons that uv would find, 3.8 and later; no release candidates, such as Ubuntu 22.04's 3.11."""
    found = []
    for name in ["3.%d" % minor for minor in range(8, 20)]:
        program = shutil.which("python" + name)
        if program and re.match(r"Python \d+\.\d+\.\d+\s*$", run([program, "--version"])[1]):
            found.append(name)
    return found


def glibc():
    """The C library's version, or nothing where it is another one."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
    except (ValueError, OSError, IndexError):
        return ""


# --- all of it ---------------------------------------------------------------------------------------------------


def probe(paths, models=()):
    """All of it. What cannot be read is empty, with the reason in `errors`."""
    errors = {}

    def fact(name, empty, function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # A fact of no importance here must not end the run on an unforeseen host.
            errors[name] = "%s: %s" % (type(error).__name__, error)
            return empty

    release = fact("os_release", {}, os_release)
    cpu = fact("cpu", {"model": "", "flags": [], "sockets": 0}, cpu_text, read("/proc/cpuinfo"))
    allowed = fact("cpus", [0], allowed_cpus)
    quota = fact("cpu_quota", 0, cpu_quota)
    memory_found = fact("memory", {"total": 0, "available": 0, "swap": 0, "engines": 0}, memory)
    nodes = fact("numa", [], numa, allowed, memory_found)
    memory_found = confined(memory_found, nodes) if nodes else memory_found
    smi = nvidia_smi()
    gpus, complaint, slow = fact("gpus", ([], "", False), probe_gpu.gpus, smi, run)
    # A driver that took too long for the short question is not asked the long one.
    details = fact("gpu_details", {}, probe_gpu.details, smi, run) if gpus else {}
    processes = fact("gpu_processes", [], probe_gpu.add_details, gpus, details, unit_of)
    displays, switches = fact("nvidia_devices", (0, 0), nvidia_pci)
    nvidia = fact("nvidia", {}, probe_nvidia.facts, run, read, paths_like)
    kernel = read("/proc/version")
    return {
        "distribution": release.get("ID", ""),
        "distribution_version": release.get("VERSION_ID", ""),
        "distribution_name": release.get("PRETTY_NAME", ""),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "cpu_model": cpu["model"],
        "cpu_flags": cpu["flags"],
        # A quota of 2.5 CPUs keeps three of them busy in turns.
        "cpu_count": min(len(allowed), -int(-quota // 1)) if quota else len(allowed),
        "cpu_quota": quota,
        "cpu_cores": fact("cpu_cores", 0, lambda: len(cores_of(allowed, allowed))),
        "cpu_sockets": fact("cpu_sockets", 1, sockets, allowed, cpu["sockets"]),
        "cpu_max_mhz": fact("cpu_max_mhz", 0, max_mhz, allowed, cpu["model"]),
        "numa": nodes,
        "memory": memory_found,
        "memory_devices": fact("memory_devices", {}, memory_devices),
        "gpus": gpus,
        "gpu_processes": processes,
        "nvidia_smi_complaint": complaint,
        "nvidia_smi_slow": slow,
        "nvidia_driver": fact("nvidia_driver", "", driver_version, gpus),
        "nvidia_devices": displays,
        # Of the fifth generation (HGX B200, B300) they are no PCI devices of NVIDIA's.
        "nvswitch": bool(switches) or bool(nvidia.get("bridges")),
        "fabricmanager": fact("fabricmanager", "absent", unit_state, "nvidia-fabricmanager.service"),
        "nvidia": nvidia,
        "disk": {
            path: fact("disk " + path, {"free": 0, "total": 0, "mount": path, "read_only": False}, disk, path)
            for path in paths
        },
        "paths": {
            path: fact(
                path, {"exists": False, "config": None, "safetensors_bytes": 0, "readable": False}, model_folder, path
            )
            for path in models
        },
        "glibc": fact("glibc", "", glibc),
        "systemd": fact("systemd", "", version_of, ["systemctl", "--version"], r"systemd (\d+)"),
        "systemd_is_init": os.path.isdir("/run/systemd/system"),
        "pythons": fact("pythons", [], pythons),
        "container": fact("container", "", container),
        "virtualization": fact("virtualization", "", virtualization),
        "wsl": "microsoft" in kernel.lower(),
        "firewall": fact("firewall", {"ufw": "absent", "firewalld": "absent", "open_ports": []}, firewall),
        "listeners": fact("listeners", {}, listeners),
        "docker": fact("docker", {}, probe_docker.facts, run, read),
        "system": fact("system", {}, probe_system.facts, run, read),
        "active_units": fact("active_units", [], active_units),
        "accounts": fact("accounts", [], lambda: [entry.pw_name for entry in pwd.getpwall()]),
        "is_root": os.geteuid() == 0,
        # Space that a first deployment needs is not asked for again.
        "deployed": os.path.exists("/opt/modelhost/bin/uv"),
        "errors": errors,
    }


def main():
    """Entry point."""
    folders = {"type": "list", "elements": "path"}
    module = AnsibleModule(
        argument_spec={"paths": dict(folders, default=["/"]), "models": dict(folders, default=[])},
        supports_check_mode=True,
    )
    module.exit_json(changed=False, probe=probe(module.params["paths"], module.params["models"]))


if __name__ == "__main__":
    main()
