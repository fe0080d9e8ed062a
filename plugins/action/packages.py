# MIT licence (see LICENSE)
"""Installs packages that a host lacks (documented in plugins/modules/packages.py)."""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

#: Debian's rule for a package's name. A version behind it would be looked for as a name, and never be found.
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class ActionModule(ActionBase):
    """`modelhost.serving.packages`."""

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """One look, and apt only where something is missing."""
        result = super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(
            {
                "names": {"type": "list", "elements": "str", "required": True},
                "update_cache": {"type": "bool", "default": False},
            }
        )
        names = list(dict.fromkeys(arguments["names"]))
        wrong = [name for name in names if not NAME.fullmatch(name)]
        if wrong:
            raise AnsibleActionFail(
                f"packages: {', '.join(map(repr, wrong))}: give names of packages, without versions"
            )
        if not names:
            return {**result, "changed": False, "missing": [], "installed": []}

        seen = dict(
            self._execute_module(
                module_name="modelhost.serving.packages", module_args={**arguments, "names": names}, task_vars=task_vars
            )
        )
        if seen.get("failed") or self._task.check_mode or not seen["missing"]:
            return {**result, **seen}
        wanted = {
            "name": seen["missing"],
            "state": "present",
            "install_recommends": False,
            "update_cache": arguments["update_cache"],
        }
        done = dict(self._execute_module(module_name="ansible.builtin.apt", module_args=wanted, task_vars=task_vars))
        # Changed in any case: dpkg did not call them installed before.
        return {
            **result,
            **done,
            "missing": seen["missing"],
            "installed": [] if done.get("failed") else seen["missing"],
        }
