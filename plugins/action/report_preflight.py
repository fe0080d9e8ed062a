# MIT licence (see LICENSE)
"""Judge what host_preflight found on all hosts (documented in plugins/modules/report_preflight.py)."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.module_utils import preflight
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem, verdict

display = Display()


class ActionModule(ActionBase):
    """`modelhost.serving.report_preflight`."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        # Hosts that --limit left out were not looked at and are not judged.
        limited = task_vars.get("ansible_play_hosts_all") or []
        members = [host for name in ("engines", "gateways", "clients") for host in groups.get(name, [])]
        found = []
        for host in dict.fromkeys(members):
            if host not in limited:
                continue
            variables = hostvars[host]
            if "host_preflight_probe" not in variables:
                found.append(
                    problem(
                        host,
                        "connection",
                        variables.get("ansible_host") or host,
                        "this host could not be reached or looked at",
                        "see its error above; try `ansible -m ping` with the same inventory",
                    )
                )
                continue
            found += preflight.problems(
                host, variables["host_preflight_probe"], variables["host_preflight_settings"], variables, groups
            )
        sound = f"{len(set(members) & set(limited))} host(s) are fit for what is asked of them."
        return verdict(result, found, ". Nothing was changed.", sound, display.warning)
