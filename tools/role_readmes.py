#!/usr/bin/env python3
"""Write the variables of each role into its README, from meta/argument_specs.yml.

`tools/role_readmes.py` rewrites what stands below the marker; what stands above is written by hand.
`tools/role_readmes.py --check` only says whether something would change. `./run lint` does that.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from generated import keep

ROOT = Path(__file__).resolve().parents[1]
MARKER = "<!-- Below this line: made from meta/argument_specs.yml by tools/role_readmes.py -->"
#: Ansible's own mark-up: C(code), O(option), V(value), M(module), I(italics).
MARKUP = re.compile(r"\b([CVOMI])\(((?:[^()]|\([^()]*\))*)\)")


def prose(text: Any) -> str:
    """A description as Markdown in one line."""
    joined = " ".join(text) if isinstance(text, list) else str(text)

    def mark(match: re.Match[str]) -> str:
        inside = match.group(2).removeprefix("ignore:")
        return f"*{inside}*" if match.group(1) == "I" else f"`{inside}`"

    return MARKUP.sub(mark, " ".join(joined.split()))


def kind(option: dict[str, Any]) -> str:
    """`list of str`, or the choices."""
    if "choices" in option:
        return ", ".join(f"`{choice}`" for choice in option["choices"])
    name = str(option.get("type", "str"))
    return f"{name} of {option['elements']}" if "elements" in option else name


def default(option: dict[str, Any]) -> str:
    """The default as YAML writes it."""
    if option.get("required"):
        return "**required**"
    if "default" not in option:
        return ""
    text = yaml.safe_dump(option["default"], default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
    return f"`{text}`"


def wired() -> set[str]:
    """Variables that group_vars/all/wiring.yml works out; an inventory cannot set them."""
    return set(yaml.safe_load((ROOT / "group_vars/all/wiring.yml").read_text(encoding="utf-8")))


def rows(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Table rows; keys of items stand below their list, with its name before them."""
    lines = []
    for name, option in options.items():
        text = prose(option.get("description", ""))
        if not prefix and name in wired():
            text += " *Worked out by the playbooks; only set it where you use the role by itself.*"
        cells = [f"`{prefix}{name}`", kind(option), default(option), text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        inner = option.get("options")
        if inner:
            lines += rows(inner, f"{prefix}{name}[]." if option.get("elements") else f"{prefix}{name}.")
    return lines


def section(role: Path) -> str:
    """What stands below the marker."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    main = specs["main"]
    text = [MARKER, "", prose(main.get("description", "")), "", "## Variables", ""]
    text += ["| variable | type | default | what it does |", "|---|---|---|---|", *rows(main.get("options", {}))]
    return "\n".join(text) + "\n"


def readme(role: Path) -> tuple[Path, str]:
    """A role's README as it should be."""
    path = role / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    head = text.split(MARKER)[0].rstrip()
    if not head:
        specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
        head = f"# {role.name}\n\n{prose(specs['main']['short_description'])}."
    return path, head + "\n\n" + section(role)


def main() -> int:
    """Entry point."""
    roles = [role for role in sorted((ROOT / "roles").iterdir()) if (role / "meta/argument_specs.yml").exists()]
    return keep(readme(role) for role in roles)


if __name__ == "__main__":
    sys.exit(main())
