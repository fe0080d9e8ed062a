"""The role accelerator, provider nvidia, on three hosts whose machines are stand-ins (molecule/accelerator/README.md).

One story in order: nothing there, check mode, a wrong key, installed, restarted, again, old and broken states, removed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
#: Tasks that change nothing show too: some tests look which of them ran.
ANSIBLE = {
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_FORCE_COLOR": "false",
    "ANSIBLE_DISPLAY_OK_HOSTS": "true",
}
INVENTORY = os.environ.get("MODELHOST_INVENTORY", str(ROOT / "molecule/accelerator/inventory"))
PIN = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))["nvidia"]
DRIVER, TOOLKIT = PIN["driver"]["version"], PIN["toolkit"]["version"]
OLD = "570.86.15"
#: What Ubuntu's archive has later: molecule/accelerator/build.py.
LATER, KERNEL = "580.180.11", "6.8.0-117-generic"
#: What brings new kernels.
KERNELS = {
    "linux-generic",
    "linux-image-generic",
    "linux-headers-generic",
    "linux-modules-nvidia-580-server-open-generic",
}
DEBIAN, UBUNTU, WSL = "modelhost-gpu-debian", "modelhost-gpu-ubuntu", "modelhost-gpu-wsl"
#: The toolkit is installed where engines run in containers. No container runs here: docker_engine's tasks and the
#: engines' are left out, and the image is a name.
CONTAINERS = {"vllm_runtime": "docker", "vllm_image": f"registry.invalid/vllm@sha256:{'0' * 64}"}
LOOK, PROVISION = "playbooks/preflight.yml", "playbooks/provision.yml"


@dataclass
class Run:
    """How ansible-playbook ended."""

    code: int
    output: str

    @property
    def said(self) -> str:
        """Its output on one line, without the indentation and line breaks of long messages."""
        return " ".join(self.output.split())

    def count(self, host: str, what: str) -> int:
        """A number of the recaps: changed, failed, …"""
        return sum(int(number) for number in re.findall(rf"^{host} .*\b{what}=(\d+)", self.output, re.M))


def play(playbooks: list[str], hosts: list[str], *arguments: str, **variables: Any) -> Run:
    """ansible-playbook on these hosts, with this role's tasks only."""
    command = ["ansible-playbook", "-i", INVENTORY, *playbooks, "--limit", ",".join(hosts), *arguments]
    command += ["--tags", "host_preflight,accelerator", "-e", json.dumps(variables)]
    environment = {**os.environ, **ANSIBLE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout + done.stderr)


def judged(hosts: list[str], **variables: Any) -> Run:
    """The whole preflight, whose report has no tag."""
    command = ["ansible-playbook", "-i", INVENTORY, LOOK, "--limit", ",".join(hosts), "-e", json.dumps(variables)]
    environment = {**os.environ, **ANSIBLE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout + done.stderr)


def shell(host: str, script: str) -> str:
    """A script on a host."""
    done = subprocess.run(["docker", "exec", host, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def machine(host: str, **values: Any) -> None:
    """Change what the stand-in says of the machine."""
    for name, value in values.items():
        shell(host, f"sed -i '/^{name}=/d' /srv/machine/is; [ -z '{value}' ] || echo {name}={value} >>/srv/machine/is")
    shell(host, "machine show")


def packages(host: str) -> dict[str, str]:
    """NVIDIA's packages with their versions."""
    out = shell(
        host, r"dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\n' '*nvidia*' libcuda1 2>/dev/null || true"
    )
    return dict(re.findall(r"^(\S+) (\S+) [hi]i", out, re.M))


def held(host: str) -> set[str]:
    return set(shell(host, "apt-mark showhold").split())


def loaded(host: str) -> str:
    found = re.search(r"Module.*?  (\S+)", shell(host, "cat /proc/driver/nvidia/version 2>/dev/null || true"))
    return found.group(1) if found else ""


def unit(host: str, name: str) -> str:
    return shell(host, f"systemctl is-active {name} || true")


def files(host: str) -> str:
    """What the role may leave behind."""
    return shell(
        host,
        "ls -d /etc/apt/sources.list.d/modelhost-nvidia* /etc/apt/keyrings/modelhost-nvidia* /etc/cdi/* /var/run/cdi/* "
        "/etc/apt/preferences.d/modelhost* /var/lib/modelhost/accelerator/* /etc/modprobe.d/modelhost* "
        "/etc/modules-load.d/modelhost* /etc/systemd/system/nvidia-*.d 2>/dev/null || true",
    )


def archive(host: str, name: str) -> None:
    """Ubuntu's archive as it is from now on."""
    source = f"deb [trusted=yes] file:///srv/apt/{name} ./"
    lists = "/etc/apt/sources.list.d"
    shell(host, f"rm {lists}/*archive*; echo '{source}' >{lists}/archive.list; apt-get update -qq")


def test_check_mode_on_bare_hosts_changes_nothing() -> None:
    done = play([LOOK, PROVISION], [DEBIAN, UBUNTU, WSL], "--check", "--diff", **CONTAINERS)
    assert done.code == 0, done.output
    for host in (DEBIAN, UBUNTU, WSL):
        assert done.count(host, "changed") > 0, done.output
        assert (packages(host), files(host), held(host)) == ({}, "", set())


def test_a_key_with_a_wrong_fingerprint_is_refused() -> None:
    wrong = "0" * 40
    done = play(
        [LOOK, PROVISION],
        [DEBIAN, WSL],
        **CONTAINERS,
        accelerator_nvidia_repository_fingerprints=[wrong],
        accelerator_nvidia_toolkit_repository_fingerprints=[wrong],
    )
    assert done.code != 0
    for host in (DEBIAN, WSL):
        assert done.count(host, "failed") == 1, done.output
        assert "modelhost-nvidia" not in files(host)
        assert packages(host) == {}
    assert done.said.count("holds a key that is not the expected one, so nothing was written") >= 2
    assert "Wanted: 0000 0000" in done.said


def test_fresh_hosts() -> None:
    done = play([LOOK, PROVISION], [DEBIAN, UBUNTU, WSL], **CONTAINERS)
    assert done.code != 0, "a restart is needed on one of them, and not allowed"
    assert (done.count(DEBIAN, "failed"), done.count(UBUNTU, "failed"), done.count(WSL, "failed")) == (1, 0, 0), (
        done.output
    )

    # Debian: everything but the restart.
    assert (
        "the kernel's own driver nova_core holds the GPUs, so this host has to be restarted, and "
        "accelerator_allow_reboot is "
        "false. Everything else is done." in done.said
    )
    there = packages(DEBIAN)
    driver = {
        "libcuda1",
        "nvidia-driver-cuda",
        "nvidia-kernel-open-dkms",
        "nvidia-persistenced",
        "nvidia-modprobe",
        "nvidia-fabricmanager",
    }
    assert {name: there[name] for name in driver} == dict.fromkeys(driver, f"{DRIVER}-1")
    assert {there[name] for name in set(there) - driver} == {f"{TOOLKIT}-1"}
    assert held(DEBIAN) == set(there)
    assert loaded(DEBIAN) == ""
    assert shell(DEBIAN, "systemctl is-enabled nvidia-fabricmanager") == "enabled"

    # Ubuntu under Secure Boot: signed modules for this kernel and for those to come; loaded without a restart.
    there = packages(UBUNTU)
    kernel = shell(UBUNTU, "uname -r")
    assert f"linux-modules-nvidia-580-server-open-{kernel}" in there
    assert "linux-modules-nvidia-580-server-open-generic" in there
    assert not [name for name in there if "dkms" in name and "no-dkms" not in name]
    assert loaded(UBUNTU) == DRIVER
    assert {"nvidia-utils-580-server", "libnvidia-compute-580-server"} <= held(UBUNTU)
    assert held(UBUNTU) >= KERNELS
    assert unit(UBUNTU, "nvidia-persistenced") == "active"
    assert "--no-persistence-mode" in shell(UBUNTU, "cat /lib/systemd/system/nvidia-persistenced.service")
    started = shell(UBUNTU, "systemctl show -p ExecStart nvidia-persistenced")
    assert "--verbose" in started
    assert "--no-persistence-mode" not in started
    described = shell(UBUNTU, "cat /run/cdi/nvidia.yaml")
    assert f"libcuda.so.{DRIVER}" in described
    assert "/dev/nvidia-uvm" in described
    assert "modelhost-nvidia-cuda" not in files(UBUNTU)
    assert "Report what the new drivers show" in done.output

    # WSL: the toolkit, and nothing of a driver.
    assert set(packages(WSL)) == {
        "nvidia-container-toolkit",
        "nvidia-container-toolkit-base",
        "libnvidia-container-tools",
        "libnvidia-container1",
    }
    assert "and one inside would hide it" in done.said
    assert "nvidia.com/gpu" in shell(WSL, "cat /run/cdi/nvidia.yaml")
    assert unit(WSL, "nvidia-cdi-refresh.service") == "inactive", "it does its work and ends, as the real one does"
    for host in (DEBIAN, UBUNTU, WSL):
        assert shell(host, "ls /etc/docker 2>/dev/null || true") == ""


def test_a_second_run_changes_nothing_and_still_asks_for_the_restart() -> None:
    done = play([LOOK, PROVISION], [DEBIAN, UBUNTU, WSL], **CONTAINERS)
    assert "this host has to be restarted" in done.said
    assert [done.count(host, "changed") for host in (DEBIAN, UBUNTU, WSL)] == [0, 0, 0], done.output


def test_the_restart_when_it_is_allowed() -> None:
    before = shell(DEBIAN, "cat /proc/sys/kernel/random/boot_id")
    done = play([LOOK, PROVISION], [DEBIAN], **CONTAINERS, accelerator_allow_reboot=True)
    assert done.code == 0, done.output
    assert shell(DEBIAN, "cat /proc/sys/kernel/random/boot_id") != before
    assert loaded(DEBIAN) == DRIVER
    assert (unit(DEBIAN, "nvidia-fabricmanager"), unit(DEBIAN, "nvidia-persistenced")) == ("active", "active")
    # No rule of udev's makes it there.
    assert "/dev/nvidia-uvm" in shell(DEBIAN, "ls /dev/nvidia-uvm; cat /run/cdi/nvidia.yaml")
    assert "nvidia-uvm" in shell(DEBIAN, "cat /etc/modules-load.d/modelhost-nvidia.conf")
    assert f"libcuda.so.{DRIVER}" in shell(DEBIAN, "cat /run/cdi/nvidia.yaml")

    again = play([LOOK, PROVISION], [DEBIAN], **CONTAINERS, accelerator_allow_reboot=True)
    assert (again.code, again.count(DEBIAN, "changed")) == (0, 0), again.output
    assert "works and is new enough" in again.said


def test_an_update_of_the_host_brings_no_kernel_without_a_driver() -> None:
    """What unattended-upgrades does, once the archive has another driver and another kernel."""
    archive(UBUNTU, "ubuntu-later")
    upgrade = "apt-get --simulate --assume-yes dist-upgrade"
    assert KERNEL not in shell(UBUNTU, upgrade)
    kernels = " ".join(KERNELS)
    free = shell(UBUNTU, f"apt-mark unhold {kernels} >/dev/null; {upgrade}; apt-mark hold {kernels} >/dev/null")
    assert f"Inst linux-image-{KERNEL}" in free, "without the hold it comes, and the driver's modules for it do not"
    assert f"Inst linux-modules-nvidia-580-server-open-{KERNEL}" not in free


def test_an_update_moves_driver_and_kernel_together() -> None:
    """The archive's later driver has no modules for the running kernel."""
    done = play(
        [PROVISION],
        [UBUNTU],
        accelerator_nvidia_driver_version=LATER,
        accelerator_nvidia_replace_driver=True,
        accelerator_allow_reboot=True,
    )
    assert done.code == 0, done.output
    assert "modules: newest: linux-image-generic linux-modules-nvidia-580-server-open-generic" in done.said
    assert loaded(UBUNTU) == LATER
    assert f"linux-modules-nvidia-580-server-open-{KERNEL}" in packages(UBUNTU)
    assert held(UBUNTU) >= KERNELS


def test_an_old_driver_is_named_and_stays_unless_asked() -> None:
    names = (
        "libcuda1 nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced nvidia-modprobe nvidia-fabricmanager"
    )
    wanted = " ".join(f"{name}={OLD}-1" for name in names.split())
    apt = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --allow-downgrades --allow-change-held-packages"
    shell(
        DEBIAN,
        f"{apt} {wanted} && apt-mark unhold {names}; systemctl stop nvidia-fabricmanager; systemctl restart machine",
    )
    shell(DEBIAN, "systemctl restart nvidia-fabricmanager && systemd-run --quiet --unit=vllm@coder sleep infinity")
    assert loaded(DEBIAN) == OLD
    machine(UBUNTU, SHOWN=1)

    # Both hosts are named at once.
    done = judged([DEBIAN, UBUNTU], accelerator_nvidia_expected_gpus=2)
    assert done.code != 0
    assert f"NVIDIA driver = '{OLD}'" in done.said
    assert "a driver that works is not replaced unasked" in done.said
    assert "set accelerator_nvidia_replace_driver: true" in done.said
    assert "accelerator_nvidia_expected_gpus = 2 this host shows 1 GPU(s) of 2" in done.said
    machine(UBUNTU, SHOWN="")

    # Nothing is done to it, nor below a running engine where the host may not be restarted.
    kept = play([PROVISION], [DEBIAN])
    assert (kept.code, loaded(DEBIAN), unit(DEBIAN, "nvidia-fabricmanager")) == (0, OLD, "active"), kept.output
    refused = play([PROVISION], [DEBIAN], accelerator_nvidia_replace_driver=True)
    assert refused.code != 0
    assert "replacing the driver stops vllm@coder.service until the host was restarted" in refused.said
    assert (packages(DEBIAN)["nvidia-driver-cuda"], unit(DEBIAN, "vllm@coder")) == (f"{OLD}-1", "active")


def test_an_old_driver_is_replaced_when_asked() -> None:
    done = play([PROVISION], [DEBIAN], accelerator_nvidia_replace_driver=True, accelerator_allow_reboot=True)
    assert done.code == 0, done.output
    assert loaded(DEBIAN) == DRIVER
    assert {packages(DEBIAN)[name] for name in ("nvidia-driver-cuda", "nvidia-fabricmanager", "libcuda1")} == {
        f"{DRIVER}-1"
    }
    assert {"nvidia-driver-cuda", "nvidia-fabricmanager"} <= held(DEBIAN)
    assert (unit(DEBIAN, "nvidia-fabricmanager"), unit(DEBIAN, "vllm@coder")) == ("active", "inactive")


def test_a_wrong_fabric_manager_is_replaced() -> None:
    apt = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --allow-downgrades --allow-change-held-packages"
    shell(DEBIAN, f"{apt} nvidia-fabricmanager={OLD}-1 && systemctl restart nvidia-fabricmanager || true")
    assert unit(DEBIAN, "nvidia-fabricmanager") != "active", (
        "the stand-in refuses another version, as the real one does"
    )
    done = play([PROVISION], [DEBIAN])
    assert done.code == 0, done.output
    assert packages(DEBIAN)["nvidia-fabricmanager"] == f"{DRIVER}-1"
    assert "nvidia-fabricmanager" in held(DEBIAN)
    assert unit(DEBIAN, "nvidia-fabricmanager") == "active"


def test_it_removes_what_it_installed_and_nothing_else() -> None:
    done = play([PROVISION], [DEBIAN, UBUNTU, WSL], accelerator_state="absent")
    assert done.code == 0, done.output
    for host in (DEBIAN, UBUNTU, WSL):
        assert (packages(host), held(host), files(host)) == ({}, set(), ""), host
    assert "linux-image-generic" in shell(UBUNTU, "dpkg-query -W -f '${Package}\n'")
    again = play([PROVISION], [DEBIAN, UBUNTU, WSL], accelerator_state="absent")
    assert [again.count(host, "changed") for host in (DEBIAN, UBUNTU, WSL)] == [0, 0, 0], again.output


def test_what_stands_in_the_way_is_told_before_anything_is_done() -> None:
    # As after a restart without the driver; a package that somebody holds, and an NVSwitch of no account.
    shell(
        UBUNTU,
        "apt-get install -y -qq nvidia-fabricmanager-570 && apt-mark hold nvidia-fabricmanager-570; "
        "systemctl restart machine",
    )
    done = judged([UBUNTU], accelerator_nvidia_driver_source="nvidia")
    assert done.code != 0
    assert "Secure Boot = 'enabled' Secure Boot is on, and the kernel refuses modules that are built here" in done.said
    assert "set accelerator_nvidia_driver_source: distribution (Ubuntu signs its modules)" in done.said
    assert "these packages are held at another version: nvidia-fabricmanager-570" in done.said
    refused = play([PROVISION], [UBUNTU], accelerator_nvidia_driver_source="nvidia")
    assert refused.code != 0
    assert "these packages are held at another version: nvidia-fabricmanager-570" in refused.said
    assert set(packages(UBUNTU)) == {"nvidia-fabricmanager-570"}


def test_a_kernel_whose_modules_fit_no_driver_any_more() -> None:
    """A server installed from last quarter's image: its kernel's signed modules stay in the archive and fit no more."""
    shell(
        UBUNTU, "apt-get purge -y -qq --allow-change-held-packages nvidia-fabricmanager-570; systemctl restart machine"
    )
    refused = play([PROVISION], [UBUNTU])
    assert refused.code != 0
    assert f"apt can install {LATER} with modules for no kernel of this host" in refused.said
    assert "signed: linux-modules-nvidia-580-server-open" in refused.said
    assert f"Depends: nvidia-kernel-common-580-server (<= {DRIVER}-0ubuntu0.24.04.1)" in refused.said
    assert (
        "set accelerator_allow_reboot: true, and the run installs the newest kernel and restarts the host"
        in refused.said
    )
    assert "Secure Boot is on. Enrol the key" in refused.said
    assert packages(UBUNTU) == {}, "nothing was installed"

    # What is built here is taken where the kernel would load it.
    machine(UBUNTU, SECURE_BOOT="")
    built = play([PROVISION], [UBUNTU], "--check")
    assert built.code == 0, built.output
    assert "modules: built: nvidia-dkms-580-server-open" in built.said
