"""A quick look at the store of weights, and what is removed from it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.filter.model_store_forecast import store_forecast
from ansible_collections.modelhost.serving.plugins.module_utils import model_manifest, model_store_forecast
from ansible_collections.modelhost.serving.plugins.modules import model_store_state
from patience import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[2]
REVISION = "a" * 40
OTHER = "b" * 40


def put(store: Path, repo: str = "Org/Name", revision: str = REVISION, manifest: bool = True) -> Path:
    """A staged model of two files."""
    folder = store / repo / revision
    folder.mkdir(parents=True)
    files = []
    for name, content in {"config.json": b"{}", "model.safetensors": b"x" * 1000}.items():
        (folder / name).write_bytes(content)
        sha256 = model_manifest.sha256(str(folder / name))
        files.append({"path": name, "size": len(content), "sha256": sha256, "blob_id": None, "lfs": False})
    if manifest:
        model_manifest.write(str(folder), model_manifest.make(repo, revision, "hub", "hub", files))
    return folder


def look(store: Path, check: bool = False, **params: Any) -> dict[str, Any]:
    params = {"models": [], "built": [], "keep": [], "prune": False, **params, "store": str(store)}
    return model_store_state.work(params, check)


def model(**more: Any) -> dict[str, Any]:
    return {"id": "m", "repo": "Org/Name", "revision": REVISION, **more}


def test_a_bare_host_has_nothing_and_needs_all(tmp_path: Path) -> None:
    found = look(tmp_path / "not" / "there", models=[model(weights_bytes=5000)])
    assert not found["changed"]
    assert found["free_bytes"] > 0
    (one,) = found["models"]
    assert (one["staged"], one["problems"], one["missing_bytes"]) == (False, [], 5000)


def test_a_model_that_is_not_built_yet_is_named(tmp_path: Path) -> None:
    built, missing = tmp_path / "built", tmp_path / "missing"
    built.mkdir()
    found = look(tmp_path, built=[str(built), str(missing)])
    assert found["unbuilt"] == [str(missing)]
    assert not found["changed"]


def test_a_whole_model_is_staged_and_a_short_file_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path)
    (one,) = look(tmp_path, models=[model(weights_bytes=5000)])["models"]
    assert (one["staged"], one["bytes"], one["missing_bytes"], one["verified"]) == (True, 1002, 0, "hub")
    (folder / "model.safetensors").write_bytes(b"x" * 999)
    (one,) = look(tmp_path, models=[model()])["models"]
    assert (one["staged"], one["missing_bytes"]) == (False, 1000)
    assert one["problems"] == ["model.safetensors: 999 bytes instead of 1000"]


def test_what_an_interrupted_download_left_counts(tmp_path: Path) -> None:
    part = tmp_path / ".staging/Org/Name" / REVISION
    part.mkdir(parents=True)
    (part / "model.safetensors.part").write_bytes(b"x" * 300)
    found = look(tmp_path, models=[model(weights_bytes=1000)])
    assert (found["models"][0]["staging_bytes"], found["models"][0]["missing_bytes"]) == (300, 700)
    assert found["leftovers"] == []


def test_no_manifest_or_the_wrong_one_is_not_staged(tmp_path: Path) -> None:
    put(tmp_path, manifest=False)
    (one,) = look(tmp_path, models=[model()])["models"]
    assert not one["staged"]
    assert "has no manifest" in one["problems"][0]
    folder = put(tmp_path, revision=OTHER)
    (one,) = look(tmp_path, models=[model(path=str(folder))])["models"]
    assert not one["staged"]
    assert f"is of Org/Name/{OTHER}" in one["problems"][0]
    (folder / model_manifest.NAME).write_text("{")
    (one,) = look(tmp_path, models=[model(revision=OTHER)])["models"]
    assert "cannot be read" in one["problems"][0]


def test_prune_removes_only_what_is_ours_and_unused(tmp_path: Path) -> None:
    used, kept = put(tmp_path), put(tmp_path, "Org/Kept")
    old, foreign = put(tmp_path, revision=OTHER), put(tmp_path, "Hand/Made", manifest=False)
    gone = put(tmp_path, "Gone/Model")
    staging = tmp_path / ".staging/Gone/Model" / OTHER
    incoming = tmp_path / ".incoming/Gone/Model" / REVISION
    wanted = tmp_path / ".incoming/Org/Name" / REVISION
    for folder in (staging, incoming, wanted):
        folder.mkdir(parents=True)
        (folder / "x.part").write_bytes(b"xy")
    (tmp_path / ".removing" / "left").mkdir(parents=True)
    arguments: dict[str, Any] = {"models": [model()], "keep": [f"Org/Kept/{REVISION}"]}

    found = look(tmp_path, **arguments)
    assert {item["path"] for item in found["unused"]} == {str(old), str(gone)}
    assert {item["path"] for item in found["leftovers"]} == {str(staging), str(incoming)}
    assert found["foreign"] == [str(foreign)]
    assert (found["removed"], found["changed"]) == ([], False)

    told = look(tmp_path, check=True, prune=True, **arguments)
    assert told["changed"]
    assert old.is_dir()
    done = look(tmp_path, prune=True, **arguments)
    assert set(done["removed"]) == set(told["removed"]) == {str(path) for path in (old, gone, staging, incoming)}
    assert done["removed_bytes"] == told["removed_bytes"] > 2000
    assert all(path.is_dir() for path in (used, kept, foreign, wanted))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".incoming", "Hand", "Org"]
    assert not look(tmp_path, prune=True, **arguments)["changed"]


def test_prune_leaves_what_somebody_uses_or_stages(tmp_path: Path) -> None:
    used, staged = put(tmp_path), put(tmp_path, revision=OTHER)
    (tmp_path / "Org/Name/main").symlink_to(used)
    locks = tmp_path / ".locks"
    locks.mkdir()
    process = subprocess.Popen([sys.executable, "-c", "input()", str(used)], stdin=subprocess.PIPE)
    own = Path(f"/proc/{process.pid}/cmdline")
    try:
        # The kernel lets Popen go on before the new program's words are there.
        wait_until(lambda: os.fsencode(used) in own.read_bytes(), "the process has its words")
        with open(locks / f"Org--Name--{OTHER}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = look(tmp_path, prune=True)
    finally:
        process.communicate(b"\n", timeout=HANGS)
    why = {item["path"]: item["in_use"] for item in found["unused"]}
    assert f"process {process.pid} uses it" in why[str(used)]
    assert why[str(staged)] == "it is being staged"
    assert found["kept"] == [f"{path}: {why[str(path)]}" for path in (used, staged)]
    assert not found["changed"]
    assert found["foreign"] == [str(tmp_path / "Org/Name/main")]
    assert look(tmp_path, prune=True)["removed"] == [str(used), str(staged)]


@pytest.mark.parametrize("check", [True, False])
def test_as_a_module(tmp_path: Path, check: bool) -> None:
    folder = put(tmp_path)
    arguments = {"store": str(tmp_path), "models": [{"repo": "Org/Name", "revision": OTHER}], "prune": True}
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/model_store_state.py")],
        capture_output=True, text=True, check=False,
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}),
        env={**os.environ, "_ANSIBLE_TEST": "1", "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["changed"]
    assert result["removed"] == [str(folder)]
    assert folder.exists() is check


# --- what would be downloaded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("100MB/s", 100e6), ("100 MB/s", 100e6), ("12.5MiB/s", 12.5 * 2**20), ("1Gbit/s", 125e6), ("800Mb/s", 1e8),
        ("800Mbps", 1e8), ("5000", 5000), (5000, 5000), ("1 kB/s", 1000), ("2GB", 2e9),
    ],
)  # fmt: skip
def test_rates(text: Any, bytes_per_second: float) -> None:
    assert model_store_forecast.rate(text) == bytes_per_second


@pytest.mark.parametrize("text", ["fast", "", "0", "-1MB/s", "100 MB/h", None])
def test_what_is_no_rate_is_refused_with_what_to_write(text: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"model_store_rate = .*100MB/s"):
        store_forecast({"models": [], "free_bytes": 0}, [], text)


def test_the_forecast_says_what_it_knows_and_what_it_guesses(tmp_path: Path) -> None:
    put(tmp_path)
    absent = [model(id=name, revision=OTHER, repo=f"Org/{name}") for name in ("Exact", "Guess", "Nothing", "Gone")]
    absent[1]["weights_bytes"] = 6 * 10**9
    found = look(tmp_path, models=[model(), *absent])
    paths = {item["id"]: item["path"] for item in found["models"]}
    asked = [
        {"path": paths["Exact"], "source": "hub https://hub.example", "files": 3, "bytes": 3 * 10**11,
         "local_bytes": 2**30, "error": "", "bound": False},
        {"path": paths["Gone"], "source": "", "files": 0, "bytes": 0, "local_bytes": 0, "error": "no source has it",
         "bound": False},
    ]  # fmt: skip
    told = store_forecast(found, asked, "100MB/s")
    assert told["bytes"] == 306 * 10**9
    there, exact, guess, nothing, gone, total = told["lines"]
    assert there.startswith("m: is there")
    assert exact == (
        "Exact: 3 files, 279.4 GiB from hub https://hub.example; 1.0 GiB are taken from copies on this host, if these "
        "are sound; verified against hub https://hub.example only: the catalogue binds no digest to this revision "
        "(./run pins writes it); 50 min at 100MB/s"
    )
    assert "about 5.6 GiB (estimated" in guess
    assert guess.endswith("1 min at 100MB/s")
    assert nothing == "Nothing: nobody knows yet how much (the catalogue has no weights_gib for it)"
    assert gone == "Gone: cannot be had: no source has it"
    assert total.startswith("in all 285.0 GiB, 51 min at 100MB/s; ")
