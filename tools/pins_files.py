"""The part of `./run pins` that looks at a revision's files: what binds it to them, and whether `main` leads to it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "roles/model_store/files/opt/modelhost/model_store"))
from store import manifest, plan
from store.job import JobError

#: (path) → header and body, as Host.answer of pins.py gives them.
Asked = Callable[[str], tuple[Message, bytes]]
#: Pages of commits that are looked through; a hub has 50 or so on each.
PAGES = 200


class UnusableError(Exception):
    """A list of files that nothing can be bound to: why."""


def listed(answer: dict[str, Any], model: dict[str, Any]) -> list[dict[str, Any]]:
    """The files that an engine needs of those that the hub's answer about a revision (`?blobs=true`) lists.

    model: what chooses them (catalog.selection), and the entry's extra_files.
    """
    files = []
    for item in answer.get("siblings") or []:
        large = item.get("lfs")
        sha256 = large.get("sha256") if isinstance(large, dict) else None
        files.append(plan.File(item.get("rfilename"), item.get("size"), sha256, item.get("blobId"), bool(large)))
    entries = [file.entry() for file in files]
    try:
        manifest.check_files(entries, "the hub's answer")
        chosen = plan.wanted(files, {"repo": "this repository", "revision": "this revision", **model})
    except (manifest.ManifestError, JobError) as error:
        raise UnusableError(str(error)) from error
    found = manifest.of_model(model, [file.entry() for file in chosen])
    if not manifest.digest_of(found, False):
        raise UnusableError("the hub's answer does not name the hash of every file")
    return list(found)


def content(ask: Asked, repo: str, revision: str, files: list[dict[str, Any]]) -> str:
    """The digest over the SHA-256 of all files. Small ones are named by git's hash alone, and are fetched for it."""
    known = []
    for item in files:
        sha256 = item["sha256"]
        if not item["lfs"]:
            _header, body = ask(f"/{quote(repo)}/resolve/{revision}/{quote(item['path'])}")
            blob = manifest.git_blob(len(body))
            blob.update(body)
            if len(body) != item["size"] or blob.hexdigest() != item["blob_id"]:
                raise UnusableError(f"{item['path']} is not what the hub lists of it")
            sha256 = hashlib.sha256(body).hexdigest()
        known.append({**item, "sha256": sha256})
    return str(manifest.digest_of(known, True))


def from_main(ask: Asked, repo: str, revision: str) -> bool:
    """Whether a commit is one of those that lead to `main`: anybody's pull request makes commits of it too."""
    path = f"/api/models/{quote(repo)}/commits/main"
    for _page in range(PAGES):
        header, body = ask(path)
        try:
            commits = [str(item["id"]) for item in json.loads(body)]
        except (ValueError, TypeError, KeyError) as error:
            raise UnusableError("answered about its commits in a form that is not known") from error
        if revision in commits:
            return True
        following = re.search(r"<([^>]+)>\s*;\s*rel=\"?next\b", str(header.get("Link") or ""))
        if not following or not commits:
            return False
        place = urlsplit(following[1])
        path = f"{place.path}?{place.query}"
    raise UnusableError(f"{revision} is not among the newest commits of main, and there are more than were looked at")
