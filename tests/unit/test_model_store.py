# MIT licence (see LICENSE)
"""From an inventory to what the store of weights shall hold."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.action import stage_models
from ansible_collections.modelhost.serving.plugins.module_utils import catalog, model_store

OWN = "b" * 40


def own(name: str = "Org/Own", **more: Any) -> dict[str, Any]:
    return {"id": name.lower().replace("/", "-"), "source": {"repo": name, "revision": OWN, **more}}


def site(**hosts: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    return {"engines": [name for name in hosts if name != "mirror"], "mirrors": ["mirror"]}, {"mirror": {}, **hosts}


def test_models_of_a_store_are_the_checkpoints_of_hubs_each_once() -> None:
    entries = [own(), {**own(), "id": "same"}, {"id": "made", "source": {"builder": "loopback_model"}}, own("Org/B")]
    found = model_store.models(entries, "/models")
    assert [item["path"] for item in found] == [f"/models/Org/Own/{OWN}", f"/models/Org/B/{OWN}"]


def test_what_one_of_two_entries_of_a_checkpoint_needs_is_needed() -> None:
    (item,) = model_store.models([own(), {**own(allow_pickle=True), "id": "x", "trust_remote_code": True}], "/models")
    assert item["code"]
    assert item["allow_pickle"]


def test_a_digest_holds_for_the_choice_of_files_that_it_was_made_of() -> None:
    digest = {"listed": "sha256:" + "1" * 64, "content": "sha256:" + "2" * 64}
    plain, code = own(files_digest=digest), {**own(), "id": "x", "trust_remote_code": True}
    assert [item["files_digest"] for item in model_store.models([plain], "/models")] == [digest]
    (item,) = model_store.models([plain, code], "/models")
    assert item["code"]
    assert item["files_digest"] is None, "it says nothing of the Python files"
    code["source"] = {**code["source"], "files_digest": digest}
    (item,) = model_store.models([own(), code], "/models")
    assert item["files_digest"] == digest


def test_a_variant_inherits_no_digest_of_another_revision() -> None:
    digest = {"listed": "sha256:" + "1" * 64, "content": "sha256:" + "2" * 64}
    variants = [{"id": "b", "source": {"repo": "Org/B", "revision": OWN}}, {"id": "c", "title": "the same weights"}]
    found = catalog.expand({**own(files_digest=digest), "variants": variants})
    assert [entry["source"].get("files_digest") for entry in found] == [digest, None, digest]


def test_a_model_brings_the_files_that_no_hub_has() -> None:
    entry = catalog.entries([])["gpt-oss-20b"]
    (item,) = model_store.models([entry], "/models")
    assert [extra["path"] for extra in item["extra_files"]] == ["tiktoken/o200k_base.tiktoken"]
    assert entry["environment"]["TIKTOKEN_ENCODINGS_BASE"] == "{model_path}/tiktoken"


def test_a_mirror_holds_what_all_engines_download_and_no_more() -> None:
    groups, hostvars = site(
        a={"vllm_instances": [{"name": "coder", "model": "gpt-oss-20b"}]},
        b={"vllm_instances": [{"name": "x", "model": own()}, {"name": "l", "model": "loopback"}]},
        c={"vllm_instances": [{"name": "coder", "model": "gpt-oss-20b"}]},
    )
    assert [item["id"] for item in model_store.entries(groups, hostvars, "mirror")] == ["gpt-oss-20b", "org-own"]
    assert [item["id"] for item in model_store.entries(groups, hostvars, "b")] == ["org-own", "loopback"]
    assert model_store.keep(groups, hostvars) == [
        f"Org/Own/{OWN}",
        "openai/gpt-oss-20b/6cee5e81ee83917806bbde320786a8fb61efebee",
    ]


def test_a_mirror_holds_the_code_that_one_of_its_engines_needs() -> None:
    code = {**own(), "id": "code", "trust_remote_code": True}
    groups, hostvars = site(
        a={"vllm_instances": [{"name": "x", "model": code}]}, b={"vllm_instances": [{"name": "x", "model": own()}]}
    )
    (item,) = model_store.models(model_store.entries(groups, hostvars, "mirror"), "/models")
    assert item["code"]


def test_a_mirror_that_is_an_engine_builds_its_own_models_too() -> None:
    groups, hostvars = site(a={"vllm_instances": [{"name": "x", "model": own()}]})
    groups["engines"].append("mirror")
    hostvars["mirror"] = {"vllm_instances": [{"name": "l", "model": "loopback"}]}
    assert [item["id"] for item in model_store.entries(groups, hostvars, "mirror")] == ["org-own", "loopback"]


def test_progress_says_bytes_rate_and_time_left() -> None:
    status = {"total": 30 * 2**30, "done": 12 * 2**30, "rate": 98.4e6, "left": 196.4}
    assert stage_models.numbers(status) == "12.0 GiB of 30.0 GiB (40 %), 98 MB/s, 3 min 16 s left"
    assert stage_models.numbers({"total": 0, "done": 0, "rate": 0}) == ""
    assert stage_models.duration(7325) == "2 h 02 min"


class Here:
    """Stands in for a unit on a host: its shell is this machine's."""

    def sh(self, command: str) -> str:
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout


def test_a_job_is_held_against_the_files_that_it_goes_by(tmp_path: Path) -> None:
    def outdated() -> bool:
        action: Any = object.__new__(stage_models.ActionModule)
        return bool(action._outdated(Here(), str(mark), depends))

    mark, job, unit = tmp_path / "stage.started", tmp_path / "a job.json", tmp_path / "model-store@.service"
    depends = [str(job), str(unit), str(tmp_path / "missing")]
    for path in (job, unit):
        path.touch()
        os.utime(path, (100, 100))
    assert outdated(), "a job of an earlier release leaves no mark"
    mark.touch()
    os.utime(mark, (200, 200))
    assert not outdated()
    os.utime(job, (300, 300))
    assert outdated()
