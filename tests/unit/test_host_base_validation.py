"""What is said of mirrors, proxies and certificates that cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import problems
from ansible_collections.modelhost.serving.plugins.module_utils.host_base_validation import problems as check

PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PROXY = {"host_base_https_proxy": "http://proxy.example:3128"}


def judge(variables: dict[str, Any]) -> str:
    return "\n".join(
        ("warning: " if item["level"] == "warning" else "") + problems.report([item])
        for item in check("box", variables)
    ).replace("    ", "")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {
            "host_base_apt_mirror": "https://me:pw%20x@mirrors.example/ubuntu/".replace("%20", "%26"),
            "host_base_pip_index_url": "https://mirrors.example/pypi/simple",
            "host_base_pip_extra_index_urls": ["http://wheels.example/simple/"],
            "host_base_pip_find_links": ["/srv/wheels", "file:///srv/more", "https://wheels.example/torch/"],
            "host_base_npm_registry": "https://npm.example/",
            "host_base_apt_proxy": "http://cache.example:3142",
            "host_base_http_proxy": "socks5h://[fd00::1]:1080",
            "host_base_no_proxy": "localhost,127.0.0.1,::1,.corp.example,10.0.0.7",
        },
        {
            "host_base_apt_mirror": "https://mirrors.example/debian",
            "host_base_apt_security_mirror": "https://mirrors.example/debian-security",
        },
    ],
)  # fmt: skip
def test_what_is_well(variables: dict[str, Any]) -> None:
    assert judge(variables) == ""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"host_base_apt_mirror": "https://me:secret@mirrors.example/ubuntu/dists/jammy"},
            "box: host_base_apt_mirror = 'https://…@mirrors.example/ubuntu/dists/jammy'\n"
            "apt adds /dists and /pool itself\n"
            "→ set it to https://…@mirrors.example/ubuntu",
        ),
        (
            {"host_base_apt_mirror": "https://mirrors.example/debian-security/"},
            "box: host_base_apt_mirror = 'https://mirrors.example/debian-security/'\n"
            "this holds Debian's security updates only\n"
            "→ name the mirror of debian here, and this one in host_base_apt_security_mirror",
        ),
        (
            {"host_base_apt_mirror": "https://m.example/debian", "host_base_apt_security_mirror": "https://m.example/debian"},
            "box: host_base_apt_security_mirror = 'https://m.example/debian'\n"
            "this holds no security updates: Debian has them in debian-security\n"
            "→ set it to https://m.example/debian-security",
        ),
        (
            {"host_base_apt_mirror": "https://me:secret@m.example/debian"},
            "warning: box: host_base_apt_security_mirror\n"
            "security updates still come from Debian's own server\n"
            "→ set it to https://…@m.example/debian-security if the mirror has that, or leave it if this host reaches "
            "Debian",
        ),
        (
            {"host_base_pip_index_url": "https://mirrors.example/simple/vllm/"},
            "box: host_base_pip_index_url = 'https://mirrors.example/simple/vllm/'\n"
            "pip and uv add the package's name themselves\n"
            "→ set it to https://mirrors.example/simple",
        ),
        (
            {"host_base_pip_extra_index_urls": ["wheels.example/simple"]},
            "box: host_base_pip_extra_index_urls[0] = 'wheels.example/simple'\n"
            "this is no URL\n"
            "→ write it as http://… or https://… or file://…",
        ),
        (
            {"host_base_pip_find_links": ["wheels"]},
            "box: host_base_pip_find_links[0] = 'wheels'\n"
            "this is neither an absolute path on the host nor a URL\n"
            "→ write it as /path or https://…",
        ),
        (
            {"host_base_https_proxy": "http://me:secret@proxy.example:3128/proxy.pac"},
            "box: host_base_https_proxy = 'http://…@proxy.example:3128/proxy.pac'\n"
            "a proxy's address has no path\n"
            "→ set it to http://proxy.example:3128",
        ),
        (
            {"host_base_https_proxy": "http://proxy.example:port"},
            "box: host_base_https_proxy = 'http://proxy.example:port'\n"
            "this is no URL: Port could not be cast to integer value as 'port'\n"
            "→ write it as https://name:port/path",
        ),
        (
            {"host_base_http_proxy": "http://me:se\"cret@proxy.example:3128"},
            "box: host_base_http_proxy = 'http://…@proxy.example:3128'\n"
            "an address cannot hold spaces, quotes, braces or backslashes\n"
            "→ write such characters of a password as %22, %20 and so on",
        ),
        (
            {"host_base_apt_proxy": "http://me:se%20cret@proxy.example:3128"},
            "box: host_base_apt_proxy = 'http://…@proxy.example:3128'\n"
            "apt and npm cannot take a name or password with spaces in it\n"
            "→ choose another password",
        ),
        (
            {**PROXY, "host_base_no_proxy": "localhost, .corp.example"},
            "box: host_base_no_proxy = 'localhost, .corp.example'\n"
            "most programs do not look for spaces here, and would miss what follows one\n"
            "→ set it to localhost,.corp.example",
        ),
        (
            {**PROXY, "host_base_no_proxy": "10.0.0.0/8"},
            "warning: box: host_base_no_proxy = '10.0.0.0/8'\n"
            "curl, pip, npm and apt know no networks (10.0.0.0/8); they would go to the proxy with such addresses\n"
            "→ name the hosts, or their domain (.corp.example)",
        ),
        (
            {**PROXY, "host_base_no_proxy": "http://intra.example/"},
            "box: host_base_no_proxy = 'http://intra.example/'\n"
            "http://intra.example/ is neither a name nor a domain nor an address\n"
            "→ write names without http:// and without a path",
        ),
        (
            {**PROXY, "host_base_no_proxy": "*.corp.example"},
            "warning: box: host_base_no_proxy = '*.corp.example'\n"
            "not every program knows *.corp.example\n"
            "→ write .corp.example",
        ),
        (
            {**PROXY, "host_base_no_proxy": "10.1.*"},
            "box: host_base_no_proxy = '10.1.*'\n"
            "no program knows a * within a name (10.1.*)\n"
            "→ name the domain (.corp.example)",
        ),
        ({"host_base_no_proxy": "a, b"}, ""),
    ],
)  # fmt: skip
def test_addresses(variables: dict[str, Any], said: str) -> None:
    assert judge(variables) == said


@pytest.mark.parametrize(
    ("name", "data", "why", "fix"),
    [
        ("ca.pem", PEM, "", ""),
        ("chain.crt", b"# the root\n" + PEM + PEM, "", ""),
        (
            "ca.cer",
            b"\x30\x82\x01",
            "this is a certificate in DER, and hosts want PEM",
            "openssl x509 -inform der -in {path} -out {pem}",
        ),
        (
            "both.pem",
            b"-----BEGIN PRIV" + b"ATE KEY-----\nx\n" + PEM,
            "this file holds a private key, and everybody on the host could read it",
            "name a file with the certificate alone",
        ),
        (
            "page.pem",
            b"<html>",
            "this is no certificate in PEM: there is no line -----BEGIN CERTIFICATE-----",
            "export the certificate of the CA as PEM (Base64)",
        ),
        ("gone.pem", None, "this machine, which runs Ansible, has no such file", "copy it there"),
    ],
)  # fmt: skip
def test_certificates(name: str, data: bytes | None, why: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    fix = fix.format(path=path, pem=path.with_suffix(".pem"))
    place = f"box: host_base_extra_ca_certificates[0] = '{path}'"
    assert judge({"host_base_extra_ca_certificates": [str(path)]}) == (f"{place}\n{why}\n→ {fix}" if why else "")


def test_two_certificates_of_one_name(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "ca.pem", tmp_path / "b" / "ca.crt"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(PEM)
    said = judge({"host_base_extra_ca_certificates": [str(path) for path in paths]})
    assert f"the host would have one file for this and {paths[0]}" in said
    assert "whole path" in judge({"host_base_extra_ca_certificates": ["files/ca.pem"]})


def test_the_key_of_a_mirror(tmp_path: Path) -> None:
    mirror = {"host_base_apt_mirror": "https://aptly.example/ubuntu"}
    (tmp_path / "key.asc").write_bytes(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    (tmp_path / "key.gpg").write_bytes(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    assert judge({**mirror, "host_base_apt_mirror_key": str(tmp_path / "key.asc")}) == ""
    assert "call it .asc" in judge({**mirror, "host_base_apt_mirror_key": str(tmp_path / "key.gpg")})
    assert "by the end of the name" in judge({**mirror, "host_base_apt_mirror_key": str(tmp_path / "key.txt")})
    assert "no mirror that it could be for" in judge({"host_base_apt_mirror_key": str(tmp_path / "key.asc")})
