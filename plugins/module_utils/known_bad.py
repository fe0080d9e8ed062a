# MIT licence (see LICENSE)
"""Releases that must not run, from catalog/known_bad.yml. Runs on the controller."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem
from packaging import utils, version

ROOT = Path(__file__).resolve().parents[2]
#: A line of a lock.
LOCKED = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.M)


@functools.cache
def entries() -> list[dict[str, Any]]:
    """The list itself."""
    found: list[dict[str, Any]] = read_yaml(ROOT / "catalog/known_bad.yml")
    return found


def parsed(text: str) -> version.Version | None:
    """A version, also as tags of images write it (main-v1.107.0, v0.31.0-x86_64); None where there is none."""
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)+(?:\.?(?:a|b|rc|dev|post)\d+)?)", text)
    return version.parse(found[1]) if found else None


def is_bad(entry: dict[str, Any], text: str) -> bool:
    """Whether an entry of the list is about this version."""
    number = parsed(text)
    if number is None:
        return False
    listed = [version.parse(item) for item in entry.get("versions") or []]
    # 1.107.0.post1 and 1.107.0rc1 came of the same hands.
    same = version.parse(number.base_version) in listed
    return same or ("below" in entry and number < version.parse(entry["below"]))


def told(entry: dict[str, Any]) -> str:
    """Why, with its source."""
    return f"{entry['program']} {span(entry)}: {entry['why']} ({entry['source']})"


def span(entry: dict[str, Any]) -> str:
    """`1.82.7, 1.82.8` or `before 0.32.0`"""
    return f"before {entry['below']}" if "below" in entry else ", ".join(entry["versions"])


def of_package(name: str, number: str) -> str:
    """Why a Python package of this version must not be installed; nothing if it may."""
    plain = utils.canonicalize_name(name)
    return next((told(it) for it in entries() if plain in it["distributions"] and is_bad(it, number)), "")


def of_image(reference: str) -> str:
    """Why a container image must not run, by its digest or by the version that its tag names; nothing if it may."""
    named, _at, digest = reference.rpartition("@") if "@" in reference else ("", "", reference)
    named = named or ("" if reference.startswith("sha256:") else reference)
    name, _colon, tag = named.rpartition("/")[2].partition(":")
    for entry in entries():
        if digest.lower() in (entry.get("digests") or []) or (name in entry["images"] and is_bad(entry, tag)):
            return told(entry)
    return ""


def image_problems(host: str, variable: str, reference: str) -> list[dict[str, Any]]:
    """An image that a user names."""
    why = of_image(reference)
    fix = "leave it out, and the image of versions.yml is taken; or set a later release by its digest"
    return [problem(host, variable, reference, why, fix)] if why else []


def project_problems(versions: dict[str, Any], root: Path = ROOT) -> list[dict[str, Any]]:
    """What versions.yml pins, and what its locks hold."""
    found = []
    fix = "set a later release in versions.yml and run `./run lock`, or take a newer release of this project"
    for place, item in _pins(versions):
        for key, why in (
            ("version", of_package(_name(place, item), str(item.get("version") or ""))),
            ("tag", of_image(f"{item['repository']}:{item.get('tag')}") if "repository" in item else ""),
            ("digest", of_image(str(item.get("digest") or "")) if "repository" in item else ""),
        ):
            if why:
                found.append(problem("versions.yml", f"{place}.{key}", item[key], why, fix))
        if isinstance(item.get("lock"), str) and (root / item["lock"]).is_file():
            for name, number in LOCKED.findall((root / item["lock"]).read_text(encoding="utf-8")):
                why = of_package(name, number)
                if why:
                    found.append(
                        problem("versions.yml", f"{place}.lock", f"{item['lock']}: {name}=={number}", why, fix)
                    )
    return found


@functools.cache
def shipped_problems() -> tuple[dict[str, Any], ...]:
    """The same of this checkout."""
    return tuple(project_problems(read_yaml(ROOT / "versions.yml")))


def _pins(node: Any, place: str = "") -> list[tuple[str, dict[str, Any]]]:
    """All mappings of versions.yml, by where they stand."""
    if not isinstance(node, dict):
        return []
    below = [item for key, value in node.items() for item in _pins(value, f"{place}.{key}".lstrip("."))]
    return ([(place, node)] if place else []) + below


def _name(place: str, item: dict[str, Any]) -> str:
    """The package that a pin is of: `source` names its distribution, or it is called as its place."""
    named = re.search(r"\bdistribution ([\w.-]+)", str(item.get("source") or ""))
    return named[1] if named else place.split(".")[0]
