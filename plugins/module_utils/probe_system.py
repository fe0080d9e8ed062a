# MIT licence (see LICENSE)
"""Facts of the operating system for host_probe. Runs on hosts, under an old Python too; any fact may be missing."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

#: Packages that roles install or would rather find there.
PACKAGES = (
    "ca-certificates",
    "containerd.io",
    "docker-ce",
    "docker.io",
    "gpg",
    "libgomp1",
    "libnuma1",
    "procps",
    "python3-apt",
    "python3-distutils",
    "python3-venv",
)
#: What apt and dpkg touch whenever they work: a clock before that is wrong.
LAST_WORK = "/var/lib/dpkg/status"


def facts(run: Any, read: Any) -> dict:
    """All of it. run(command) -> (status, text); read(path) -> text or nothing."""
    return {
        "python": "%d.%d.%d" % sys.version_info[:3],
        "interpreter": sys.executable or "",
        # Ansible's modules for packages fall back on this one, because python3-apt is made for it.
        "system_python": first(r"Python (\d+\.\d+\.\d+)", run(["/usr/bin/python3", "--version"])[1]),
        "apt": first(r"^apt (\S+)", run(["apt-get", "--version"])[1]),
        "packages": packages(run),
        "cgroup": cgroup(read),
        "apparmor": read("/sys/module/apparmor/parameters/enabled").strip() == "Y",
        "selinux": {"1": "enforcing", "0": "permissive"}.get(read("/sys/fs/selinux/enforce").strip(), ""),
        "clock": int(time.time()),
        "clock_behind": behind(LAST_WORK),
        "clock_synchronized": synchronized(run),
        "locale": first(r"^LANG=\"?([^\"\n]+)", read("/etc/default/locale") or read("/etc/locale.conf")),
        "archives": archives(read),
        "proxies": proxies(read),
    }


def first(pattern: str, text: str) -> str:
    """The first group of a pattern, or nothing."""
    found = re.search(pattern, text, re.M)
    return found.group(1) if found else ""


def packages(run: Any) -> dict | None:
    """Those of PACKAGES that are installed, and every Python's venv, with their versions; None without dpkg."""
    names = [*PACKAGES, *("python3.%d-venv" % minor for minor in range(8, 20))]
    # 1: some are unknown, and the others are told all the same.
    status, text = run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n", *names])
    if status not in (0, 1):
        return None
    return dict(re.findall(r"^installed (\S+) (\S+)$", text, re.M))


def cgroup(read: Any) -> str:
    """v1, v2, or nothing."""
    if read("/sys/fs/cgroup/cgroup.controllers"):
        return "v2"
    return "v1" if re.search(r"^\S+ /sys/fs/cgroup/\S* cgroup ", read("/proc/mounts"), re.M) else ""


def behind(path: str) -> int:
    """Seconds by which the clock is behind the last work on a file, or 0."""
    try:
        return max(0, int(os.path.getmtime(path) - time.time()))
    except OSError:
        return 0


def synchronized(run: Any) -> bool | None:
    """Whether somebody keeps the clock; None where nobody can tell."""
    for name in ("NTPSynchronized", "SystemClockSynchronized"):
        found = re.search(r"=?(yes|no)\s*$", run(["timedatectl", "show", "-p", name, "--value"])[1].strip())
        if found:
            return found.group(1) == "yes"
    # systemd before 239 has no `show`.
    told = first(r"(?:clock synchronized|NTP synchronized): (yes|no)", run(["timedatectl", "status"])[1])
    return told == "yes" if told else None


def archives(read: Any) -> list:
    """Hosts that apt takes the distribution's packages from."""
    text = "\n".join(
        read("/etc/apt/" + name)
        for name in ("sources.list", "sources.list.d/debian.sources", "sources.list.d/ubuntu.sources")
    )
    lines = re.findall(r"^(?:deb\s|URIs:)(.*)$", text, re.M)
    return sorted({host for line in lines for host in re.findall(r"://(?:[^/@\s]*@)?([^/\s]+)", line)})


def proxies(read: Any) -> list:
    """Names of proxy variables that the host sets for everybody; without values, which may hold passwords."""
    text = read("/etc/environment") + "\n" + read("/etc/profile.d/proxy.sh")
    return sorted({name.lower() for name in re.findall(r"^\s*(?:export\s+)?(https?_proxy)=\S", text, re.M | re.I)})
