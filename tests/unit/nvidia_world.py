"""Hosts with NVIDIA's GPUs, as host_probe would tell of them; tests change what matters to them."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import nvidia_plan

PIN = nvidia_plan.pins()["driver"]["version"]

HOST: dict[str, Any] = {
    "distribution": "debian",
    "distribution_version": "12",
    "kernel": "6.1.0-18-amd64",
    "wsl": False,
    "container": "",
    "gpus": [],
    "nvidia_driver": "",
    "nvidia_devices": 8,
    "nvswitch": False,
    "active_units": [],
}
FACTS: dict[str, Any] = {"devices": [{"pci": "0000:01:00.0", "id": "0x2330"}], "packages": {}, "held": []}
UBUNTU = {"distribution": "ubuntu", "distribution_version": "24.04", "kernel": "6.8.0-111-generic"}
