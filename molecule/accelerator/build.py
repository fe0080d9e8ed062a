#!/usr/bin/env python3
"""The signed local repositories of this scenario, made of stub packages: build.py DIR KERNEL

Three of them, as on real hosts: NVIDIA's for drivers (names for Debian 12), NVIDIA's for the container toolkit, and a
piece of Ubuntu's archive. What the packages do not do is said in README.md.
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


def modules(version: str, kind: str) -> dict[str, str]:
    """What a package with kernel modules does to the stand-in's disk."""
    return {
        "postinst": f"echo '{version} {kind}' >/srv/machine/disk\n",
        "prerm": 'if [ "$1" = remove ]; then rm -f /srv/machine/disk; fi\n',
    }


def libraries(version: str) -> dict[str, str]:
    """What a package with the driver's libraries does."""
    return {
        "postinst": f"echo {version} >/srv/machine/library\nsystemctl daemon-reload\n",
        "prerm": 'if [ "$1" = remove ]; then rm -f /srv/machine/library; fi\n',
    }


PERSISTENCED = {"/lib/systemd/system/nvidia-persistenced.service": unit("Persistence", "/bin/sleep infinity")}


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
            {"name": "nvidia-persistenced", "version": full, "files": PERSISTENCED},
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


def ubuntu(kernel: str) -> list[dict[str, Any]]:
    """Ubuntu's archive: one version of a branch, modules signed for one kernel, and kernel headers."""
    version = PIN["driver"]["version"]
    full, ended = f"{version}-0ubuntu0.24.04.1", "580-server"
    signed = f"linux-modules-nvidia-{ended}-open-{kernel}"
    return [
        {"name": f"libnvidia-compute-{ended}", "version": full},
        {"name": f"nvidia-compute-utils-{ended}", "version": full, "files": PERSISTENCED},
        {
            "name": f"nvidia-headless-no-dkms-{ended}-open",
            "version": full,
            "fields": {
                "Depends": [f"libnvidia-compute-{ended} (= {full})", f"nvidia-compute-utils-{ended} (= {full})"]
            },
        },
        {
            "name": f"nvidia-utils-{ended}",
            "version": full,
            "files": {"/usr/bin/nvidia-smi": program("nvidia-smi")},
            "scripts": libraries(version),
        },
        {"name": signed, "version": "6.8.0-111.111", "scripts": modules(version, "signed")},
        {
            "name": f"linux-modules-nvidia-{ended}-open-generic",
            "version": "6.8.0-111.111",
            "fields": {"Depends": [signed]},
        },
        {"name": "linux-image-generic", "version": "6.8.0-111.111"},
        {
            "name": f"linux-headers-{kernel}",
            "version": "6.8.0-111.111",
            "files": {f"/lib/modules/{kernel}/build/Makefile": {}},
        },
        fabric("nvidia-fabricmanager-580", version, full),
        fabric("nvidia-fabricmanager-570", "570.86.15", "570.86.15-0ubuntu0.24.04.1"),
    ]


def toolkit() -> list[dict[str, Any]]:
    """The container toolkit in two versions."""
    found: list[dict[str, Any]] = []
    refresh = unit(
        "CDI",
        "/usr/bin/nvidia-ctk cdi generate",
        "Type=oneshot\nRemainAfterExit=yes\nEnvironment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml\n",
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
    }
    for folder, (origin, packages) in repositories.items():
        spec = out / f"{folder.split('/')[0]}.yml"
        spec.write_text(yaml.safe_dump({"origin": origin, "packages": packages}), encoding="utf-8")
        command = [sys.executable, str(HERE.parents[1] / "testbed/apt_repository/build.py"), "--spec", str(spec)]
        subprocess.run([*command, "--out", str(out / folder)], check=True)


if __name__ == "__main__":
    main()
