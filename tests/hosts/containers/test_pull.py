"""Pulling by digest, from a real registry (Debian's docker-registry) on the host itself."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run
from patience import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "molecule" / "containers" / "inventory"
NAME = "127.0.0.1:5000/tiny"
MAKE = f"""
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends docker-registry >/dev/null
systemctl disable --now docker-registry 2>/dev/null || true
mkdir -p /tmp/registry
cat >/tmp/registry.yml <<'CONFIG'
version: 0.1
storage: {{filesystem: {{rootdirectory: /tmp/registry}}}}
http: {{addr: "127.0.0.1:5000"}}
CONFIG
systemctl stop test-registry 2>/dev/null || true
systemd-run --quiet --unit=test-registry docker-registry serve /tmp/registry.yml
timeout {HANGS} bash -c 'until curl -fs http://127.0.0.1:5000/v2/ >/dev/null; do sleep 0.2; done'
head -c 3000000 /dev/urandom >/tmp/tiny
tar -C /tmp -c tiny | docker import - {NAME}:1 >/dev/null
docker push -q {NAME}:1 >/dev/null
docker image inspect --format '{{{{index .RepoDigests 0}}}}' {NAME}:1
docker image rm -f {NAME}:1 >/dev/null
"""


@pytest.fixture(scope="module")
def reference(container_name: str) -> Iterator[str]:
    """An image in the registry that the host does not have."""
    yield run("docker", "exec", container_name, "bash", "-c", MAKE).stdout.strip().splitlines()[-1]
    run("docker", "exec", container_name, "systemctl", "stop", "test-registry")


@pytest.fixture(scope="module")
def container_name() -> str:
    """The scenario's host."""
    return "modelhost-containers"


def image(container: str, **arguments: str) -> tuple[int, str]:
    """The module, as a role calls it."""
    given = json.dumps({"component": "test", **arguments})
    command = ["ansible", "-i", str(INVENTORY), container, "-b", "-m", "modelhost.serving.container_image", "-a", given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_an_image_is_pulled_by_its_digest_once_and_removed(container: str, reference: str) -> None:
    code, out = image(container, image=reference)
    assert code == 0, out
    assert "changed: true" in out.lower() or "CHANGED" in out
    # Bytes and layers, as they came.
    assert re.search(r"3 MiB of 3 MiB; 1 of 1 layers complete", out) or "1 of 1 layers" in out, out
    code, out = image(container, image=reference)
    assert code == 0, out
    assert "CHANGED" not in out
    code, out = image(container, state="absent")
    assert code == 0, out
    assert run("docker", "exec", container, "docker", "image", "ls", "-q", NAME).stdout == ""


def test_an_archive_travels_from_the_controller_and_is_checked(container: str, tmp_path: Path) -> None:
    """One image, written by this machine's own Docker."""
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    subprocess.run(f"tar -C {tmp_path} -c file | docker import - x-tiny:1", shell=True, check=True, capture_output=True)
    archive = tmp_path / "tiny.tar"
    run("docker", "save", "--output", str(archive), "x-tiny:1")
    run("docker", "image", "rm", "-f", "x-tiny:1")
    checksum = run("sha256sum", str(archive)).stdout.split()[0]
    code, out = image(container, archive=str(archive), archive_sha256="0" * 64)
    assert code != 0
    assert checksum in out
    code, out = image(container, archive=str(archive), archive_sha256=checksum)
    assert code == 0, out
    assert "CHANGED" in out
    # Loaded: neither the file nor its copy is needed any more.
    archive.unlink()
    assert run("docker", "exec", container, "find", "/var/cache/modelhost/images", "-type", "f").stdout == ""
    code, out = image(container, archive=str(archive), archive_sha256=checksum)
    assert code == 0, out
    assert "CHANGED" not in out
    assert image(container, state="absent")[0] == 0


def test_a_digest_that_the_registry_does_not_have_is_named(container: str, reference: str) -> None:
    wrong = reference.split("@")[0] + "@sha256:" + "0" * 64
    code, out = image(container, image=wrong)
    assert code != 0
    assert wrong in out
    assert "could not be pulled" in out
    assert "manifest" in out


def test_a_registry_that_does_not_answer_is_named(container: str) -> None:
    absent = "127.0.0.1:5999/tiny@sha256:" + "1" * 64
    code, out = image(container, image=absent)
    assert code != 0
    assert "connection refused" in out


def test_the_pull_goes_by_the_hosts_docker_alone(container: str) -> None:
    """A unit of its own runs it, so that it goes on without us; nothing of it is left."""
    wait_until(
        lambda: "modelhost-image-" not in run("docker", "exec", container, "systemctl", "list-units", "--plain").stdout,
        "the transient units are gone",
    )
