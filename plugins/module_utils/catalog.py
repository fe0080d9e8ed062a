# MIT licence (see LICENSE)
"""The model catalogue: one file per model in catalog/models/, and what users add to it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def shipped() -> dict[str, dict[str, Any]]:
    """The entries that come with this project, by id."""
    found = {}
    for path in sorted((ROOT / "catalog" / "models").glob("*.yml")):
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[entry["id"]] = entry
    return found


def entries(own: list[dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """The shipped entries, and a user's own ones, which win."""
    return {**shipped(), **{entry["id"]: entry for entry in own or []}}
