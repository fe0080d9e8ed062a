# MIT licence (see LICENSE)
"""What staging would download, and how long that takes. Pure."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import model_manifest

#: `100MB/s`, `1 Gbit/s`, `12.5 MiB/s`; a bare number is bytes a second.
RATE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(?:([kKMGT]?)(i?)(B|bit|b)(?:/s|ps)?)?\s*$")


def rate(text: Any) -> float:
    """Bytes a second. Raises ValueError, which says what to write."""
    match = RATE.match(str(text))
    if not match or not float(match[1]):
        raise ValueError(f"model_store_rate = {text!r}: not a rate; write for example 100MB/s, 12.5MiB/s or 1Gbit/s")
    number, prefix, binary, unit = match.groups()
    power = " kMGT".index((prefix or " ").replace("K", "k"))
    return float(number) * (1024 if binary else 1000) ** power / (8 if unit in ("b", "bit") else 1)


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{minutes} min" if minutes else "less than a minute"


def forecast(found: dict[str, Any], asked: list[dict[str, Any]], speed: Any) -> dict[str, Any]:
    """Lines for people, and the sum in bytes.

    `found` is what the module model_store_state found; `asked` what `python -m store.dry_run` was told by the sources,
    nothing where that could not run: then the catalogue's figures count.
    """
    per_second = rate(speed)
    exact = {item["path"]: item for item in asked}
    lines, total = [], 0
    for model in found["models"]:
        told = exact.get(model["path"])
        if model["staged"]:
            lines.append(f"{model['id']}: is there ({gib(model['bytes'])})")
            continue
        if told and told["error"]:
            lines.append(f"{model['id']}: cannot be had: {told['error']}")
            continue
        if told:
            count, text = told["bytes"], f"{told['files']} files, {gib(told['bytes'])} from {told['source']}"
            if told["local_bytes"]:
                text += f"; {gib(told['local_bytes'])} are taken from copies on this host, if these are sound"
            if told["source"] and not told["bound"]:
                text += f"; {model_manifest.only_from(told['source'])}"
        else:
            count = model["missing_bytes"]
            text = f"about {gib(count)} (estimated: what the host has already and the hub's own list are not known yet)"
            if not count:
                text = "nobody knows yet how much (the catalogue has no weights_gib for it)"
        total += count
        lines.append(f"{model['id']}: {text}" + (f"; {duration(count / per_second)} at {speed}" if count else ""))
    lines.append(f"in all {gib(total)}, {duration(total / per_second)} at {speed}; {gib(found['free_bytes'])} are free")
    return {"lines": lines, "bytes": total}
