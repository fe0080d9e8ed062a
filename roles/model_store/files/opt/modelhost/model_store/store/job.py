# MIT licence (see LICENSE)
"""What shall be done: the job file that the role writes."""

from __future__ import annotations

import json
import os
import re

DEFAULTS = {"adopt": [], "adopt_mode": "auto", "workers": 8, "reserve_bytes": 1 << 30, "retries": 4, "repair": False}
NUMBERS = ("workers", "reserve_bytes", "retries")


class JobError(Exception):
    """The job cannot be done, and no retry would change that. The message is for the person who reads it."""


def read(path: str) -> dict:
    """The job of this file, with defaults filled in. Raises JobError where something is missing.

    `sources` may lie in a file of their own, `sources_file`, since they hold secrets.
    """
    from . import adopt

    with open(path, encoding="utf-8") as handle:
        job = {**DEFAULTS, **json.load(handle)}
    if "sources_file" in job:
        try:
            with open(job["sources_file"], encoding="utf-8") as handle:
                job["sources"] = json.load(handle)
        except FileNotFoundError as error:
            raise JobError("%s is missing: the role hf_mirror writes it" % job["sources_file"]) from error
    for key in NUMBERS:
        job[key] = int(job[key])
    job["adopt"] = [] if job["adopt_mode"] == "never" else [*job["adopt"], *adopt.configured()]
    for key in ("store", "models", "sources"):
        if key not in job:
            raise JobError("%s: the key %r is missing" % (path, key))
    for model in job["models"]:
        if not re.match(r"^[\w.-]+/[\w.-]+$", model.get("repo", "")) or not re.match(
            r"^[0-9a-f]{40}$", model.get("revision", "")
        ):
            raise JobError("%s: a model needs a repo and a revision of 40 hex digits: %r" % (path, model))
        model.setdefault("path", os.path.join(job["store"], model["repo"], model["revision"]))
        model.setdefault("id", model["repo"])
        for key, value in (("allow_pickle", False), ("code", False), ("files", []), ("extra_files", [])):
            model.setdefault(key, value)
        model.setdefault("files_digest", None)
    return job


def staging(job: dict, model: dict) -> str:
    """Where the files of a model lie until all are there."""
    return os.path.join(job["store"], ".staging", model["repo"], model["revision"])
