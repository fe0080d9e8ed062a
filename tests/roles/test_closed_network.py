"""host_base on a host with no route out but a mirror with a certificate of a private CA, and then a proxy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until

ROOT = Path(__file__).resolve().parents[2]
#: One network, one gate, one host for each run.
NAME = f"modelhost-closed-{os.getpid()}"
USER, PASSWORD = "builder", "Tr0ub4dor&3"
LOGIN = f"{USER}:Tr0ub4dor%263"
#: Minimal images have none of these, and nothing can be fetched over TLS before.
BARE = (
    "dpkg --purge --force-depends ca-certificates >/dev/null && rm -rf /etc/ssl/certs /usr/local/share/ca-certificates"
)

PLAY = """
- name: Prepare the host
  hosts: all
  become: true
  gather_facts: false
  roles:
    - role: modelhost.serving.host_base
  tasks:
    - name: Install a program by its hashes
      modelhost.serving.python_release:
        component: hf
        version: "{{ lookup('modelhost.serving.pin', 'huggingface_hub.version') }}"
        lock: "{{ lookup('modelhost.serving.pin', 'huggingface_hub.lock', as_content=true) }}"
      when: host_base_state | default('present') == 'present'
"""


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command of this machine; its output is in the failure when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert not check or done.returncode == 0, (
        f"{command}: {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    )
    return done


class Closed:
    """The network, and what is done on its host."""

    def __init__(self, folder: Path, upstreams: dict[str, str], certificates: list[str]) -> None:
        self.folder, self.upstreams, self.certificates = folder, upstreams, certificates
        #: What apt went by before anything was done.
        self.sources = ""
        (folder / "play.yml").write_text(PLAY, encoding="utf-8")

    def shell(self, script: str, check: bool = True) -> str:
        """A shell script on the closed host."""
        return run("docker", "exec", NAME, "sh", "-c", script, check=check).stdout

    def as_nobody(self, script: str) -> str:
        """The same as somebody without rights."""
        return run("docker", "exec", "--user", "65534", NAME, "sh", "-c", script, check=False).stdout

    def asked(self) -> str:
        """Every request that came to the gate."""
        return run("docker", "logs", f"{NAME}-gate").stdout

    def play(self, *arguments: str, check: bool = True, **variables: Any) -> tuple[str, int]:
        """The play's output, and how many tasks changed something. The password is nowhere in it."""
        host = {"ansible_connection": "community.docker.docker", **variables}
        (self.folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": {NAME: host}}}), encoding="utf-8")
        play = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.folder / "hosts.yml")]
        done = run(*play, str(self.folder / "play.yml"), "--diff", "-v", *arguments, check=check, cwd=ROOT)
        text = done.stdout + done.stderr
        for secret in (PASSWORD, LOGIN.split(":")[1]):
            assert secret not in text, "the password is in the output:\n" + text
        (recap,) = re.findall(r"changed=(\d+)", done.stdout)
        return text, int(recap)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    """A bare host on a network without a route out, and the gate between it and what this machine reaches."""
    folder = tmp_path_factory.mktemp("closed")
    machine = json.loads(run(sys.executable, str(ROOT / "testbed/machine.py")).stdout)["all"]["vars"]
    image = run(str(ROOT / "testbed/image.sh")).stdout.split()[-1]
    listed = run(
        "docker", "run", "--rm", image, "sh", "-c", "cat /etc/apt/sources.list*/* /etc/apt/sources.list", check=False
    )
    archives = re.findall(r"https?://\S+/(?:debian-security|debian|ubuntu-ports|ubuntu)\b", listed.stdout)
    upstreams = {address.rpartition("/")[2]: address for address in reversed(archives)}
    upstreams["simple"] = machine.get("host_base_pip_index_url") or own_index()
    trust = next(path for path in ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem") if os.path.exists(path))
    subject = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-batch"]
    run(
        "openssl",
        "req",
        "-x509",
        *subject,
        "-subj",
        "/CN=Closed Network CA",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        cwd=folder,
    )
    run(
        "openssl", "req", "-x509", *subject, "-subj", "/CN=gate", "-addext", "subjectAltName=DNS:gate", "-CA", "ca.pem",
        "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE", "-keyout", "gate.key", "-out", "gate.pem",
        cwd=folder,
    )  # fmt: skip
    shutil.copy(ROOT / "tests/roles/files/gate.py", folder)
    proxies = [
        item for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ for item in ("-e", name)
    ]
    init = ["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
    try:
        run("docker", "network", "create", "--internal", NAME)
        run(
            "docker", "run", "-d", "--name", f"{NAME}-gate", "-v", f"{folder}:/gate:ro", "-v", f"{trust}:/trust.pem:ro",
            "-e", "SSL_CERT_FILE=/trust.pem", *proxies, image, "python3", "/gate/gate.py", "/gate/gate.pem",
            "/gate/gate.key", f"{USER}:{PASSWORD}", *(f"{name}={url}" for name, url in upstreams.items()),
        )  # fmt: skip
        run("docker", "network", "connect", "--alias", "gate", NAME, f"{NAME}-gate")
        run("docker", "run", "-d", "--name", NAME, "--network", NAME, *init, image, "sleep", "infinity")
        site = Closed(folder, upstreams, machine.get("host_base_extra_ca_certificates", []))
        wait_until(lambda: "open" in site.asked(), "the gate opens")
        site.shell(BARE)
        yield site
    finally:
        run("docker", "rm", "-f", "-v", NAME, f"{NAME}-gate", check=False)
        run("docker", "network", "rm", NAME, check=False)


def by_mirror(closed: Closed) -> dict[str, Any]:
    """Everything from a mirror over https, whose CA nobody knows."""
    place = f"https://{LOGIN}@gate:8443"
    main = next(name for name in ("debian", "ubuntu", "ubuntu-ports") if name in closed.upstreams)
    return {
        "host_base_extra_ca_certificates": [str(closed.folder / "ca.pem")],
        "host_base_apt_mirror": f"{place}/{main}",
        "host_base_apt_security_mirror": f"{place}/debian-security" if main == "debian" else "",
        "host_base_pip_index_url": f"{place}/simple",
    }


def own_index() -> str:
    """The index that pip asks where nobody tells it another."""
    program = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    return run(str(ROOT / ".cache/uv/bin/python"), "-c", program).stdout.strip()


def by_proxy(closed: Closed) -> dict[str, Any]:
    """Everything from where it is, by a proxy; this machine's own proxies may look into TLS as well."""
    proxy = f"http://{LOGIN}@gate:3128"
    return {
        "host_base_extra_ca_certificates": closed.certificates,
        "host_base_http_proxy": proxy,
        "host_base_https_proxy": proxy,
        **(
            {"host_base_pip_index_url": closed.upstreams["simple"]} if closed.upstreams["simple"] != own_index() else {}
        ),
    }


def sources(closed: Closed) -> str:
    """What apt goes by, without comments."""
    return closed.shell(
        "cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null | grep -v '^#'", check=False
    )


def nothing_leaks(closed: Closed) -> None:
    """No password in a file that anybody may read."""
    for secret in (PASSWORD, LOGIN.split(":")[1]):
        assert closed.as_nobody(f"grep -rlF '{secret}' /etc /opt /var /usr/local /root /tmp 2>/dev/null") == ""
        assert closed.shell(f"grep -rlF '{secret}' /etc", check=False)


def test_check_mode_on_a_bare_host(closed: Closed) -> None:
    closed.sources = sources(closed)
    _text, changed = closed.play("--check", **by_mirror(closed))
    assert changed
    made = "/opt/modelhost /etc/modelhost /etc/ssl/certs /usr/local/share/ca-certificates"
    assert closed.shell(f"ls -d {made} 2>/dev/null", check=False) == ""
    assert sources(closed) == closed.sources != ""


def test_everything_from_a_mirror_over_https(closed: Closed) -> None:
    for archive in ("http://deb.debian.org", own_index()):
        outside = f"import urllib.request as u; u.urlopen('{archive}', timeout=5)"  # clock: no answer is what is wanted
        assert run("docker", "exec", NAME, "python3", "-c", outside, check=False).returncode, "there is a way out"
    closed.play(**by_mirror(closed))
    assert "gate:8443" in sources(closed)
    assert closed.shell("dpkg-query -W -f '${db:Status-Status}' ca-certificates") == "installed"
    assert "huggingface" in closed.shell(
        "/opt/modelhost/hf/releases/*/bin/hf version; ls /opt/modelhost/hf/releases/*/lib/*/site-packages"
    )
    asked = closed.asked()
    assert 'Mirror "GET /simple/uv/ HTTP/1.1" 200' in asked
    assert "Proxy" not in asked
    _text, changed = closed.play(**by_mirror(closed))
    assert changed == 0
    nothing_leaks(closed)


def test_everything_by_a_proxy(closed: Closed) -> None:
    # Everything has to come once more.
    gone = "/opt/modelhost/hf /opt/modelhost/uv /var/cache/modelhost /var/lib/apt/lists/*"
    closed.shell(f"dpkg --purge --force-depends procps && rm -rf {gone}")
    seen = len(closed.asked())
    closed.play(**by_proxy(closed))
    assert sources(closed) == closed.sources
    asked = closed.asked()[seen:]
    assert 'Proxy "CONNECT ' in asked
    assert 'Proxy "GET http' in asked
    assert "Mirror" not in asked
    closed.shell("ls /opt/modelhost/hf/releases/*/bin/hf && which ps")
    assert "Closed Network CA" not in closed.shell(
        "cat /usr/local/share/ca-certificates/* /etc/modelhost/*", check=False
    )
    distrusted = "import ssl, urllib.request as u; u.urlopen('https://gate:8443/simple/')"
    refused = run("docker", "exec", NAME, "python3", "-c", distrusted, check=False).stderr
    assert "CERTIFICATE_VERIFY_FAILED" in refused
    _text, changed = closed.play(**by_proxy(closed))
    assert changed == 0
    nothing_leaks(closed)


def test_nothing_of_it_stays(closed: Closed) -> None:
    closed.play(host_base_state="absent")
    assert sources(closed) == closed.sources
    left = "grep -rlF gate /etc/apt /etc/modelhost; ls /usr/local/share/ca-certificates"
    assert closed.shell(left, check=False) == ""
