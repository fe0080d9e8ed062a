# MIT licence (see LICENSE)
"""Check the inventory without a connection (documented in plugins/modules/validate_inventory.py)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.vars.plugins import get_vars_from_inventory_sources
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import (
    containers,
    inventory_validation,
    site_validation,
)
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml
from ansible_collections.modelhost.serving.plugins.module_utils.problems import HOW_TO_VAULT, problem, verdict

display = Display()

#: How a file begins that ansible-vault encrypted as a whole.
VAULT = "$ANSIBLE_VAULT"
#: An expression that asks some other place.
LOOKED_UP = re.compile(r"\b(lookup|query|q)\s*\(")
#: Facts that plays of this project leave behind under a role's prefix.
FACTS = ("host_preflight_probe", "host_preflight_settings", "host_preflight_bare")


def plain(value: Any) -> Any:
    """A variable's value as ordinary Python; expressions below it are worked out, which may fail."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def wiring() -> dict[str, Any]:
    """What group_vars/all/wiring.yml sets; nothing where the roles are used without it."""
    path = inventory_validation.ROOT / "group_vars" / "all" / "wiring.yml"
    return (read_yaml(path) or {}) if path.exists() else {}


def variables_of(hostvars: Any, host: str, left_out: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A host's values of role variables and the names of its others; and values that cannot be worked out."""
    values: dict[str, Any] = {}
    found = []
    source = hostvars[host]
    for name in source:
        if name in left_out or name in FACTS:
            continue
        try:
            # Of names that no role has nothing but the name is looked at.
            used = name == "ansible_host" or name in inventory_validation.options()
            values[name] = plain(source[name]) if used else None
        except AnsibleError as error:
            why = f"its value cannot be worked out: {error.message}"
            fix = "mend the expression, or define what it uses"
            if "vault" in str(error.message).lower():
                fix = "pass --ask-vault-pass or --vault-password-file"
            found.append(problem(host, name, None, why, fix))
    return values, found


def inventory_values(hostvars: Any, host: str) -> dict[str, Any]:
    """What a host's inventory itself says, unresolved: its files and its group_vars and host_vars."""
    inventory, loader = getattr(hostvars, "_inventory", None), getattr(hostvars, "_loader", None)
    found: dict[str, Any] = {}
    if inventory is None or loader is None:
        return found  # An Ansible that keeps them elsewhere: this check is left out, all others work.
    known = inventory.get_host(host)
    for entity in [*known.get_groups(), known]:
        found.update(entity.vars)
        found.update(get_vars_from_inventory_sources(loader, inventory._sources, [entity], "task"))
    return found


def in_plain_file(value: Any) -> str:
    """The file in which a value stands for everybody to read; nothing where it is vaulted, or comes from elsewhere."""
    try:
        from ansible._internal._datatag._tags import Origin, VaultedValue
    except ImportError:
        return ""  # An Ansible that keeps the origin of values elsewhere: bundles look at the files themselves.
    origin = Origin.get_tag(value)
    if VaultedValue.is_tagged_on(value) or origin is None or not origin.path:
        return ""
    path = Path(str(origin.path))
    if not path.is_file():
        return ""
    with path.open("rb") as handle:
        return "" if handle.read(len(VAULT)) == VAULT.encode() else str(path)


def key_problems(hostvars: Any, host: str) -> list[dict[str, Any]]:
    """Users' keys that stand in the inventory as plain text.

    Of an expression only the file in which it stands is known, so what does not come out of a vault is a warning there:
    it may be a lookup in somebody's store of secrets, or a variable with the plain key.
    """
    try:
        users = hostvars[host].get("litellm_users")
    except AnsibleError:
        return []  # said by whoever works out the values
    if not isinstance(users, list):
        return []
    raw = inventory_values(hostvars, host).get("litellm_users")
    found = []
    for at, user in enumerate(users):
        if not isinstance(user, dict) or not user.get("key"):
            continue
        path = os.path.basename(in_plain_file(user["key"]))
        written = raw[at].get("key") if isinstance(raw, list) and isinstance(raw[at], dict) else None
        if not path or not isinstance(written, (str, int, float)):
            continue
        name = f"litellm_users[{at}].key"
        if "{{" not in str(written):
            why = f"the key stands as plain text in {path}: whoever reads that file, a copy or its history has it"
            found.append(problem(host, name, None, why, HOW_TO_VAULT))
        elif not LOOKED_UP.search(str(written)):
            why = f"the expression for it in {path} does not lead to a vault, as far as can be seen"
            found.append(problem(host, name, None, why, HOW_TO_VAULT, "warning"))
    return found


def command_line_problem(name: str, value: Any) -> dict[str, Any]:
    """A variable that `-e` sets over the wiring, so that roles which share it no longer agree."""
    why = "-e beats what group_vars/all/wiring.yml works out, and roles would no longer agree on it"
    return problem("command line", name, value, why, inventory_validation.WIRED.get(name, "leave it out"))


def image_pins() -> dict[str, str]:
    """The pinned image of each service, as Docker takes it."""
    images = {"image_cpu": "vllm.cpu.image", "image_cuda": "vllm.cuda.image", "image_litellm": "litellm.image"}
    return {name: containers.pinned(pin(path)) for name, path in images.items()}


class ActionModule(ActionBase):
    """`modelhost.serving.validate_inventory`."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        found, hosts = problems_of(task_vars["hostvars"], task_vars["groups"])
        passed = f"The variables of {hosts} host(s) are sound."
        return verdict(result, found, " in the inventory. No host was contacted.", passed, display.warning)


def problems_of(hostvars: Any, groups: dict[str, list[str]]) -> tuple[list[dict[str, Any]], int]:
    """All problems of an inventory, and how many hosts it has."""
    hosts = [host for host in groups["all"] if host in hostvars]
    found: list[dict[str, Any]] = []
    values: dict[str, dict[str, Any]] = {}
    own: dict[str, dict[str, Any]] = {}
    for host in hosts:
        # What is wired from others is judged at its source.
        wired = wiring() if "wiring_backends" in hostvars[host] else {}
        values[host], broken = variables_of(hostvars, host, wired)
        found += broken
        if wired:
            said = inventory_values(hostvars, host)
            # An inventory beside the playbooks reads the wiring itself.
            own[host] = {name: said[name] for name in wired if name in said and said[name] != wired[name]}
            extra = getattr(getattr(hostvars, "_variable_manager", None), "extra_vars", {})
            found += [command_line_problem(name, extra[name]) for name in wired if name in extra]
    members = {name: list(members) for name, members in groups.items()}
    versions = {
        "cpu": str(pin("vllm.cpu.version")),
        "cuda": str(pin("vllm.cuda.version")),
        "claude_code": str(pin("claude_code.version")),
        **image_pins(),
    }
    # What cannot be worked out has been said; that it seems to be missing would only confuse.
    unknown = {(item["host"], item["variable"]) for item in found}
    checked = site_validation.check(values, own, members, versions)
    found += [item for item in checked if (item["host"], item["variable"]) not in unknown]
    found += [item for host in hosts for item in key_problems(hostvars, host)]
    return found, len(hosts)
