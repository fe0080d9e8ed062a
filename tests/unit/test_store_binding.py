"""What the catalogue binds to a revision is held against every list of its files, whatever source gives it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_world import REPO, SHARDS, World, manifest, stage

#: What an engine runs of a model whose entry has trust_remote_code.
CODE = {"modeling_own.py": b"print('the makers own')\n"}
EVIL = b"print('somebody elses')\n"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    made.content.update(CODE)
    made.serve(REPO, CODE)
    made.revision = made.hub.revision(REPO)
    with made:
        yield made


def binding(world: World) -> dict[str, str]:
    """The two digests, put together from the description alone."""
    listed, content = [], []
    for path, data in world.content.items():
        sha256 = "sha256:" + hashlib.sha256(data).hexdigest()
        blob = "git:" + hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        listed.append(f"{sha256 if path.endswith('.safetensors') else blob} {len(data)} {path}\n".encode())
        content.append(f"{sha256} {len(data)} {path}\n".encode())
    return {
        name: "sha256:" + hashlib.sha256(b"".join(sorted(lines))).hexdigest()
        for name, lines in (("listed", listed), ("content", content))
    }


def model(world: World, **more: Any) -> dict[str, Any]:
    return {"repo": REPO, "revision": world.revision, "id": "m", "code": True, **more}


def sources(world: World, kind: str) -> list[dict[str, Any]]:
    """One source of this kind that holds all of the model; what it fills it with comes from the hub itself."""
    folder = world.folder / "filled"
    if kind in ("store", "cache"):
        files = [
            {
                "path": path,
                "size": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "blob_id": None,
                "lfs": False,
            }
            for path, data in world.content.items()
        ]
        place = folder / REPO / world.revision
        place.mkdir(parents=True)
        for path, data in world.content.items():
            (place / path).write_bytes(data)
        if kind == "store":
            manifest.write(str(place), manifest.make(REPO, world.revision, "x", "manifest", files))
        return [{"type": "folder", "path": str(folder)}]
    return [{"type": kind, "url": world.hub.url + ("/files" if kind == "http" else "")}]


def weights(world: World) -> list[str]:
    """What was fetched beside lists of files."""
    return [name for name in world.fetched() if name != manifest.NAME]


KINDS = ["hub", "modelscope", "http", "store", "cache"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_model_comes_from_any_source(world: World, kind: str) -> None:
    wanted = [model(world, files_digest=binding(world))]
    told = world.run("stage", models=wanted, sources=sources(world, kind))
    assert told["state"] == "done", told["error"]
    assert world.whole()
    assert told["results"][0]["bound"]
    assert told["doing"] == f"m: complete in {world.final}"
    assert world.run("stage", models=wanted)["state"] == "done"
    assert world.hub.requests == []


@pytest.mark.parametrize("kind", KINDS)
def test_other_code_under_the_same_revision_is_refused(world: World, kind: str) -> None:
    """The review's case: the list names the evil file by its own hash, so that each file is what was listed."""
    wanted = [model(world, files_digest=binding(world))]
    world.content["modeling_own.py"] = EVIL
    item = sources(world, kind)
    if item[0]["type"] != "folder":
        sha256, blob_id = hashlib.sha256(EVIL).hexdigest(), manifest.git_blob(len(EVIL))
        blob_id.update(EVIL)
        world.lies = {"modeling_own.py": {"size": len(EVIL), "sha256": sha256, "blob_id": blob_id.hexdigest()}}
    told = world.run("stage", models=wanted, sources=item)
    assert told["state"] == "failed"
    assert "files_digest" in told["error"]
    assert not world.final.exists()
    assert not list(world.store.rglob("*.py"))
    if kind != "cache":
        assert weights(world) == [], "it is refused by its list, before anything is fetched"


@pytest.mark.parametrize("kind", KINDS)
def test_code_that_nothing_binds_comes_from_the_hub_alone(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = world.run("stage", models=[model(world)], sources=sources(world, kind))
    assert told["state"] == "failed"
    for word in ("trust_remote_code", "./run pins m --write", manifest.HUB):
        assert word in told["error"]
    assert not world.final.exists()
    assert weights(world) == []
    # The hub's list counts, and then bytes may come from anywhere: each is held against it.
    monkeypatch.setattr(manifest, "HUB", world.hub.url)
    other = sources(world, kind) if kind not in ("store", "cache") else [{"type": "folder", "path": "/nowhere"}]
    told = world.run("stage", models=[model(world)], sources=[*other, {"type": "hub"}])
    assert told["state"] == "done", told["error"]
    assert world.whole()


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_binds_it_says_against_what_it_was_verified(world: World, kind: str) -> None:
    del world.content["modeling_own.py"]
    told = world.run("stage", models=[model(world, code=False)], sources=sources(world, kind))
    assert told["state"] == "done", told["error"]
    (item,) = told["results"]
    assert not item["bound"]
    assert told["doing"] == f"m: {manifest.only_from(item['source'])}"
    assert re.search(r"verified against \S+ \S+ only", told["doing"])


def test_a_mirror_that_lies_is_passed_over(world: World) -> None:
    wanted = [model(world, files_digest=binding(world))]
    place = world.folder / "filled" / REPO / world.revision
    item = sources(world, "store")
    listed = json.loads((place / manifest.NAME).read_text())
    (place / "modeling_own.py").write_bytes(EVIL)
    for file in listed["files"]:
        if file["path"] == "modeling_own.py":
            file.update(size=len(EVIL), sha256=hashlib.sha256(EVIL).hexdigest())
    (place / manifest.NAME).write_text(json.dumps(listed))
    told = world.run("stage", models=wanted, sources=[*item, {"type": "hub", "url": world.hub.url}])
    assert told["state"] == "done", told["error"]
    assert world.whole()


def test_what_was_staged_before_is_held_against_it_too(world: World) -> None:
    """An earlier release believed a mirror; now the catalogue knows better."""
    place = world.folder / "filled" / REPO / world.revision
    sources(world, "store")
    (place / "modeling_own.py").write_bytes(EVIL)
    listed = json.loads((place / manifest.NAME).read_text())
    for file in listed["files"]:
        if file["path"] == "modeling_own.py":
            file.update(size=len(EVIL), sha256=hashlib.sha256(EVIL).hexdigest())
    listed.update(source="hub https://hf-mirror.com", verified="hub")
    (place / manifest.NAME).write_text(json.dumps(listed))
    shutil.copytree(place, world.final)
    bound = [model(world, files_digest=binding(world))]
    assert not stage.whole(world.job(models=bound)["models"][0])
    checked = world.run("verify", models=bound)
    assert checked["state"] == "failed"
    assert "files_digest" in checked["error"]
    # Without a digest it is the hub's word that is missing.
    assert "trust_remote_code" in world.run("verify", models=[model(world)])["error"]
    told = world.run("stage", models=bound)
    assert told["state"] == "done", told["error"]
    assert world.whole()
    assert world.fetched() == ["modeling_own.py"], "what is right already is taken from where it lies"


def test_records_of_a_folder_are_held_against_it_once_they_are_hashed(world: World) -> None:
    """A folder in its place with nothing but names: an earlier release's."""
    for name, data in world.content.items():
        world.final.mkdir(parents=True, exist_ok=True)
        (world.final / name).write_bytes(data if name not in CODE else EVIL)
    wanted = [model(world, files_digest=binding(world))]
    told = world.run("stage", models=wanted, sources=[])
    assert told["state"] == "failed"
    assert "files_digest.content" in told["error"]
    assert not (world.final / manifest.NAME).exists()
    assert "trust_remote_code" in world.run("stage", models=[model(world)], sources=[])["error"]
    shutil.copyfile(world.folder / "root" / REPO / "modeling_own.py", world.final / "modeling_own.py")
    told = world.run("stage", models=wanted, sources=[])
    assert told["state"] == "done", told["error"]
    assert world.whole()


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("config.json", {"blob_id": 'x"; return 200 "y'}),
        ("config.json", {"size": "12"}),
        ("config.json", {"blob_id": None}),
        (SHARDS[0], {"sha256": "z" * 64}),
    ],
    ids=str,
)
def test_a_hubs_list_is_checked_field_by_field(world: World, path: str, change: dict[str, Any]) -> None:
    world.lies = {path: change}
    told = world.run("stage", models=[model(world, code=False)])
    assert told["state"] == "failed"
    assert path in told["error"] or "does not answer as a hub does" in told["error"]
    assert weights(world) == []


def test_a_manifest_of_another_model_is_none_of_this_one(world: World) -> None:
    item = sources(world, "store")
    path = world.folder / "filled" / REPO / world.revision / manifest.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "repo": "Org/Other"}))
    told = world.run("stage", models=[model(world, code=False)], sources=item)
    assert told["state"] == "failed"
    assert "is about the repo Org/Other" in told["error"]


def test_a_file_that_no_hub_has_keeps_the_catalogues_hash(world: World) -> None:
    """A mirror of ours lists it as well; what the catalogue says of it counts."""
    extra = {"path": "config.json", "url": f"{world.hub.url}/nowhere", "sha256": "1" * 64, "size": 5}
    told = world.run("stage", models=[model(world, code=False, extra_files=[extra])])
    assert told["state"] == "failed"
    assert not world.final.exists()
