# MIT licence (see LICENSE)
"""Judge what host_preflight found on all hosts (documented in plugins/modules/report_preflight.py)."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.action.validate_inventory import (
    image_pins,
    problems_of,
    variables_of,
    wiring,
)
from ansible_collections.modelhost.serving.plugins.module_utils import (
    bundle_use,
    containers_validation,
    model_store,
    preflight,
)
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem, verdict

display = Display()


class ActionModule(ActionBase):
    """`modelhost.serving.report_preflight`."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        # What an inventory asks for can only be held against a host where it makes sense; site.yml has checked it,
        # playbooks/preflight.yml alone has not.
        wrong, _hosts = problems_of(hostvars, groups)
        if any(item["level"] == "error" for item in wrong):
            return verdict(result, wrong, " in the inventory. Nothing was changed.", "", lambda _text: None)
        # Hosts that --limit left out were not looked at and are not judged.
        limited = task_vars.get("ansible_play_hosts_all") or []
        members = [host for name in ("engines", "gateways", "clients", "mirrors") for host in groups.get(name, [])]
        callers = [*groups.get("gateways", []), *groups.get("engines", [])]
        addresses = {host: str(hostvars[host].get("ansible_host") or host) for host in callers}
        found = []
        for host in dict.fromkeys(members):
            if host not in limited:
                continue
            variables = hostvars[host]
            if "host_preflight_probe" in variables:
                # What is wired from others is judged at its source.
                own, _broken = variables_of(hostvars, host, wiring())
                probe, settings = variables["host_preflight_probe"], variables["host_preflight_settings"]
                weights = model_store.entries(groups, hostvars, host)
                found += preflight.problems(host, probe, settings, own, groups, addresses, weights)
                found += containers_validation.problems(host, own, groups, image_pins(), probe)
                found += bundle_use.host_problems(host, probe, own, groups)
            elif "host_preflight_bare" in variables:
                bare = variables["host_preflight_bare"]
                found += preflight.bare_problems(host, bare["told"], bare["error"])
            else:
                found.append(
                    problem(
                        host,
                        "connection",
                        variables.get("ansible_host") or host,
                        "this host could not be reached",
                        "see its error above; try `ansible -m ping` with the same inventory",
                    )
                )
        sound = f"{len(set(members) & set(limited))} host(s) are fit for what is asked of them."
        promise = self._task.args.get("promise") or "Nothing was changed."
        return verdict(result, found, f". {promise}", sound, display.warning)
