"""What probe_system makes of a system's files and programs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import probe_system

FILES = {
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "/sys/module/apparmor/parameters/enabled": "Y\n",
    "/sys/fs/selinux/enforce": "",
    "/etc/default/locale": 'LANG="de_DE.UTF-8"\n',
    "/etc/apt/sources.list": "# deb http://old.example/ubuntu jammy main\n"
    "deb https://me:secret@mirrors.example/ubuntu jammy main\ndeb-src http://sources.example/ubuntu jammy main\n",
    "/etc/apt/sources.list.d/ubuntu.sources": "Types: deb\nURIs: http://archive.ubuntu.com/ubuntu/\n",
    "/etc/environment": 'PATH="/usr/bin"\nHTTP_PROXY=http://me:secret@proxy:3128\nhttps_proxy=\n',
    "/etc/profile.d/proxy.sh": "export https_proxy=http://me:secret@proxy:3128\n#export http_proxy=x\n",
}
ANSWERS = {
    "apt-get": (0, "apt 1.6.17 (amd64)\nSupported modules:\n"),
    "/usr/bin/python3": (0, "Python 3.6.9\n"),
    "dpkg-query": (
        1,
        "installed ca-certificates 20230311\ndpkg-query: no packages found matching docker-ce\n"
        "config-files docker.io 20.10.21\ninstalled python3.8-venv 3.8.0-3ubuntu1~18.04.2\n",
    ),
    "timedatectl": (0, "yes\n"),
}


def run(command: list[str]) -> tuple[int, str]:
    return ANSWERS.get(command[0], (-1, "no such file"))


def read(path: str) -> str:
    return FILES.get(path, "")


def test_all_of_it() -> None:
    found = probe_system.facts(run, read)
    assert found["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert found["interpreter"] == sys.executable
    assert found["system_python"] == "3.6.9"
    assert found["apt"] == "1.6.17"
    assert found["packages"] == {"ca-certificates": "20230311", "python3.8-venv": "3.8.0-3ubuntu1~18.04.2"}
    assert (found["cgroup"], found["apparmor"], found["selinux"]) == ("v2", True, "")
    assert found["clock_synchronized"] is True
    assert found["locale"] == "de_DE.UTF-8"
    assert found["archives"] == ["archive.ubuntu.com", "mirrors.example"]
    assert found["proxies"] == ["http_proxy", "https_proxy"]
    assert "secret" not in str(found)


def test_a_system_that_says_nothing() -> None:
    found = probe_system.facts(lambda _command: (-1, "no such file"), lambda _path: "")
    assert found["packages"] is None
    assert (found["apt"], found["system_python"], found["cgroup"], found["locale"]) == ("", "", "", "")
    assert found["clock_synchronized"] is None
    assert found["proxies"] == found["archives"] == []


@pytest.mark.parametrize(
    ("told", "meant"), [("NTP synchronized: no\n", False), ("System clock synchronized: yes\n", True)]
)
def test_the_clock_of_an_old_systemd(told: str, meant: bool) -> None:
    def old(command: list[str]) -> tuple[int, str]:
        return (1, "Unknown operation show.") if "show" in command else (0, "      Local time: …\n" + told)

    assert probe_system.synchronized(old) is meant


def test_old_control_groups() -> None:
    mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    assert probe_system.cgroup(lambda path: mounts if path == "/proc/mounts" else "") == "v1"


def test_a_clock_before_the_last_work(tmp_path: Path) -> None:
    path = tmp_path / "status"
    path.write_text("")
    assert probe_system.behind(str(path)) == 0
    os.utime(path, (time.time() + 100_000,) * 2)
    assert 99_000 < probe_system.behind(str(path)) <= 100_000
    assert probe_system.behind(str(tmp_path / "gone")) == 0
