"""apt's sources with a mirror in them, and without it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.modules import apt_mirror

ROOT = Path(__file__).resolve().parents[2]
UBUNTU = "https://mirrors.example/ubuntu"
DEBIAN = "https://mirrors.example/debian"
SECURITY = "https://mirrors.example/debian-security"

#: Ubuntu 18.04 to 22.04 as installed, with what people add.
JAMMY = """\
# See http://help.ubuntu.com/community/UpgradeNotes
deb http://de.archive.ubuntu.com/ubuntu/ jammy main restricted
# deb-src http://de.archive.ubuntu.com/ubuntu/ jammy main restricted
deb [arch=amd64] http://de.archive.ubuntu.com/ubuntu jammy-updates main # ours
deb http://security.ubuntu.com/ubuntu jammy-security main
deb http://ppa.launchpad.net/somebody/tools/ubuntu jammy main
deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.gpg] https://download.docker.com/linux/ubuntu jammy stable
deb cdrom:[Ubuntu-Server 22.04]/ jammy main"""
JAMMY_MIRRORED = """\
# See http://help.ubuntu.com/community/UpgradeNotes
deb https://mirrors.example/ubuntu jammy main restricted
# deb-src http://de.archive.ubuntu.com/ubuntu/ jammy main restricted
deb [arch=amd64] https://mirrors.example/ubuntu jammy-updates main # ours
deb https://mirrors.example/ubuntu jammy-security main
deb http://ppa.launchpad.net/somebody/tools/ubuntu jammy main
deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.gpg] https://download.docker.com/linux/ubuntu jammy stable
deb cdrom:[Ubuntu-Server 22.04]/ jammy main"""
#: Ubuntu 24.04.
NOBLE = """\
# Ubuntu sources have moved to /etc/apt/sources.list.d/ubuntu.sources
Types: deb
URIs: http://archive.ubuntu.com/ubuntu/
Suites: noble noble-updates noble-backports
Components: main universe
Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg

Types: deb
URIs: http://security.ubuntu.com/ubuntu/
Suites: noble-security
Components: main universe
Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg
"""
#: Debian 12 in the cloud; the addresses stand in a file of their own.
CLOUD = """\
Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: bookworm-security
Components: main
"""
BULLSEYE = """\
deb http://deb.debian.org/debian bullseye main
deb http://security.debian.org bullseye-security main
deb http://deb.debian.org/debian-security/ bullseye-security main
"""


def rewritten(name: str, text: str, mirror: str = "", security: str = "", keyring: str = "") -> str:
    mirrors = {"mirror": mirror, "security_mirror": security, "keyring": keyring}
    return apt_mirror.rewritten(name, text, mirrors)


def test_lines() -> None:
    assert rewritten("sources.list", JAMMY, UBUNTU + "/") == JAMMY_MIRRORED
    other = rewritten("sources.list", JAMMY, UBUNTU, "https://other.example/ubuntu")
    assert "deb https://other.example/ubuntu jammy-security main" in other
    only = rewritten("sources.list", JAMMY, "", "https://other.example/ubuntu")
    assert only == JAMMY.replace("http://security.ubuntu.com/ubuntu", "https://other.example/ubuntu")


def test_stanzas() -> None:
    text = rewritten("ubuntu.sources", NOBLE, UBUNTU)
    assert text == NOBLE.replace("http://archive.ubuntu.com/ubuntu/", UBUNTU).replace(
        "http://security.ubuntu.com/ubuntu/", UBUNTU
    )
    text = rewritten("debian.sources", CLOUD, DEBIAN, SECURITY)
    assert f"URIs: {DEBIAN}\nSuites: bookworm bookworm-updates\n" in text
    assert f"URIs: {SECURITY}\nSuites: bookworm-security\n" in text


def test_security_of_debian_has_a_mirror_of_its_own() -> None:
    assert rewritten("sources.list", BULLSEYE, DEBIAN) == BULLSEYE.replace(
        "http://deb.debian.org/debian b", f"{DEBIAN} b"
    )
    text = rewritten("sources.list", BULLSEYE, DEBIAN, SECURITY)
    assert text.count(f"deb {SECURITY} bullseye-security main\n") == 2
    old = "deb http://deb.debian.org/debian buster/updates main\n"
    assert rewritten("sources.list", old, DEBIAN) == old


def test_ports_go_to_a_mirror_of_ports() -> None:
    archive = "http://ports.ubuntu.com/ubuntu-ports"
    ports = f"deb {archive} jammy main\ndeb {archive} jammy-security main\n"
    assert rewritten("sources.list", ports, UBUNTU) == ports
    mirror = "https://mirrors.example/ubuntu-ports"
    assert rewritten("sources.list", ports, mirror) == ports.replace(archive, mirror)
    assert rewritten("sources.list", JAMMY, mirror) == JAMMY


def test_a_mirror_that_signs_anew() -> None:
    ring = "/etc/apt/keyrings/modelhost-mirror.asc"
    text = rewritten("sources.list", JAMMY, UBUNTU, keyring=ring)
    assert f"deb [signed-by={ring}] {UBUNTU} jammy main restricted" in text
    assert f"deb [arch=amd64 signed-by={ring}] {UBUNTU} jammy-updates main # ours" in text
    assert "signed-by=/etc/apt/keyrings/docker.gpg" in text
    text = rewritten("ubuntu.sources", NOBLE, UBUNTU, keyring=ring)
    assert text.count(f"Signed-By: {ring}\n") == 2
    text = rewritten("debian.sources", CLOUD, DEBIAN, keyring=ring)
    assert text.count("Signed-By") == 1
    assert text.startswith(f"Types: deb deb-src\nSigned-By: {ring}\nURIs: {DEBIAN}\n")


def module(folder: Path, check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {"apt_dir": str(folder / "apt"), "keep": str(folder / "keep"), "_ansible_check_mode": check, **options}
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/apt_mirror.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
        env={**os.environ, "_ANSIBLE_TEST": "1", "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "apt/sources.list").write_text(JAMMY)
    (tmp_path / "apt/sources.list.d/ubuntu.sources").write_text(NOBLE)
    (tmp_path / "apt/sources.list.d/nvidia.list").write_text("deb http://nvidia.example/ubuntu /\n")
    return tmp_path


def test_there_and_back(host: Path) -> None:
    sources = host / "apt/sources.list"
    assert module(host, check=True, mirror=UBUNTU)["changed"]
    assert sources.read_text() == JAMMY
    first = module(host, mirror=UBUNTU)
    assert len(first["files"]) == len(first["diff"]) == 2
    assert sources.read_text() == JAMMY_MIRRORED
    assert (host / "keep/sources.list").read_text() == JAMMY
    assert not module(host, mirror=UBUNTU)["changed"]
    assert module(host, mirror="https://second.example/ubuntu")["changed"]
    assert (host / "keep/sources.list").read_text() == JAMMY
    assert module(host, check=True)["changed"]
    assert module(host)["changed"]
    assert sources.read_text() == JAMMY
    assert (host / "apt/sources.list.d/ubuntu.sources").read_text() == NOBLE
    assert not module(host)["changed"]
    assert not [path for path in (host / "keep").rglob("*") if path.is_file()]
    assert "nvidia.example" in (host / "apt/sources.list.d/nvidia.list").read_text()


def test_what_somebody_changed_stays(host: Path) -> None:
    sources = host / "apt/sources.list"
    module(host, mirror=UBUNTU)
    sources.write_text(sources.read_text().replace("jammy", "noble") + "\ndeb http://own.example/debs ./\n")
    assert not module(host, mirror=UBUNTU)["changed"]
    assert module(host)["changed"]
    text = sources.read_text()
    assert "deb http://own.example/debs ./\n" in text
    assert "deb http://de.archive.ubuntu.com/ubuntu noble main restricted\n" in text
    assert UBUNTU not in text


def test_a_run_that_breaks_off_loses_nothing(host: Path) -> None:
    module(host, mirror=UBUNTU)
    (host / "keep/mirrors.json").unlink()
    assert not module(host, mirror=UBUNTU)["changed"]
    module(host)
    assert (host / "apt/sources.list").read_text() == JAMMY


def test_no_password_in_a_file_that_everyone_reads(host: Path) -> None:
    assert "password" in module(host, mirror="https://bob:hunter2@mirrors.example/ubuntu")["msg"]
