"""Weights that a host has already are taken over: nothing is downloaded, and nothing is believed without its hash."""

from __future__ import annotations

import ast
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from patience import HANGS
from store_world import REPO, SHARDS, World, adopt, manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # A shard of these tests counts as large.
    monkeypatch.setattr(adopt, "SMALL", 500_000)
    with World(tmp_path) as world:
        yield world


def cache(world: World, **more: Any) -> Path:
    """A cache that the real client filled."""
    place = world.folder / "home/alice/.cache/huggingface/hub"
    snapshot_download(REPO, cache_dir=place, endpoint=world.hub.url, revision=world.revision, **more)
    world.places = [str(world.folder / "home/*/.cache/huggingface/hub")]
    return place


def local_dir(world: World, place: Path) -> Path:
    snapshot_download(REPO, local_dir=place, endpoint=world.hub.url, revision=world.revision)
    return place


def offline(world: World) -> None:
    world.sources = []


# --- where copies are found -----------------------------------------------------------------------------------------


def test_a_full_cache_is_taken_over_without_a_byte(world: World) -> None:
    cache(world)
    ended = world.run("stage")
    assert (ended["state"], ended["transferred"], world.fetched()) == ("done", 0, [])
    assert world.whole()
    assert ended["results"][0]["verified"] == "hub"


def test_a_full_cache_is_enough_without_any_source(world: World) -> None:
    cache(world)
    offline(world)
    ended = world.run("stage")
    assert ended["state"] == "done", ended["error"]
    assert ended["results"][0]["verified"] == "cache"
    assert world.whole()


def test_an_older_clients_cache_is_enough_too(world: World) -> None:
    # It kept no listing beside the files; the names of the blobs are the hashes.
    place = cache(world)
    shutil.rmtree(place / f"models--{REPO.replace('/', '--')}/trees")
    offline(world)
    assert world.run("stage")["state"] == "done"
    assert world.whole()


def test_only_what_a_cache_lacks_is_fetched(world: World) -> None:
    place = cache(world)
    snapshot = place / f"models--{REPO.replace('/', '--')}/snapshots/{world.revision}"
    (snapshot / SHARDS[1]).resolve().unlink()
    offline(world)
    assert "no source could list" in world.run("stage")["error"]
    world.sources = [{"type": "hub", "url": world.hub.url}]
    assert world.run("stage")["state"] == "done"
    assert world.fetched() == [SHARDS[1]]
    assert world.whole()


def test_a_damaged_copy_is_not_taken_but_fetched(world: World) -> None:
    place = cache(world)
    blob = (place / f"models--{REPO.replace('/', '--')}/snapshots/{world.revision}/{SHARDS[0]}").resolve()
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    before = blob.stat()
    assert world.run("stage")["state"] == "done"
    assert world.fetched() == [SHARDS[0]]
    assert world.whole()
    assert (blob.stat().st_uid, blob.stat().st_mode, blob.read_bytes()) == (before.st_uid, before.st_mode, bytes(data))


@pytest.mark.parametrize("place", [REPO, "Some.Model", "models/Org/Some___Model", "Org--Some.Model", f"{REPO}/{{}}"])
def test_a_folder_that_hf_filled_is_known_by_its_records(world: World, place: str) -> None:
    local_dir(world, world.folder / "models" / place.format(world.revision))
    world.places = [str(world.folder / "models")]
    offline(world)
    ended = world.run("stage")
    assert ended["state"] == "done", ended["error"]
    assert ended["results"][0]["verified"] == "cache"
    assert world.whole()


def test_a_plain_folder_serves_with_the_hubs_word_and_not_without(world: World) -> None:
    folder = world.folder / "data" / "Some.Model"
    shutil.copytree(world.folder / "root" / REPO, folder)
    world.places = [str(world.folder / "data")]
    offline(world)
    assert "no source could list" in world.run("stage")["error"]
    world.sources = [{"type": "hub", "url": world.hub.url}]
    assert world.run("stage")["transferred"] == 0
    assert world.whole()


def test_a_plain_folder_that_is_named_as_a_source_is_believed(world: World) -> None:
    shutil.copytree(world.folder / "root" / REPO, world.folder / "nas" / REPO)
    world.sources = [{"type": "folder", "path": str(world.folder / "nas")}]
    ended = world.run("stage")
    assert ended["state"] == "done", ended["error"]
    assert ended["results"][0]["verified"] == "recorded"
    assert world.whole()


def test_shards_are_shared_between_revisions(world: World) -> None:
    assert world.run("stage")["state"] == "done"
    old = world.final
    world.content["config.json"] = b'{"model_type": "qwen3"}\n'
    changed = bytearray(world.content[SHARDS[2]])
    changed[0] ^= 1
    world.content[SHARDS[2]] = bytes(changed)
    world.serve(REPO, world.content)
    world.revision = world.hub.revision(REPO)
    assert world.run("stage")["state"] == "done"
    # The first run's README, index and tokenizer are unchanged as well.
    assert world.fetched() == ["config.json", SHARDS[2]]
    assert world.whole()
    assert (old / SHARDS[0]).samefile(world.final / SHARDS[0])
    assert not (old / "README.md").samefile(world.final / "README.md")


def test_what_an_earlier_release_staged_gets_its_manifest(world: World) -> None:
    shutil.copytree(world.folder / "root" / REPO, world.final)
    (world.final / "left-over.txt").write_text("x")
    ended = world.run("stage")
    assert (ended["state"], ended["transferred"]) == ("done", 0)
    assert world.whole()


def test_what_runs_now_shows_where_it_serves_from(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.folder / "somewhere" / "of my own"
    shutil.copytree(world.folder / "root" / REPO, folder)
    world.places = [str(world.folder / "nothing-here")]
    adopt.running.cache_clear()
    engine = subprocess.Popen([sys.executable, "-c", "input()", "serve", str(folder)], stdin=subprocess.PIPE)
    try:
        assert world.run("stage")["transferred"] == 0
    finally:
        engine.communicate(b"\n", timeout=HANGS)
        adopt.running.cache_clear()
    assert world.whole()


def test_never_means_never(world: World) -> None:
    cache(world)
    assert world.run("stage", adopt_mode="never")["transferred"] > 1_800_000
    assert not any(path.stat().st_nlink > 1 for path in world.final.iterdir())


# --- what is believed -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account's files")
def test_records_in_somebody_elses_folder_count_only_where_the_place_is_named(world: World) -> None:
    place = cache(world)
    for path in [place.parent.parent.parent, *place.parent.parent.parent.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    offline(world)
    error = world.run("stage")["error"]
    assert str(place) in error
    assert "model_store_adopt_paths" in error
    # Also as the message has it: the very folder.
    snapshot = place / f"models--{REPO.replace('/', '--')}/snapshots/{world.revision}"
    assert f"There is a copy in {snapshot}," in error
    assert adopt.listing([str(snapshot)], world.model())
    world.places = [str(place)]
    assert world.run("stage")["state"] == "done"
    assert world.whole()
    # Linked, not copied: and the account cannot change it any more.
    blob = (place / f"models--{REPO.replace('/', '--')}/snapshots/{world.revision}/{SHARDS[0]}").resolve()
    assert blob.samefile(world.final / SHARDS[0])
    assert (blob.stat().st_uid, stat.S_IMODE(blob.stat().st_mode)) == (0, 0o644)
    assert (world.final / "config.json").stat().st_nlink == 1


def test_a_link_to_a_secret_brings_nothing_into_the_store(world: World) -> None:
    secret = world.folder / "shadow"
    secret.write_bytes(b"root:$6$...\n" * 30)
    place = cache(world)
    link = place / f"models--{REPO.replace('/', '--')}/snapshots/{world.revision}/README.md"
    link.unlink()
    link.symlink_to(secret)
    assert world.run("stage")["state"] == "done"
    assert world.whole()
    # In a folder that is believed as it is, a link that leads out of it does not count as a file.
    folder = world.folder / "nas" / REPO
    shutil.copytree(world.folder / "root" / REPO, folder)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(secret)
    found, verified = adopt.listing([str(world.folder / "nas")], world.model())
    assert verified == "recorded"
    assert "README.md" not in {item["path"] for item in found}


def test_pipes_and_devices_are_not_opened(world: World) -> None:
    pipe = world.folder / "pipe"
    os.mkfifo(pipe)
    entry = {"path": "x", "size": 0, "sha256": "0" * 64, "blob_id": None, "lfs": True}
    assert adopt.take(str(pipe), entry, str(world.folder / "x")) == ""
    assert not (world.folder / "x").exists()
    assert adopt.take("/dev/zero", entry, str(world.folder / "x")) == ""


def test_an_incomplete_copy_is_no_listing(world: World) -> None:
    folder = world.folder / "nas" / REPO
    shutil.copytree(world.folder / "root" / REPO, folder)
    places = [str(world.folder / "nas")]
    assert adopt.listing(places, world.model())
    (folder / SHARDS[1]).unlink()
    assert adopt.listing(places, world.model()) is None
    (folder / "model.safetensors.index.json").unlink()
    assert adopt.listing(places, world.model()) is None
    shutil.rmtree(folder)
    place = cache(world, allow_patterns="model*")
    assert adopt.listing([str(place)], world.model()) is None


def test_another_revision_of_a_cache_is_no_listing_and_no_candidate(world: World) -> None:
    place = cache(world)
    world.content[SHARDS[0]] = world.content[SHARDS[0]][::-1]
    world.serve(REPO, world.content)
    world.revision = world.hub.revision(REPO)
    assert adopt.listing([str(place)], world.model()) is None
    digest = manifest.sha256(str(world.folder / "root" / REPO / SHARDS[0]))
    entry = {"path": SHARDS[0], "size": len(world.content[SHARDS[0]]), "sha256": digest, "blob_id": None, "lfs": True}
    # By name and size it could be the same; the name of the blob says that it is not.
    assert adopt.candidates([str(place)], world.model(), [entry]) == {}


# --- how it is taken ------------------------------------------------------------------------------------------------


def entry_of(path: Path) -> dict[str, object]:
    return {"path": path.name, "size": path.stat().st_size, "sha256": manifest.sha256(str(path)), "blob_id": None}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account's files")
def test_a_file_that_somebody_has_open_for_writing_is_copied(world: World) -> None:
    original, target = world.folder / "original", world.folder / "target"
    original.write_bytes(b"x" * 600_000)
    os.chown(original, 65534, 65534)
    with open(original, "r+b"):
        assert adopt.take(str(original), entry_of(original), str(target))
    assert not original.samefile(target)
    assert (original.stat().st_uid, target.stat().st_uid) == (65534, 0)


def test_progress_is_taken_back_for_another_content(world: World) -> None:
    original, target = world.folder / "original", world.folder / "target"
    original.write_bytes(b"x" * 600_000)
    original.chmod(0o640)
    told: list[int] = []
    wrong = {**entry_of(original), "sha256": "0" * 64}
    assert adopt.take(str(original), wrong, str(target), told.append) == ""
    assert (sum(told), max(told)) == (0, 600_000)
    assert not target.exists()
    assert not Path(f"{target}.adopt").exists()
    assert (original.stat().st_nlink, stat.S_IMODE(original.stat().st_mode)) == (1, 0o640)
    assert adopt.take(str(original), entry_of(original), str(target), told.append, mode="copy")
    assert sum(told) == 600_000
    assert not original.samefile(target)


def test_a_copy_leaves_the_reserve_free(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    original, target = world.folder / "original", world.folder / "target"
    original.write_bytes(b"x" * 1000)
    room = os.statvfs(world.folder)
    reserve = room.f_bavail * room.f_frsize + (1 << 40)
    assert adopt.take(str(original), entry_of(original), str(target), reserve=reserve) == ""
    assert "too little space" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["adopt", "verify"])
def test_it_has_only_what_python_3_8_knows(name: str) -> None:
    program = ROOT / "roles/model_store/files/opt/modelhost/model_store/store"
    ast.parse((program / f"{name}.py").read_text(), feature_version=(3, 8))


def test_caches_that_services_are_told_to_use_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm.service").write_text(
        '[Service]\nEnvironment=HF_HOME=/data/hf "HF_HUB_CACHE=/data/cache"\nEnvironment=OLD_HF_HOME=/no\n'
    )
    (tmp_path / "environment").write_text("MODELSCOPE_CACHE='/data/[ms]'\n")
    monkeypatch.setattr(adopt, "SETTINGS", (f"{tmp_path}/*.service", f"{tmp_path}/environment", f"{tmp_path}/none"))
    adopt.configured.cache_clear()
    try:
        assert adopt.configured() == ("/data/hf", "/data/cache", "/data/[[]ms]")
    finally:
        adopt.configured.cache_clear()
