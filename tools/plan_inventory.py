#!/usr/bin/env python3
"""Write an inventory for `./run plan` with one host for each description, or with this machine where there is none.

`tools/plan_inventory.py FILE [DESCRIPTION…]`. A description that cannot be understood ends it with a message.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

ROOT = Path(__file__).resolve().parents[1]

THIS_MACHINE = """\
all:
  children:
    engines:
      hosts:
        this-machine:
          ansible_connection: local
          ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""


def host_name(text: str, taken: list[str]) -> str:
    """`4× H20` → 4x-h20; the file's name for saved facts."""
    text = Path(text).stem if text.endswith(".json") else text
    words = re.sub(r"[^a-z0-9]+", " ", text.lower().replace("×", "x"))
    name = textwrap.shorten(words, 40, placeholder="").replace(" ", "-") or "machine"
    number = 1 + sum(1 for other in taken if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other))
    return name if number == 1 else f"{name}-{number}"


def inventory(descriptions: list[str]) -> str:
    """YAML. What others wrote is marked as unsafe, so that Ansible does not take it for a template."""
    if not descriptions:
        return THIS_MACHINE
    lines, taken = ["all:", "  children:", "    engines:", "      hosts:"], []
    for text in descriptions:
        taken.append(host_name(text, taken))
        # A number first would be no name to YAML.
        lines += [f"        {json.dumps(taken[-1])}:", f"          capacity_plan_hardware: !unsafe {json.dumps(text)}"]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Entry point."""
    init_plugin_loader([str(ROOT / ".collections")])
    from ansible_collections.modelhost.serving.plugins.module_utils import hardware, plan

    target, *descriptions = arguments
    for text in descriptions:
        try:
            plan.facts_of(text)
        except hardware.DescriptionError as error:
            print(f"plan: {error}", file=sys.stderr)
            return 1
    Path(target).write_text(inventory(descriptions), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
