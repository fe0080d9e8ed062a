# MIT licence (see LICENSE)
"""Every variable of every host against the roles' argument_specs. Runs on the controller.

Ansible accepts misspelt variables silently; this does not.
"""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

ROOT = Path(__file__).resolve().parents[2]

#: Variables of earlier releases, with what took their place.
RENAMED: dict[str, str] = {}


@functools.cache
def specs() -> dict[str, dict[str, Any]]:
    """Role → its options, from meta/argument_specs.yml of each role."""
    found = {}
    for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[path.parent.parent.name] = data["argument_specs"]["main"].get("options", {})
    return found


def validator_spec(options: dict[str, Any]) -> dict[str, Any]:
    """A role's options in the form that Ansible's own validator takes (no defaults, nothing required)."""
    keys = ("type", "elements", "choices", "no_log")
    spec = {}
    for name, option in options.items():
        spec[name] = {key: option[key] for key in keys if key in option}
    return spec


def spec_problems(host: str, variables: dict[str, Any]) -> list[dict[str, Any]]:
    """Unknown names with a role's prefix, wrong types, values outside the choices."""
    found = []
    known = {name: option for options in specs().values() for name, option in options.items()}
    prefixes = tuple(f"{role}_" for role in specs())
    for name, value in variables.items():
        if name in RENAMED:
            found.append(
                problem(
                    host, name, None, f"this variable is now called {RENAMED[name]}", f"rename it to {RENAMED[name]}"
                )
            )
        elif name in known:
            option = known[name]
            hidden = option.get("no_log")
            result = ArgumentSpecValidator(validator_spec({name: option})).validate({name: value})
            for message in result.error_messages:
                wanted = f"a value of type {option.get('type', 'str')}"
                if "choices" in option:
                    wanted = "one of: " + ", ".join(str(choice) for choice in option["choices"])
                found.append(
                    problem(
                        host,
                        name,
                        None if hidden else value,
                        "the value does not fit" if hidden else message.rstrip("."),
                        f"set {wanted}",
                    )
                )
        elif name.startswith(prefixes):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            fix = f"did you mean {near[0]}?" if near else "remove it"
            found.append(problem(host, name, None, "no role has a variable of this name", fix))
    return found
