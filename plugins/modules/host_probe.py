#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: what a host has, as far as this project cares. Changes nothing."""

from __future__ import annotations

import glob
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_probe
author: the modelhost authors
short_description: What a host has
description:
  - Reads distribution, architecture, CPU flags, memory, disk, C library, Python, systemd, NVIDIA
    driver and who listens on which TCP port. Changes nothing and needs no package.
options:
  paths:
    description: Folders whose file systems are asked for free space. Folders that do not exist count as
      their nearest existing parent.
    type: list
    elements: path
    default: [/]
"""
EXAMPLES = r"""
- name: Look at the host
  modelhost.serving.host_probe:
    paths: [/opt, /var/lib/modelhost/models]
  register: probe
"""
RETURN = r"""
probe:
  description: What was found; memory and disk in bytes.
  returned: always
  type: dict
"""


def read(path):
    """A file's text, or nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def os_release():
    """/etc/os-release as a dictionary."""
    found = {}
    for line in read("/etc/os-release").splitlines():
        name, _sep, value = line.partition("=")
        found[name] = value.strip('"')
    return found


def memory():
    """Total and available memory in bytes; a container's own limit counts."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", read("/proc/meminfo"), re.M))
    total, available = int(found.get("MemTotal", 0)) * 1024, int(found.get("MemAvailable", 0)) * 1024
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = read(path).strip()
        if limit.isdigit() and int(limit) < total:
            total = int(limit)
    return {"total": total, "available": min(total, available)}


def disk(path):
    """Free bytes of the file system that holds a path, and which mount that is."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    mount = os.path.realpath(path)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    return {"free": shutil.disk_usage(path).free, "mount": mount}


def listeners():
    """TCP ports somebody listens on: {port: [{address, process, unit}]}."""
    sockets = {}
    for path, width in (("/proc/net/tcp", 8), ("/proc/net/tcp6", 32)):
        for line in read(path).splitlines()[1:]:
            fields = line.split()
            if fields[3] != "0A":
                continue
            address, port = fields[1].split(":")
            raw = bytes.fromhex(address)
            family = socket.AF_INET if width == 8 else socket.AF_INET6
            words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
            sockets[fields[9]] = (int(port, 16), socket.inet_ntop(family, words), int(fields[7]))
    owners: dict = {}
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in sockets:
            owners.setdefault(target[8:-1], link.split("/")[2])
    found: dict = {}
    for inode, (port, address, uid) in sockets.items():
        pid = owners.get(inode, "")
        units = re.findall(r"([^/\n]+\.service)", read("/proc/%s/cgroup" % pid)) if pid else []
        found.setdefault(str(port), []).append(
            {
                "address": address,
                "process": read("/proc/%s/comm" % pid).strip() if pid else "",
                "unit": units[-1] if units else "",
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
    try:
        out = subprocess.run(
            ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "vllm@*", "litellm@*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split()[0] for line in out.splitlines() if line.strip()]


def version_of(command, pattern):
    """A program's version as text, or nothing where there is no such program."""
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(pattern, out)
    return found.group(1) if found else ""


def pythons():
    """Versions of the Pythons that uv would find, 3.8 and later."""
    found = []
    for minor in range(8, 16):
        if shutil.which("python3.%d" % minor):
            found.append("3.%d" % minor)
    return found


def probe(paths):
    """All of it."""
    release = os_release()
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", read("/proc/cpuinfo"), re.M)
    return {
        "distribution": release.get("ID", ""),
        "distribution_version": release.get("VERSION_ID", ""),
        "distribution_name": release.get("PRETTY_NAME", ""),
        "architecture": platform.machine(),
        "cpu_model": "".join(re.findall(r"^model name\s*:\s*(.*)$", read("/proc/cpuinfo"), re.M)[:1]),
        "cpu_flags": flags.group(1).split() if flags else [],
        "cpu_count": os.cpu_count(),
        "memory": memory(),
        "disk": {path: disk(path) for path in paths},
        "glibc": (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
        if "CS_GNU_LIBC_VERSION" in os.confstr_names
        else "",
        "systemd": version_of(["systemctl", "--version"], r"systemd (\d+)"),
        "systemd_is_init": os.path.isdir("/run/systemd/system"),
        "pythons": pythons(),
        "nvidia_driver": "".join(
            re.findall(r"Kernel Module.*?\s(\d+\.\d+[.\d]*)", read("/proc/driver/nvidia/version"))[:1]
        ),
        "wsl": "microsoft" in read("/proc/version").lower(),
        "listeners": listeners(),
        "active_units": active_units(),
        "accounts": [entry.pw_name for entry in pwd.getpwall()],
        "is_root": os.geteuid() == 0,
        # Space that a first deployment needs is not asked for again.
        "deployed": os.path.exists("/opt/modelhost/bin/uv"),
    }


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "default": ["/"]}}, supports_check_mode=True
    )
    module.exit_json(changed=False, probe=probe(module.params["paths"]))


if __name__ == "__main__":
    main()
