"""Addresses for a unit's IPAddressAllow=: names are looked up, and then resolvers are needed too."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.modules.network_addresses import looked_up

HOSTS = {
    "gpu-1": ["10.0.0.11", "fd00::11"],
    "gpu-2.internal": ["10.0.0.12", "10.0.0.12"],
    "localhost": ["127.0.0.1", "::1"],
}


@pytest.fixture
def resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def answer(name: str, *_more: Any, **_options: Any) -> list[Any]:
        if name not in HOSTS:
            raise socket.gaierror(-2, "Name or service not known")
        return [(None, None, None, "", (address, 0)) for address in HOSTS[name]]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# by hand\nnameserver 10.0.0.53\n nameserver fe80::1%eth0\nnameserver 127.0.0.53\nsearch internal\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("names", "addresses"),
    [
        ([], []),
        (["127.0.0.1", "::1", "[::1]"], []),
        (["10.0.0.11", "10.0.9.0/24", "10.0.9.7/24", "10.0.0.11"], ["10.0.0.11", "10.0.9.0/24"]),
        (["[fd00::11]", "fd00::/64"], ["fd00::/64", "fd00::11"]),
        (["gpu-1", "gpu-2.internal"], ["10.0.0.11", "10.0.0.12", "10.0.0.53", "fd00::11", "fe80::1"]),
        (["localhost"], ["10.0.0.53", "fe80::1"]),
    ],
)
def test_addresses(resolv_conf: str, names: list[str], addresses: list[str]) -> None:
    assert looked_up(names, resolv_conf) == addresses


def test_a_name_without_an_address_is_said(resolv_conf: str) -> None:
    with pytest.raises(OSError, match=r"gpu-3 has no address on this host: .*not known"):
        looked_up(["gpu-3"], resolv_conf)
