#!/usr/bin/env python3
"""The signed local repositories of this scenario, made of stub packages: build.py DIR KERNEL

As on real hosts: NVIDIA's for drivers (names for Debian 12), NVIDIA's for the container toolkit, and a piece of
Ubuntu's archive, as it is and as it is some weeks later. What the packages do not do is said in README.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
STUBS = HERE / "machine" / "stubs"
PIN = yaml.safe_load((HERE.parents[1] / "versions.yml").read_text(encoding="utf-8"))["nvidia"]
#: Branches of which NVIDIA's repository has a version beside the pinned one: older and newer.
VERSIONS = ["570.86.15", PIN["driver"]["version"], "595.45.04"]
#: What Ubuntu's archive has some weeks later: another driver of the branch, and another kernel.
LATER, KERNEL = "580.180.11", "6.8.0-117-generic"
TOOLKIT = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)


def unit(description: str, command: str, service: str = "") -> dict[str, str]:
    """A unit's file."""
    return {
        "content": f"[Unit]\nDescription={description} (stand-in)\n[Service]\n{service}ExecStart={command}\n"
        "[Install]\nWantedBy=multi-user.target\n"
    }


def program(name: str) -> dict[str, str]:
    """One of the stubs."""
    return {"from": str(STUBS / name), "mode": "0755"}


def modules(version: str, kind: str, kernel: str = "") -> dict[str, str]:
    """What a package with kernel modules does to the stand-in's disk. kernel: not the running one."""
    disk = f"/srv/machine/disk{'.' if kernel else ''}{kernel}"
    return {
        "postinst": f"echo '{version} {kind}' >{disk}\n",
        "prerm": f'if [ "$1" = remove ]; then rm -f {disk} /srv/machine/disk; fi\n',
    }


def libraries(version: str) -> dict[str, str]:
    """What a package with the driver's libraries does."""
    return {
        "postinst": f"echo {version} >/srv/machine/library\nsystemctl daemon-reload\n",
        "prerm": 'if [ "$1" = remove ]; then rm -f /srv/machine/library; fi\n',
    }


def persistenced(options: str) -> dict[str, dict[str, str]]:
    """The daemon that keeps the driver loaded, if it is let."""
    return {
        "/usr/bin/nvidia-persistenced": {"content": "#!/bin/sh\nexec sleep infinity\n", "mode": "0755"},
        "/lib/systemd/system/nvidia-persistenced.service": unit(
            "Persistence", f"/usr/bin/nvidia-persistenced --user nvpd {options}--verbose"
        ),
    }


def fabric(name: str, version: str, package_version: str) -> dict[str, Any]:
    """A fabric manager."""
    return {
        "name": name,
        "version": package_version,
        "files": {
            "/usr/bin/nv-fabricmanager": program("nv-fabricmanager"),
            "/lib/systemd/system/nvidia-fabricmanager.service": unit(
                "Fabric manager", "/usr/bin/nv-fabricmanager", "ExecStartPre=/usr/bin/nv-fabricmanager --check\n"
            ),
        },
        "scripts": {"postinst": "systemctl daemon-reload\n"},
    }


def nvidia() -> list[dict[str, Any]]:
    """NVIDIA's repository for Debian: every branch, parts bound to each other by their version."""
    found: list[dict[str, Any]] = []
    for version in VERSIONS:
        full = f"{version}-1"
        same = [f"libcuda1 (= {full})", f"nvidia-persistenced (= {full})"]
        found += [
            {"name": "libcuda1", "version": full},
            {"name": "nvidia-persistenced", "version": full, "files": persistenced("")},
            # Nothing else makes /dev/nvidia-uvm there.
            {
                "name": "nvidia-modprobe",
                "version": full,
                "files": {"/usr/bin/nvidia-modprobe": program("nvidia-modprobe")},
            },
            {
                "name": "nvidia-driver-cuda",
                "version": full,
                "fields": {"Depends": same},
                "files": {"/usr/bin/nvidia-smi": program("nvidia-smi")},
                "scripts": libraries(version),
            },
            {"name": "nvidia-kernel-open-dkms", "version": full, "scripts": modules(version, "built")},
            {"name": "nvidia-kernel-dkms", "version": full, "scripts": modules(version, "built")},
            fabric("nvidia-fabricmanager", version, full),
        ]
    return found


def ubuntu(kernel: str, later: bool = False) -> list[dict[str, Any]]:
    """Ubuntu's archive: one version of a branch, modules signed for its newest kernel, and kernel headers.

    later: it has gone on to another driver and another kernel. The modules of the kernel before stay in it, and fit no
    later driver.
    """
    before, ended = PIN["driver"]["version"], "580-server"
    version = LATER if later else before
    full, last = f"{version}-0ubuntu0.24.04.1", f"{before}-0ubuntu0.24.04.1"
    prefix, common = f"linux-modules-nvidia-{ended}-open-", f"nvidia-kernel-common-{ended}"
    newest, build = (KERNEL, "6.8.0-117.117") if later else (kernel, "6.8.0-111.111")
    found: list[dict[str, Any]] = [
        {"name": f"libnvidia-compute-{ended}", "version": full},
        # Its rule makes /dev/nvidia-uvm.
        {"name": common, "version": full, "files": {"/lib/udev/rules.d/71-nvidia.rules": {}}},
        {
            "name": f"nvidia-compute-utils-{ended}",
            "version": full,
            "files": persistenced("--no-persistence-mode "),
        },
        {
            "name": f"nvidia-headless-no-dkms-{ended}-open",
            "version": full,
            "fields": {
                "Depends": [
                    f"{name} (= {full})"
                    for name in (f"libnvidia-compute-{ended}", f"nvidia-compute-utils-{ended}", common)
                ]
            },
        },
        {
            "name": f"nvidia-utils-{ended}",
            "version": full,
            "files": {"/usr/bin/nvidia-smi": program("nvidia-smi")},
            "scripts": libraries(version),
        },
        {
            "name": f"nvidia-dkms-{ended}-open",
            "version": full,
            "fields": {"Depends": f"{common} (= {full})"},
            "scripts": modules(version, "built"),
        },
        {
            "name": f"{prefix}{kernel}",
            "version": "6.8.0-111.111",
            "fields": {"Depends": f"{common} (<= {last})"},
            "scripts": modules(before, "signed"),
        },
        {"name": f"{prefix}generic", "version": build, "fields": {"Depends": f"{prefix}{newest}"}},
        {"name": "linux-image-generic", "version": build, "fields": {"Depends": f"linux-image-{newest}"}},
        {"name": "linux-headers-generic", "version": build, "fields": {"Depends": f"linux-headers-{newest}"}},
        {
            "name": "linux-generic",
            "version": build,
            "fields": {"Depends": [f"linux-{part}-generic (= {build})" for part in ("image", "headers")]},
        },
        {"name": f"linux-image-{kernel}", "version": "6.8.0-111.111"},
        {
            "name": f"linux-headers-{kernel}",
            "version": "6.8.0-111.111",
            "files": {f"/lib/modules/{kernel}/build/Makefile": {}},
        },
        fabric("nvidia-fabricmanager-580", version, full),
        fabric("nvidia-fabricmanager-570", "570.86.15", "570.86.15-0ubuntu0.24.04.1"),
    ]
    if later:
        found += [
            {
                "name": f"{prefix}{KERNEL}",
                "version": build,
                "fields": {"Depends": [f"linux-image-{KERNEL}", f"{common} (>= {full})"]},
                "scripts": modules(version, "signed", KERNEL),
            },
            {
                "name": f"linux-image-{KERNEL}",
                "version": build,
                "files": {f"/boot/vmlinuz-{KERNEL}": {}},
                "scripts": {"postinst": f"ln -sfn vmlinuz-{KERNEL} /boot/vmlinuz\n"},
            },
            {"name": f"linux-headers-{KERNEL}", "version": build},
        ]
    return found


def toolkit() -> list[dict[str, Any]]:
    """The container toolkit in two versions."""
    found: list[dict[str, Any]] = []
    refresh = unit(
        "CDI",
        "/usr/bin/nvidia-ctk cdi generate",
        # As the real one of 1.20.0: it ends when its work is done, and is inactive from then on.
        "Type=oneshot\nEnvironment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml\n"
        "ExecStart=/bin/sh -c '/usr/bin/nvidia-smi -L || /usr/lib/wsl/lib/nvidia-smi -L'\n"
        "Restart=on-failure\nRestartSec=1s\n",
    )
    for version in (PIN["toolkit"]["version"], "1.21.0"):
        full = f"{version}-1"
        found += [{"name": name, "version": full} for name in TOOLKIT[2:]]
        found.append(
            {
                "name": TOOLKIT[0],
                "version": full,
                "fields": {"Depends": [f"{name} (= {full})" for name in TOOLKIT[1:3]]},
            }
        )
        found.append(
            {
                "name": TOOLKIT[1],
                "version": full,
                "files": {
                    "/usr/bin/nvidia-ctk": program("nvidia-ctk"),
                    "/lib/systemd/system/nvidia-cdi-refresh.service": refresh,
                    "/lib/systemd/system/nvidia-cdi-refresh.path": {
                        "content": "[Path]\nPathChanged=/srv/machine/disk\n[Install]\nWantedBy=multi-user.target\n"
                    },
                },
                "scripts": {"postinst": "systemctl daemon-reload\n"},
            }
        )
    return found


def main() -> None:
    """The command line."""
    out, kernel = Path(sys.argv[1]).resolve(), sys.argv[2]
    out.mkdir(parents=True, exist_ok=True)
    repositories = {
        # Folders as the real servers have them.
        "cuda/debian12/x86_64": ("NVIDIA", nvidia()),
        "libnvidia-container/stable/deb/amd64": ("NVIDIA CORPORATION", toolkit()),
        "ubuntu": ("Ubuntu", ubuntu(kernel)),
        "ubuntu-later": ("Ubuntu", ubuntu(kernel, later=True)),
    }
    for folder, (origin, packages) in repositories.items():
        spec = out / f"{folder.split('/')[0]}.yml"
        spec.write_text(yaml.safe_dump({"origin": origin, "packages": packages}), encoding="utf-8")
        command = [sys.executable, str(HERE.parents[1] / "testbed/apt_repository/build.py"), "--spec", str(spec)]
        subprocess.run([*command, "--out", str(out / folder)], check=True)


if __name__ == "__main__":
    main()
