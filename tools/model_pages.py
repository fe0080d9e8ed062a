#!/usr/bin/env python3
"""Write the pages of the models from the catalogue and its schema, in both languages.

docs/models.md is the index, docs/models/<name>.md the page of each file of catalog/models/. docs/model-entry.md lists
the keys of an entry. Their words are in tools/templates/models/. A page whose model is gone is removed.
`tools/model_pages.py --check` only says whether something would change. `./run lint` does that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible.plugins.loader import init_plugin_loader
from generated import keep
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).resolve().parents[1]
init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.modelhost.serving.plugins.module_utils import (  # noqa: E402 (needs the loader)
    capacity,
    catalog,
    preflight_gpu,
)

DOCS = ROOT / "docs"
PAGES = DOCS / "models"
#: What stands before .md in the names of each language's files.
LANGUAGES = ("", ".zh-CN")

#: What is claimed, and how it is known.
Claim = tuple[str, str]


def cell(text: Any) -> str:
    """One line that a table can hold."""
    return " ".join(str(text).split()).replace("|", "\\|")


def cache(entry: dict[str, Any]) -> str:
    """KV cache of one session of 64K on one device."""
    if not capacity.known(entry):
        return ""
    blocks = capacity.pool(capacity.layers(entry))
    return f"{blocks.request(capacity.MIN_CONTEXT) / capacity.GIB:.1f} GiB"


def needs(entry: dict[str, Any]) -> dict[str, Any]:
    """What runs it: the CPU's extension or None, the GPU's compute capability or None, the fewest GPUs and others."""
    runs = entry.get("runs_on") or ["cpu", "cuda"]
    gpu = float(entry.get("minimum_compute_capability") or preflight_gpu.MIN_CAPABILITY)
    return {
        "cpu": entry.get("minimum_cpu", "avx2") if "cpu" in runs else None,
        "gpu": gpu if "cuda" in runs else None,
        "counts": entry.get("tensor_parallel_sizes") or [1],
        "chat_only": entry.get("chat_only", False),
    }


def in_order() -> list[str]:
    """The names of the catalogue's files, in the order in which `./run plan` prefers them."""
    places = catalog.preference()
    return sorted(catalog.families(), key=lambda name: (places.get(name, len(places)), name))


def shared(family: list[dict[str, Any]], claims: Callable[[dict[str, Any]], Iterable[Claim]]) -> list[tuple[Any, ...]]:
    """Each claim of a family once, those of a name together, with the ids for which it stands if that is not all."""
    found: dict[Claim, list[str]] = {}
    for entry in family:
        for claim in dict.fromkeys(claims(entry)):
            found.setdefault(claim, []).append(entry["id"])
    names = list(dict.fromkeys(name for name, _ in found))
    ordered = sorted(found.items(), key=lambda item: names.index(item[0][0]))
    return [(*claim, ids if len(ids) < len(family) else []) for claim, ids in ordered]


def faults(entry: dict[str, Any]) -> Iterator[Claim]:
    """(what, source) of each."""
    yield from ((fault["what"], fault["source"]) for fault in entry.get("faults") or [])


def checked(entry: dict[str, Any]) -> Iterator[Claim]:
    """(name, how) of each."""
    yield from (entry.get("checked") or {}).items()


def sources(entry: dict[str, Any]) -> Iterator[Claim]:
    """(name, URL) of each."""
    for name, urls in (entry.get("sources") or {}).items():
        yield from ((name, url) for url in (urls if isinstance(urls, list) else [urls]) if url)


def kind(node: dict[str, Any]) -> str:
    """The type of a property of the schema."""
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    found = node.get("type", "")
    return ", ".join(found) if isinstance(found, list) else str(found)


def keys() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and description of each key of an entry, and of those below it."""
    for name, node in catalog.schema()["properties"].items():
        yield name, node
        for inner, below in (node.get("properties") or {}).items():
            yield f"{name}.{inner}", below


def environment() -> Environment:
    """Jinja, with what the templates call."""
    made = Environment(
        loader=FileSystemLoader(ROOT / "tools/templates/models"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # It is Markdown.
    )
    made.filters.update(cell=cell, cache=cache, needs=needs, kind=kind, tokens=capacity.thousands)
    return made


def pages() -> Iterator[tuple[Path, str]]:
    """Path and text of every page."""
    made, families = environment(), catalog.families()
    for suffix in LANGUAGES:
        words = made.get_template(f"words{suffix}.j2").module
        common = {"t": words, "suffix": suffix, "families": {name: families[name] for name in in_order()}}
        yield DOCS / f"models{suffix}.md", made.get_template("index.md.j2").render(common)
        yield DOCS / f"model-entry{suffix}.md", made.get_template("entry.md.j2").render(common, keys=list(keys()))
        for name, family in families.items():
            known = {
                "faults": shared(family, faults),
                "checked": shared(family, checked),
                "sources": shared(family, sources),
            }
            text = made.get_template("model.md.j2").render(common, name=name, family=family, known=known)
            yield PAGES / f"{name}{suffix}.md", text


def main() -> int:
    """Entry point."""
    return keep(pages(), folder=PAGES)


if __name__ == "__main__":
    sys.exit(main())
