"""What lies on the disk is held against its manifest, and only what is damaged comes again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from store_world import REPO, ROOT, SHARDS, World, manifest


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        assert world.run("stage")["state"] == "done"
        yield world


def flip(path: Path) -> None:
    """One wrong bit, with size and time as they were."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def inodes(world: World) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in world.final.iterdir()}


def result(ended: dict[str, Any]) -> dict[str, Any]:
    (found,) = ended["results"]
    assert found["id"] == "m"
    return dict(found)


def test_a_whole_model_is_ok_and_nothing_is_asked_of_anybody(world: World) -> None:
    ended = world.run("verify")
    assert (ended["state"], ended["done"], ended["transferred"]) == ("done", ended["total"], 0)
    assert result(ended)["state"] == "ok"
    assert world.hub.requests == []


def test_one_wrong_bit_is_found_and_only_that_file_comes_again(world: World) -> None:
    flip(world.final / SHARDS[1])
    ended = world.run("verify")
    assert ended["state"] == "failed"
    assert result(ended)["damaged"] == {SHARDS[1]: "its content is not what the manifest says"}
    assert SHARDS[1] in ended["error"]
    assert "-e model_store_repair=true" in ended["error"]
    assert world.hub.requests == []

    before = inodes(world)
    ended = world.run("verify", repair=True)
    assert (ended["state"], result(ended)["state"]) == ("done", "repaired"), ended["error"]
    assert world.fetched() == [SHARDS[1]]
    assert world.whole()
    after = inodes(world)
    assert [name for name in before if before[name] != after[name]] == [SHARDS[1]]
    assert list((world.store / ".staging").rglob("*.safetensors*")) == []
    assert world.run("verify")["state"] == "done"


def test_missing_short_and_unreadable_files_are_named(world: World) -> None:
    (world.final / SHARDS[0]).unlink()
    (world.final / SHARDS[1]).write_bytes(b"short")
    (world.final / SHARDS[2]).unlink()
    (world.final / SHARDS[2]).mkdir()
    found = result(world.run("verify"))
    assert (found["state"], found["missing"]) == ("damaged", [SHARDS[0]])
    assert found["damaged"][SHARDS[1]] == f"5 bytes instead of {len(world.content[SHARDS[1]])}"
    assert "Is a directory" in found["damaged"][SHARDS[2]]
    (world.final / SHARDS[2]).rmdir()
    ended = world.run("verify", repair=True)
    assert ended["state"] == "done", ended["error"]
    assert world.fetched() == SHARDS
    assert world.whole()


def test_what_is_not_of_the_model_is_told_and_left(world: World) -> None:
    (world.final / "notes.txt").write_text("mine")
    ended = world.run("verify", repair=True)
    assert (ended["state"], result(ended)["extra"]) == ("done", ["notes.txt"])
    assert (world.final / "notes.txt").read_text() == "mine"


def test_a_repair_without_a_source_says_so_and_touches_nothing(world: World) -> None:
    flip(world.final / SHARDS[1])
    before = inodes(world)
    world.sources = []
    ended = world.run("verify", repair=True)
    assert (ended["state"], result(ended)["state"]) == ("failed", "damaged")
    assert inodes(world) == before
    # Nobody is told to do what was done just now.
    assert "-e model_store_repair" not in ended["error"]


def test_a_copy_on_this_host_repairs_without_a_source(world: World) -> None:
    place = world.folder / "cache"
    snapshot_download(REPO, cache_dir=place, endpoint=world.hub.url, revision=world.revision)
    flip(world.final / SHARDS[1])
    world.sources, world.places = [], [str(place)]
    ended = world.run("verify", repair=True)
    assert (ended["state"], ended["transferred"]) == ("done", 0), ended["error"]
    assert world.whole()
    assert list((world.store / ".staging").rglob("*.safetensors*")) == []


def test_what_is_not_there_is_told_and_staged_by_a_repair(world: World) -> None:
    shutil.rmtree(world.final)
    ended = world.run("verify")
    assert (ended["state"], result(ended)["state"]) == ("failed", "absent")
    assert world.run("verify", repair=True)["state"] == "done"
    assert world.whole()


def test_a_model_without_a_manifest_gets_one_if_the_hub_says_so(world: World) -> None:
    (world.final / manifest.NAME).unlink()
    if os.geteuid() == 0:
        for path in (world.final, *world.final.iterdir()):
            os.chown(path, 65534, 65534)
            path.chmod(path.stat().st_mode | 0o222)
    before = inodes(world)
    ended = world.run("verify")
    assert (ended["state"], result(ended)["state"], ended["transferred"]) == ("done", "adopted", 0), ended["error"]
    # Whoever put them there can change them no more.
    assert {path.stat().st_uid for path in (world.final, *world.final.iterdir())} == {os.geteuid()}
    assert {path.stat().st_mode & 0o777 for path in world.final.iterdir()} == {0o644}
    assert world.whole()
    assert {name: number for name, number in inodes(world).items() if name != manifest.NAME} == before
    assert manifest.read(str(world.final))["verified"] == "hub"


def test_a_damaged_model_without_a_manifest_gets_none(world: World) -> None:
    (world.final / manifest.NAME).unlink()
    flip(world.final / SHARDS[1])
    flip(world.final / "config.json")  # known to the hub by git's hash alone
    ended = world.run("verify")
    assert (ended["state"], result(ended)["state"]) == ("failed", "no manifest")
    assert sorted(result(ended)["damaged"]) == ["config.json", SHARDS[1]]
    assert manifest.read(str(world.final)) is None
    ended = world.run("verify", repair=True)
    assert (ended["state"], result(ended)["state"]) == ("done", "staged"), ended["error"]
    assert world.fetched() == ["config.json", SHARDS[1]]
    assert world.whole()


def test_a_folder_that_somebody_writes_to_is_not_taken_over(world: World) -> None:
    (world.final / manifest.NAME).unlink()
    with open(world.final / SHARDS[0], "r+b"):
        ended = world.run("verify")
    assert f"somebody has {SHARDS[0]} open for writing" in ended["error"]
    assert manifest.read(str(world.final)) is None


@pytest.mark.parametrize("what", ["folder", "file"])
def test_links_are_not_taken_over_as_they_are_but_staged(world: World, what: str) -> None:
    (world.final / manifest.NAME).unlink()
    elsewhere = world.folder / "elsewhere"
    if what == "folder":
        world.final.rename(elsewhere)
        world.final.symlink_to(elsewhere)
    else:
        (world.final / SHARDS[0]).rename(elsewhere)
        (world.final / SHARDS[0]).symlink_to(elsewhere)
    ended = world.run("verify")
    assert (ended["state"], result(ended)["state"]) == ("failed", "no manifest")
    assert ("is a link" if what == "folder" else "is not a regular file") in result(ended)["why"]
    ended = world.run("verify", repair=True)
    assert (ended["state"], ended["transferred"]) == ("done", 0), ended["error"]
    assert world.whole()
    assert not world.final.is_symlink()
    assert elsewhere.exists()


def test_an_earlier_releases_folder_is_held_against_its_clients_records(world: World) -> None:
    shutil.rmtree(world.final)
    snapshot_download(REPO, local_dir=world.final, endpoint=world.hub.url, revision=world.revision)
    world.sources = []
    ended = world.run("verify")
    assert ended["state"] == "done", ended["error"]
    assert manifest.read(str(world.final))["verified"] == "cache"


def test_without_any_word_of_what_it_should_be_it_fails(world: World) -> None:
    (world.final / manifest.NAME).unlink()
    world.sources = []
    ended = world.run("verify")
    assert result(ended)["state"] == "no manifest"
    assert "nobody says what it should hold" in ended["error"]
    (world.final / manifest.NAME).write_text("{}")
    assert "is not a manifest" in world.run("verify")["error"]


def test_other_models_are_checked_although_one_is_damaged(world: World) -> None:
    other = json.loads(json.dumps(world.model()))
    shutil.copytree(world.final, world.store / "Org/Copy" / world.revision)
    folder = str(world.store / "Org/Copy" / world.revision)
    found = manifest.read(folder)
    manifest.write(folder, {**found, "repo": "Org/Copy"})
    flip(world.final / SHARDS[0])
    ended = world.run("verify", models=[world.model(), {**other, "id": "copy", "repo": "Org/Copy", "path": folder}])
    assert {item["id"]: item["state"] for item in ended["results"]} == {"m": "damaged", "copy": "ok"}


# --- what would be downloaded ---------------------------------------------------------------------------------------


def foretold(world: World) -> dict[str, Any]:
    """What the dry run says, as the role asks it."""
    done = subprocess.run(
        [sys.executable, "-B", "-m", "store.dry_run", "/dev/stdin"],
        input=json.dumps(world.job()), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "roles/model_store/files/opt/modelhost/model_store")},
    )  # fmt: skip
    (found,) = json.loads(done.stdout)
    return dict(found)


def test_a_dry_run_tells_what_is_missing_and_writes_nothing(world: World) -> None:
    assert (foretold(world)["bytes"], foretold(world)["error"]) == (0, "")
    (world.final / SHARDS[0]).unlink()
    found = foretold(world)
    assert (found["files"], found["bytes"]) == (1, len(world.content[SHARDS[0]]))
    assert found["source"] == f"hub {world.hub.url}"

    shutil.rmtree(world.store)
    found = foretold(world)
    assert (found["files"], found["bytes"]) == (len(world.content), sum(map(len, world.content.values())))
    assert not world.store.exists()
    world.places = [str(world.folder / "cache")]
    snapshot_download(REPO, cache_dir=world.places[0], endpoint=world.hub.url, revision=world.revision)
    found = foretold(world)
    assert (found["files"], found["bytes"]) == (0, 0)
    assert found["local_bytes"] == sum(map(len, world.content.values()))
    world.sources, world.places = [], []
    assert "hf_mirror_sources is empty" in foretold(world)["error"]
