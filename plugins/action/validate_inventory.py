# MIT licence (see LICENSE)
"""Check the inventory without a connection (documented in plugins/modules/validate_inventory.py)."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import (
    inventory_validation,
    litellm_validation,
    vllm_validation,
)
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem, verdict

display = Display()

#: The groups that mean something; a host in none of them is left alone.
GROUPS = ("engines", "gateways", "monitoring", "clients")


class ActionModule(ActionBase):
    """`modelhost.serving.validate_inventory`."""

    _supports_check_mode = True
    _requires_connection = False

    def _variables(self, hostvars: Any, host: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A host's own values of role variables, and those that cannot be worked out."""
        values: dict[str, Any] = {}
        found = []
        prefixes = tuple(f"{role}_" for role in inventory_validation.specs())
        source = hostvars[host]
        for name in source:
            if not str(name).startswith(prefixes):
                continue
            try:
                values[name] = source[name]
            except AnsibleError as error:
                found.append(
                    problem(host, name, None, f"its value cannot be worked out: {error.message}", "mend the expression")
                )
        return values, found

    def _wired(self) -> set[str]:
        """Names that group_vars/all/wiring.yml sets; they are worked out, not set by users."""
        path = inventory_validation.ROOT / "group_vars" / "all" / "wiring.yml"
        return (
            {line.split(":")[0] for line in path.read_text(encoding="utf-8").splitlines() if line[:1].isalpha()}
            if path.exists()
            else set()
        )

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        hosts = [host for host in groups["all"] if host in hostvars]
        wired = self._wired()
        found: list[dict[str, Any]] = []
        plain: dict[str, dict[str, Any]] = {}
        for host in hosts:
            # What is wired from others is judged at its source.
            plain[host], broken = self._variables(hostvars, host)
            found += [item for item in broken if item["variable"] not in wired]
            plain[host] = {name: value for name, value in plain[host].items() if name not in wired}
            found += inventory_validation.spec_problems(host, plain[host])
        if not groups.get("engines"):
            found.append(
                problem(
                    "inventory",
                    "engines",
                    None,
                    "the group `engines` has no host",
                    "put the hosts that run a model into the group `engines`",
                )
            )
        for host in hosts:
            plain[host]["ansible_host"] = hostvars[host].get("ansible_host")
        # Values whose type is wrong have been reported; judging them further would only confuse.
        wrong = {(item["host"], item["variable"]) for item in found}
        sound = {
            host: {name: value for name, value in values.items() if (host, name) not in wrong}
            for host, values in plain.items()
        }
        versions = {"cpu": str(pin("vllm.cpu.version")), "cuda": str(pin("vllm.cuda.version"))}
        found += vllm_validation.problems(sound, groups, versions)
        found += litellm_validation.problems(sound, groups)

        passed = f"The variables of {len(hosts)} host(s) are sound."
        return verdict(result, found, " in the inventory. No host was contacted.", passed, display.warning)
