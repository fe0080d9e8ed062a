"""Where weights come from: sources, the inventory's own mirrors, and what a mirror answers about its models.

The server itself, with the hub's real client, is tried in molecule/weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import hf_mirror_validation as validation
from ansible_collections.modelhost.serving.plugins.module_utils import inventory_validation, model_manifest, problems
from ansible_collections.modelhost.serving.plugins.modules import hf_mirror_listing
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "a" * 40, "b" * 40


# --- sources and mirrors of an inventory -------------------------------------------------------------------------


def test_defaults_are_the_roles() -> None:
    defaults = yaml.safe_load((ROOT / "roles/hf_mirror/defaults/main.yml").read_text("utf-8"))
    assert defaults["hf_mirror_port"] == validation.PORT
    options = inventory_validation.options()["hf_mirror_sources"]["options"]
    assert {key for keys in validation.KEYS.values() for key in keys} == set(options) - {"type"}
    assert list(validation.KEYS) == options["type"]["choices"]
    # What is secret is so for Ansible, and for every report.
    secrets = {name for name, option in options.items() if option.get("no_log")}
    assert secrets == {name for name in options if problems.is_secret(name)}


def peers(host: str, **mirrors: dict[str, Any]) -> list[str]:
    """The addresses of the mirrors as a host asks them."""
    groups = {"all": [*mirrors, "a", "b", "c"], "mirrors": list(mirrors), "engines": ["a", "b", "c"]}
    found = validation.peers(groups, mirrors, host)
    assert all(item["type"] == "hub" and item["direct"] for item in found)
    return [item["url"] for item in found]


def test_hosts_ask_the_inventorys_mirrors() -> None:
    one = {"hf_mirror_bind_address": "10.0.0.5"}
    assert peers("a", store=one) == ["http://10.0.0.5:8090"]
    assert peers("store", store=one) == []
    assert peers("a", store={**one, "hf_mirror_port": 9000}) == ["http://10.0.0.5:9000"]
    assert peers("a", store={"hf_mirror_bind_address": "fd00::5"}) == ["http://[fd00::5]:8090"]
    for useless in ({}, {"hf_mirror_bind_address": "127.0.0.1"}, {**one, "hf_mirror_state": "absent"}):
        assert peers("a", store=useless) == []
    assert validation.peers({"all": ["a"]}, {}, "a") == []


def test_several_mirrors_share_the_load() -> None:
    two = {"s1": {"hf_mirror_bind_address": "10.0.0.5"}, "s2": {"hf_mirror_bind_address": "10.0.0.6"}}
    asked = [peers(host, **two) for host in ("a", "b", "c")]
    assert all(len(set(urls)) == 2 for urls in asked)
    assert {urls[0] for urls in asked} == {"http://10.0.0.5:8090", "http://10.0.0.6:8090"}
    assert peers("s1", **two) == [], "they work at the same time, and would wait for each other"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["hub", "s3", "folder", "http"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
SECRET = "Tr0ub4dor"
URLS = st.sampled_from(
    [
        "https://huggingface.co/Org/Name", "http://hf-mirror.com", f"https://me:{SECRET}@host/x", "//", "http://[", "s3://b",
        f"https://host?token={SECRET}", "https://host:x", "http://10.0.0.1/a/tree/b", "file:///x", "/x", "x",
    ]
)  # fmt: skip
SOURCE = st.fixed_dictionaries(
    {"type": st.sampled_from([*validation.KEYS]) | ANYTHING},
    optional={
        **dict.fromkeys(("url", "path", "endpoint"), URLS | ANYTHING),
        **dict.fromkeys(("token", "password", "secret_key"), st.sampled_from([SECRET, SECRET + " "]) | ANYTHING),
        **dict.fromkeys(("region", "username", "access_key", "move", "revision", "x"), ANYTHING),
    },
)


@settings(deadline=None)  # the first call reads the catalogue
@given(st.lists(SOURCE | ANYTHING, max_size=3))
def test_whatever_stands_there_is_judged_and_no_secret_is_shown(sources: list[Any]) -> None:
    variables = {"hf_mirror_sources": sources}
    found = inventory_validation.spec_problems("box", variables)
    found += validation.problems("box", variables, {"all": ["box"], "engines": ["box"], "mirrors": ["box"]})
    assert SECRET not in problems.report(found)


# --- what a mirror answers ---------------------------------------------------------------------------------------


def stage(store: Path, repo: str, revision: str, files: dict[str, bytes], known: bool = True, age: int = 0) -> Path:
    """A model as the store has it. known: whether its source told git's names of the files."""
    folder = store / repo / revision
    listed = []
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        large = name.endswith(".safetensors")
        listed.append(
            {
                "path": name,
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "blob_id": hf_mirror_listing.git_id(content) if known and not large else None,
                "lfs": known and large,
            }
        )
    model_manifest.write(str(folder), model_manifest.make(repo, revision, "test", "hub", listed))
    os.utime(folder / model_manifest.NAME, (10**9 - age, 10**9 - age))
    return folder


FILES = {"config.json": b"{}", "model.safetensors": b"weights", "sub/dir/a.json": b"[]"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two revisions of one model, and what must not be served."""
    store = tmp_path / "models"
    stage(store, "Org/Name", FIRST, FILES, age=100)
    stage(store, "Org/Name", SECOND, {"config.json": b"{} "})
    stage(store, ".staging/Org", FIRST, FILES)
    (store / "Org/Bare" / FIRST).mkdir(parents=True)
    (store / "Org/Bare" / FIRST / "config.json").write_text("{}")
    stage(store, "modelhost/loopback", "built-here", FILES)
    return store


def run(store: Path, check: bool = False) -> dict[str, Any]:
    """The module, run as a program, as Ansible does it."""
    arguments = {"store": str(store), "path": str(store.parent / "answers"), "_ansible_check_mode": check}
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/hf_mirror_listing.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
        env={**os.environ, "_ANSIBLE_TEST": "1", "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    assert "models" in result, result
    return result


def answer(store: Path, path: str) -> Any:
    return json.loads((store.parent / "answers/api/models" / f"{path}.json").read_text("utf-8"))


def test_only_complete_models_are_listed(store: Path) -> None:
    result = run(store)
    assert result["models"] == [f"Org/Name@{FIRST}", f"Org/Name@{SECOND}"]
    config = (store.parent / "answers" / hf_mirror_listing.LOCATIONS).read_text("utf-8")
    assert f'location = "/Org/Name/resolve/{FIRST}/sub/dir/a.json"' in config
    for hidden in (".staging", "Bare", "loopback", model_manifest.NAME):
        assert hidden not in config
    assert result["probe"] == f"/Org/Name/resolve/{FIRST}/config.json"


def test_a_damaged_model_is_not_served_and_that_is_said(store: Path) -> None:
    (store / "Org/Name" / FIRST / "model.safetensors").write_bytes(b"half")
    (store / "Org/Name" / SECOND / model_manifest.NAME).write_text("{}")
    result = run(store)
    assert result["models"] == []
    said = json.dumps(result["warnings"])
    assert "model.safetensors: 4 bytes instead of 7" in said
    assert "is not a manifest of format 1" in said


def test_the_listing_changes_only_with_the_models(store: Path) -> None:
    planned = run(store, check=True)
    assert planned["changed"]
    assert not (store.parent / "answers").exists()
    first = run(store)
    assert first["changed"]
    assert first["digest"] == planned["digest"]
    assert not run(store)["changed"]
    for path in (store / "Org/Name" / SECOND).iterdir():
        path.unlink()
    (store / "Org/Name" / SECOND).rmdir()
    gone = run(store)
    assert gone["changed"]
    assert gone["digest"] != first["digest"]
    assert answer(store, "Org/Name/revision/main")["sha"] == FIRST
    assert not list((store.parent / "answers").rglob(f"{SECOND}*"))
    (store.parent / "answers/api/models/Org/Name.json").write_text("[]")
    assert run(store)["changed"]


def test_an_empty_store_is_served_too(tmp_path: Path) -> None:
    result = run(tmp_path / "models")
    assert (result["models"], result["probe"]) == ([], "")
    assert (tmp_path / "answers" / hf_mirror_listing.LOCATIONS).exists()


def test_answers_are_the_hubs(store: Path) -> None:
    run(store)
    assert answer(store, "Org/Name")["sha"] == SECOND, "what came last is main"
    listed = {item["path"]: item for item in answer(store, f"Org/Name/tree/{FIRST}.recursive")}
    assert [item["path"] for item in answer(store, f"Org/Name/tree/{FIRST}")] == [
        "config.json",
        "model.safetensors",
        "sub",
    ]
    assert set(listed) == {*FILES, "sub", "sub/dir"}
    # As `git hash-object` says.
    assert listed["config.json"]["oid"] == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert listed["model.safetensors"]["lfs"]["oid"] == hashlib.sha256(b"weights").hexdigest()
    assert listed["sub"]["type"] == "directory"
    assert [item["path"] for item in answer(store, f"Org/Name/tree/{FIRST}/sub.recursive")] == [
        "sub/dir",
        "sub/dir/a.json",
    ]
    (large,) = [item for item in answer(store, f"Org/Name/revision/{FIRST}")["siblings"] if "lfs" in item]
    assert (large["rfilename"], large["size"]) == ("model.safetensors", 7)


def test_files_without_gits_name_are_named_by_their_sha256(store: Path) -> None:
    stage(store, "Org/Other", FIRST, {"config.json": b"{}"}, known=False)
    run(store)
    (item,) = answer(store, f"Org/Other/tree/{FIRST}")
    assert item["lfs"]["oid"] == hashlib.sha256(b"{}").hexdigest()
    small = f"version https://git-lfs.github.com/spec/v1\noid sha256:{item['lfs']['oid']}\nsize 2\n".encode()
    assert item["lfs"]["pointerSize"] == len(small)
    assert item["oid"] == hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest()
    config = (store.parent / "answers" / hf_mirror_listing.LOCATIONS).read_text("utf-8")
    assert f'add_header ETag "\\"{item["lfs"]["oid"]}\\"";' in config


@pytest.mark.parametrize("name", ['a "b".json', "a $uri.json", "a;b{}.json", "a#b.json", "ü 模.json"])
def test_no_name_of_a_file_means_anything_to_nginx(name: str) -> None:
    item = {"path": name, "size": 1, "sha256": "0" * 64, "blob_id": None, "lfs": True}
    (line,) = [
        line
        for line in hf_mirror_listing.locations("Org/Name", {FIRST: {"files": [item]}}, FIRST, "/answers")
        if line.startswith("location = ")
    ]
    escaped = name.replace('"', '\\"')
    assert line.startswith(f'location = "/Org/Name/resolve/{FIRST}/{escaped}" {{ add_header')


# --- nothing of a manifest is nginx's configuration --------------------------------------------------------------

#: What the review made of an ETag.
PAYLOAD = 'x\'"; return 200 "pwned $hostname"; } location /etc/ { root /; } location = /zz { #'
GOOD: dict[str, Any] = {"path": "config.json", "size": 2, "sha256": "0" * 64, "blob_id": "1" * 40, "lfs": False}


@pytest.mark.parametrize("value", [PAYLOAD, "$hostname", "a\nb", "a;b", 'a"b', "a\\b", "a b", "ü", "{}#"])
@pytest.mark.parametrize("variables", [True, False])
def test_a_quoted_word_is_one_word_or_refused(value: str, variables: bool) -> None:
    if "\n" in value or (variables and "$" in value):
        with pytest.raises(ValueError, match="cannot stand in nginx's configuration"):
            hf_mirror_listing.quoted(value, variables)
        return
    word = hf_mirror_listing.quoted(value, variables)
    # As nginx reads it: up to the first quote that no backslash stands before.
    inside, at, read = word[1:], 0, ""
    while inside[at] != '"':
        at += inside[at] == "\\"
        read += inside[at]
        at += 1
    assert (read, inside[at:]) == (value, '"')


@pytest.mark.parametrize(
    "change",
    [
        {"blob_id": PAYLOAD},
        {"blob_id": "1" * 39},
        {"blob_id": "1" * 40 + "\n"},
        {"blob_id": "A" * 40},
        {"blob_id": 1},
        {"sha256": "g" * 64},
        {"sha256": PAYLOAD[:64].ljust(64)},
        {"sha256": None},
        {"size": -1},
        {"size": True},
        {"size": "2"},
        {"path": "a\nb.json"},
        {"path": "a\u202egpj.json"},
        {"path": "/etc/passwd"},
        {"path": "a/../b"},
        {"path": ["config.json"]},
        {"lfs": "yes"},
        {"mode": 0o4755},
    ],
    ids=str,
)
def test_a_manifest_is_checked_field_by_field(change: dict[str, Any]) -> None:
    whole = model_manifest.make("Org/Name", FIRST, "http https://files", "manifest", [GOOD])
    assert model_manifest.check(whole, "here") == whole
    with pytest.raises(model_manifest.ManifestError, match="here"):
        model_manifest.check({**whole, "files": [{**GOOD, **change}]}, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"repo": 'Org/Name"; x'},
        {"revision": "../x"},
        {"revision": None},
        {"verified": "surely"},
        {"source": "a\nforged line"},
        {"files": [GOOD, GOOD]},
        {"files": {}},
        {"scripts": []},
    ],
    ids=str,
)
def test_so_is_its_head(change: dict[str, Any]) -> None:
    whole = model_manifest.make("Org/Name", FIRST, "http https://files", "manifest", [GOOD])
    with pytest.raises(model_manifest.ManifestError, match="here"):
        model_manifest.check({**whole, **change}, "here")
    with pytest.raises(model_manifest.ManifestError, match="was asked for"):
        model_manifest.check(whole, "here", "Org/Name", SECOND)


def test_a_manifest_with_configuration_in_it_is_not_served(store: Path) -> None:
    path = store / "Org/Name" / FIRST / model_manifest.NAME
    data = json.loads(path.read_text("utf-8"))
    data["files"][0].update(blob_id=PAYLOAD, lfs=False)
    path.write_text(json.dumps(data), "utf-8")
    result = run(store)
    assert result["models"] == [f"Org/Name@{SECOND}"]
    assert "`blob_id` is not 40 hex digits" in json.dumps(result["warnings"])
    assert "pwned" not in "".join(file.read_text("utf-8") for file in store.parent.glob("answers/**/*.*"))


@pytest.mark.skipif(not shutil.which("nginx"), reason="this machine has no nginx")
def test_nginx_reads_it(store: Path) -> None:
    """Names of files with everything that means something to nginx elsewhere."""
    odd = dict.fromkeys(('a "b".json', "a $uri.json", "a;b{}.json", "a#b.json", "ü 模.json", "a'b.json"), b"{}")
    stage(store, "Org/Odd", FIRST, odd)
    assert f"Org/Odd@{FIRST}" in run(store)["models"]
    config = store.parent / "nginx.conf"
    inside = "map $arg_r $hf_mirror_recursive { default x; } server { listen 127.0.0.1:1; location @no_revision {} "
    inside += f"include {store.parent}/answers/{hf_mirror_listing.LOCATIONS}; }}"
    config.write_text(f"pid {store.parent}/pid; error_log stderr; events {{}} http {{ access_log off; {inside} }}")
    done = subprocess.run(["nginx", "-t", "-c", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
