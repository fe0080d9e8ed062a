"""docker_engine on a host of its own with a real engine: the distribution's, and one that a signed repository brings.

What stands in: packages called docker-ce and so on, which put the distribution's engine in place by themselves. So
keyring, pin, hold and upgrade are apt's own doing; what Docker's packages hold and do is left unproven.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import HANGS

ROOT = Path(__file__).resolve().parents[2]
NAME = f"modelhost-docker-engine-{os.getpid()}"
INVENTORY = {
    "testbed": {
        "hosts": {
            NAME: {
                "ansible_connection": "community.docker.docker",
                "testbed_name": "docker-engine",
                "testbed_docker": True,
            }
        }
    }
}
PLAY = [
    {
        "name": "Run Docker",
        "hosts": "all",
        "become": True,
        "gather_facts": False,
        "roles": [{"role": "modelhost.serving.docker_engine"}],
    }
]
#: The owner of the host was here first.
OWNER = {"debug": False, "labels": ["owner=ops"], "log-opts": {"tag": "{{.Name}}"}}
NEWER = "29.8.2"
OLDER = "29.8.1"
#: The stand-in for docker-ce. Docker's own restarts the daemon in its postinst; this leaves it to the role.
SCRIPTS = {
    "postinst": """dpkg-deb --fsys-tarfile /srv/docker.io.deb | tar -x --keep-directory-symlink -C /
getent group docker >/dev/null || groupadd --system docker
systemctl daemon-reload
systemctl enable --quiet docker.socket docker.service
systemctl start docker.socket docker.service
""",
    "prerm": '[ "$1" != remove ] || systemctl disable --now --quiet docker.socket docker.service\n',
    "postrm": """[ "$1" = remove ] || exit 0
cd / && dpkg-deb --fsys-tarfile srv/docker.io.deb | tar -t | grep -v '/$' | xargs rm -f
systemctl daemon-reload
""",
}
REPOSITORY = "http://127.0.0.1:8008/linux"


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command of this machine; its output is in the failure when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)
    assert not check or done.returncode == 0, (
        f"{command}: {done.returncode}\n{done.stdout[-8000:]}\n{done.stderr[-3000:]}"
    )
    return done


class Host:
    """The host, and the role run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "hosts.yml").write_text(yaml.safe_dump(INVENTORY), encoding="utf-8")
        (folder / "play.yml").write_text(yaml.safe_dump(PLAY), encoding="utf-8")

    def playbook(self, name: str, *arguments: str, check: bool = True) -> str:
        """What ansible-playbook printed."""
        command = ["ansible-playbook", "-i", str(self.folder / "hosts.yml"), name, *arguments]
        done = run(*command, check=check, env={**os.environ, "ANSIBLE_FORCE_COLOR": "false"})
        assert check or done.returncode != 0, f"{command} should have failed:\n{done.stdout[-6000:]}"
        # As one line: Ansible folds long messages.
        return " ".join((done.stdout + done.stderr).split())

    def role(self, *arguments: str, check: bool = True, **variables: Any) -> str:
        """The role with variables of the name docker_engine_…"""
        values = json.dumps({f"docker_engine_{name}": value for name, value in variables.items()})
        return self.playbook(str(self.folder / "play.yml"), "-e", values, *arguments, check=check)

    def shell(self, script: str, check: bool = True) -> str:
        """A shell script on the host."""
        return run("docker", "exec", NAME, "bash", "-c", script, check=check).stdout.strip()

    def daemon(self) -> str:
        """Which start of the daemon this is."""
        return self.shell("systemctl show -P InvocationID docker")

    def config(self) -> Any:
        return json.loads(self.shell("cat /etc/docker/daemon.json"))

    def write_config(self, data: Any) -> None:
        script = f"mkdir -p /etc/docker; cat > /etc/docker/daemon.json <<'END'\n{json.dumps(data)}\nEND"
        self.shell(script)

    def container(self, name: str) -> str:
        """Start a container from what this host has; its first process' number."""
        parts = "/usr/bin/sleep /lib/*-linux-gnu/libc.so.6 $(ls /lib64/ld-linux-* /lib/ld-linux-* 2>/dev/null)"
        self.shell(f"docker image inspect tiny >/dev/null 2>&1 || tar -ch {parts} 2>/dev/null | docker import - tiny")
        self.shell(f"docker run --detach --name {name} tiny /usr/bin/sleep 100000")
        return self.pid(name)

    def installed(self) -> str:
        """Packages of an engine that are there."""
        form = "${Package} ${db:Status-Status}\\n"
        return self.shell(f"dpkg-query -W -f '{form}' | grep -E '^(docker|containerd|runc).* installed'", check=False)

    def left(self, *paths: str) -> str:
        """Those paths that are there."""
        return self.shell(f"ls -d {' '.join(paths)} 2>/dev/null || true")

    def pid(self, name: str) -> str:
        return self.shell(f"docker inspect --format '{{{{.State.Running}}}} {{{{.State.Pid}}}}' {name}")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("docker_engine"))
    made.playbook("playbooks/testbed_create.yml")
    try:
        yield made
    finally:
        run("docker", "rm", "--force", "--volumes", NAME, check=False)


def recap(out: str, changed: int | None = None) -> None:
    """The run was sound, and changed as much as that."""
    assert "failed=0" in out, out[-4000:]
    if changed is not None:
        assert f" changed={changed} " in out, out[-6000:]


# The tests follow each other on one host.


def test_check_mode_on_a_bare_host(host: Host) -> None:
    recap(host.role("--check", "--diff", source="distribution"))
    assert host.left("/etc/docker", "/etc/modelhost/docker_engine") == ""


def test_the_engine_of_the_distribution_beside_an_owners_configuration(host: Host) -> None:
    host.write_config(OWNER)
    recap(host.role(source="distribution"))
    config = host.config()
    assert config == {
        **OWNER,
        "log-driver": "json-file",
        "log-opts": {"tag": "{{.Name}}", "max-size": "50m", "max-file": "3"},
        "live-restore": True,
    }
    assert host.shell("docker info --format '{{.LiveRestoreEnabled}} {{.LoggingDriver}}'") == "true json-file"
    # What the role installed once stays its own, also where nobody says from where.
    recap(host.role(), changed=0)


def test_a_reload_where_a_reload_will_do(host: Host) -> None:
    process, daemon = host.container("owner"), host.daemon()
    wish: dict[str, Any] = {"registry_mirrors": ["https://mirror.example"]}
    # Interrupted between writing and telling the daemon; the next run finds it.
    recap(host.role("--tags", "docker_engine_configure", **wish))
    assert "mirror.example" not in host.shell("docker info")
    recap(host.role("--tags", "docker_engine_service", **wish), changed=1)
    assert "https://mirror.example/" in host.shell("docker info")
    assert host.daemon() == daemon
    assert host.pid("owner") == process
    host.shell("docker rm --force owner")


def test_containers_live_through_a_restart(host: Host) -> None:
    # As on a host of somebody who does without live-restore.
    host.write_config({**OWNER, "live-restore": False})
    host.shell("rm -r /etc/modelhost/docker_engine/*.json; systemctl restart docker")
    process, daemon = host.container("owner"), host.daemon()
    out = host.role("--tags", "docker_engine_service", check=False, daemon_options={"mtu": 1400})
    assert "its 1 running containers would stop" in out
    assert (host.daemon(), host.pid("owner")) == (daemon, process)
    recap(host.role("--tags", "docker_engine_service", daemon_options={"mtu": 1400, "live-restore": True}))
    assert host.daemon() != daemon
    assert host.pid("owner") == process
    assert host.shell("docker info --format '{{.LiveRestoreEnabled}}'") == "true"


def test_what_the_engine_does_not_accept_is_not_written(host: Host) -> None:
    before, daemon = host.config(), host.daemon()
    for options, words in (
        ({"no-such-key": True}, "no-such-key"),
        # A flag of the unit in the file of somebody else.
        ({"containerd": "/run/containerd/containerd.sock"}, "specified both as a flag and in the configuration file"),
    ):
        out = host.role("--tags", "docker_engine_service", check=False, daemon_options=options)
        assert words in out
        assert "so it was left as it is" in out
    assert (host.config(), host.daemon()) == (before, daemon)


def test_a_certificate_and_a_proxy_ask_for_a_restart(host: Host) -> None:
    process, daemon = host.pid("owner"), host.daemon()
    wish: dict[str, Any] = {
        "daemon_options": {"mtu": 1400, "live-restore": True},
        "proxies": {"https": "http://me:geheim%25@proxy.example:3128", "no_proxy": "127.0.0.1"},
    }
    host.shell("update-ca-certificates --fresh")
    recap(host.role("--tags", "docker_engine_service", daemon_options=wish["daemon_options"]))
    assert host.daemon() == daemon, "the bundle was written anew with the same content"
    host.shell("echo '# one more' >> /etc/ssl/certs/ca-certificates.crt")
    out = host.role("--tags", "docker_engine_service", "--diff", **wish)
    recap(out)
    assert "geheim" not in out
    assert host.daemon() != daemon
    assert host.pid("owner") == process
    assert "https://me" not in host.shell("systemctl show docker | grep -v ^EnvironmentFile || true")
    assert "HTTPS Proxy: http://xxxxx:xxxxx@proxy.example:3128" in host.shell("docker info")
    host.shell("update-ca-certificates")


def test_absent_spares_what_is_not_ours(host: Host) -> None:
    out = host.role(check=False, state="absent")
    assert "not of this project: owner" in out
    assert host.pid("owner").startswith("true")
    host.shell("docker rm --force owner")
    recap(host.role(state="absent"))
    assert host.config() == {**OWNER, "live-restore": False}
    assert host.installed() == ""
    assert host.left("/etc/modelhost/docker_engine", "/etc/systemd/system/docker.service.d/*") == ""
    assert host.shell("ls /var/lib/docker/image"), "images stay"
    recap(host.role(state="absent"), changed=0)
    host.shell("rm /etc/docker/daemon.json")


# --- a repository of packages that stand in ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fingerprint(host: Host) -> str:
    """A signed repository with two releases, served on the host itself."""
    release = dict(line.split("=", 1) for line in host.shell("cat /etc/os-release").splitlines() if "=" in line)
    distribution, suite = (release[name].strip('"') for name in ("ID", "VERSION_CODENAME"))
    tail = f"-1~{distribution}.{release['VERSION_ID'].strip(chr(34))}~{suite}"
    pins = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))["docker_engine"]["packages"]
    packages: list[dict[str, Any]] = [{"name": name, "version": number + tail} for name, number in pins.items()]
    for version in (OLDER, NEWER):
        packages.append({"name": "docker-ce-cli", "version": f"5:{version}{tail}"})
        # Debian's docker.io and a docker-ce do not stand beside each other, but what it needs does.
        fields = {"Depends": ["docker-ce-cli", "containerd.io", "containerd", "runc", "tini", "iptables"]}
        packages.append({"name": "docker-ce", "version": f"5:{version}{tail}", "fields": fields, "scripts": SCRIPTS})
    spec = host.folder / "spec.yml"
    spec.write_text(yaml.safe_dump({"suite": suite, "component": "stable", "packages": packages}), encoding="utf-8")
    out = host.folder / "linux" / distribution
    out.mkdir(parents=True)
    key = run(sys.executable, "testbed/apt_repository/build.py", "--spec", str(spec), "--out", str(out)).stdout.strip()
    (out / "key.asc").rename(out / "gpg")
    run("docker", "cp", str(host.folder / "linux"), f"{NAME}:/srv/linux")
    host.shell("cd /srv && apt-get -q download docker.io && mv docker.io_*.deb docker.io.deb")
    host.shell("systemd-run --unit=repository python3 -m http.server --directory /srv --bind 127.0.0.1 8008")
    host.shell(f"timeout {HANGS} bash -c 'until curl -fs http://127.0.0.1:8008/ >/dev/null; do sleep 0.2; done'")
    return key


def versions(host: Host) -> dict[str, str]:
    """Release and selection of the pinned packages."""
    form = "${Package} ${Version} ${db:Status-Want}\\n"
    lines = host.shell(f"dpkg-query -W -f '{form}' docker-ce docker-ce-cli containerd.io").splitlines()
    return {name: f"{version.partition('-')[0]} {want}" for name, version, want in map(str.split, lines)}


def test_a_wrong_fingerprint_is_refused(host: Host, fingerprint: str) -> None:
    out = host.role(check=False, repository_url=REPOSITORY)
    assert "holds a key that is not the expected one" in out
    # The pin is Docker's own key.
    assert "9DC8 5822 9FC7 DD38 854A E2D8 8D81 803C 0EBF CD88" in out
    assert host.left("/etc/apt/*/modelhost-docker*") == ""


def test_a_pinned_release_is_installed_and_held(host: Host, fingerprint: str) -> None:
    wish: dict[str, Any] = {"repository_url": REPOSITORY, "repository_fingerprints": [fingerprint]}
    missing = host.role(check=False, version="29.0.0", **wish)
    assert "docker-ce=5:29.0.0-*" in missing
    assert f"Offered: 5:{NEWER}-1~" in missing
    recap(host.role(version=OLDER, **wish))
    found = {"docker-ce": f"5:{OLDER} hold", "docker-ce-cli": f"5:{OLDER} hold", "containerd.io": "2.3.6 hold"}
    assert versions(host) == found
    # A newer one lies in the repository. Neither a second run nor apt's own upgrade takes it.
    recap(host.role(version=OLDER, **wish), changed=0)
    host.shell("DEBIAN_FRONTEND=noninteractive apt-get -y upgrade")
    assert versions(host) == found


def test_a_pin_that_moves_is_an_upgrade(host: Host, fingerprint: str) -> None:
    wish: dict[str, Any] = {"repository_url": REPOSITORY, "repository_fingerprints": [fingerprint]}
    daemon, process = host.daemon(), host.container("owner")
    recap(host.role(**wish))
    assert versions(host)["docker-ce"] == f"5:{NEWER} hold"
    # Its program was replaced, so the daemon was started anew. The container was not.
    assert host.daemon() != daemon
    assert host.pid("owner") == process
    host.shell("docker rm --force owner")


def test_absent_with_purge_leaves_nothing(host: Host, fingerprint: str) -> None:
    recap(host.role(state="absent", purge=True))
    assert host.installed() == ""
    assert host.left("/var/lib/docker/*", "/etc/apt/*/modelhost-docker*", "/etc/docker/daemon.json") == ""
    assert host.left("/etc/modelhost/docker_engine") == ""
