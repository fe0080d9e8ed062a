#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: systemd units that run with what now lies on disk."""

from __future__ import annotations

import fnmatch
import glob
import os
import shutil
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: unit_running
author: the modelhost authors
short_description: Keep units enabled, and running with their present files
description:
  - Starts a unit if it does not run, and restarts it if a file it depends on is younger than
    the running unit. Where a handler forgets a change when the run breaks off between writing a
    file and the restart, this finds it in the next run; and it restarts once, whatever changed.
  - Stops and removes units that are no longer wanted, before it starts any.
  - Does not wait for a start to finish; see M(modelhost.serving.wait_unit).
options:
  unit:
    description: Name of the unit, if it is one.
    type: str
  depends:
    description: >-
      Files and links that the running unit must not be older than. The unit's own file and
      drop-ins count always. Missing ones count as unchanged.
    type: list
    elements: path
    default: []
  units:
    description: Several units.
    type: list
    elements: dict
    default: []
    suboptions:
      unit:
        description: As O(unit).
        type: str
        required: true
      depends:
        description: As O(depends).
        type: list
        elements: path
        default: []
  unwanted:
    description: >-
      Patterns of names. Units that fit one, and that neither O(unit) nor O(units) names, are stopped, disabled, and
      then removed from C(/etc/systemd/system) with their drop-ins. So an interrupted run forgets none. A template of
      units fits as well; V(vllm@?*.service) spares it.
    type: list
    elements: str
    default: []
"""
EXAMPLES = r"""
- name: Run the gateway
  modelhost.serving.unit_running:
    unit: litellm@main.service
    depends: [/opt/modelhost/litellm/current, /etc/modelhost/litellm/main.env]

- name: Run the engines, and no others
  modelhost.serving.unit_running:
    units:
      - {unit: vllm@coder.service, depends: [/opt/modelhost/vllm/current]}
      - {unit: vllm@small.service, depends: [/opt/modelhost/vllm/current]}
    unwanted: ["vllm@?*.service"]
"""
RETURN = r"""
units:
  description: >-
    What was done, unit by unit: C(unit), C(action) (C(none), C(start) or C(restart)) and C(because), the files that are
    younger than the unit.
  returned: always
  type: list
  elements: dict
removed:
  description: Units that were not wanted and are stopped and removed.
  returned: always
  type: list
  elements: str
"""

PROPERTIES = (
    "LoadState,ActiveState,UnitFileState,NeedDaemonReload,FragmentPath,DropInPaths,InactiveExitTimestampMonotonic"
)
#: Where an administrator's units lie; the roles write theirs there.
UNITS = "/etc/systemd/system"
RUNNING = ("active", "activating", "reloading")


def show(module: AnsibleModule, unit: str) -> dict:
    """The unit's properties."""
    _code, out, _err = module.run_command(["systemctl", "show", "-p", PROPERTIES, unit], check_rc=True)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def started(state: dict) -> float:
    """When the unit last left the state inactive, in seconds since the epoch."""
    passed = time.clock_gettime(time.CLOCK_MONOTONIC) - int(state["InactiveExitTimestampMonotonic"] or 0) / 1e6
    return time.time() - passed


def younger(paths: list, moment: float) -> list:
    """Those files and links that were written after a moment; a link counts by itself."""
    found = []
    for path in paths:
        try:
            if os.lstat(path).st_mtime > moment:
                found.append(path)
        except OSError:
            continue
    return found


def is_template(unit: str) -> bool:
    """Whether a name stands for many units, so that it cannot run by itself."""
    return "@." in unit


def unwanted_units(module: AnsibleModule, patterns: list, wanted: list) -> list:
    """Units that fit a pattern by their files, their links or because systemd knows them; templates last."""
    found: set = set()
    for pattern in patterns:
        places = glob.glob(os.path.join(UNITS, pattern)) + glob.glob(os.path.join(UNITS, "*.wants", pattern))
        found.update(os.path.basename(path) for path in places)
        found.update(os.path.basename(path)[: -len(".d")] for path in glob.glob(os.path.join(UNITS, pattern + ".d")))
        # Those that run or have failed. Others that are only named by some unit are no trace of a unit.
        _code, out, _err = module.run_command(
            ["systemctl", "list-units", "--plain", "--no-legend", "--full", pattern], check_rc=True
        )
        found.update(line.split()[0] for line in out.splitlines() if line.strip())
    fitting = [name for name in found if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return sorted(set(fitting) - set(wanted), key=lambda name: (is_template(name), name))


def remove_unit(module: AnsibleModule, unit: str) -> None:
    """Stop and disable a unit, and only then remove what says that there is one."""
    if not is_template(unit):
        state = show(module, unit)
        if state["ActiveState"] not in ("inactive", "failed"):
            module.run_command(["systemctl", "stop", unit], check_rc=True)
        module.run_command(["systemctl", "reset-failed", unit])
        for link in glob.glob(os.path.join(UNITS, "*.wants", unit)):
            os.unlink(link)
    for path in (os.path.join(UNITS, unit + ".d"), os.path.join(UNITS, unit)):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


def run_unit(module: AnsibleModule, unit: str, depends: list) -> dict:
    """Bring one unit to what lies on disk; says what was done."""
    state = show(module, unit)
    if state["LoadState"] == "not-found" and module.check_mode:
        return {"unit": unit, "action": "start", "because": [], "enabled": True}

    # What systemd read last may be older than the files: read them before judging.
    if (state["NeedDaemonReload"] == "yes" or state["LoadState"] == "not-found") and not module.check_mode:
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        state = show(module, unit)
    if state["LoadState"] == "not-found":
        module.fail_json(msg="there is no unit %s" % unit)

    because: list = []
    if state["ActiveState"] in RUNNING:
        files = [state["FragmentPath"], *state["DropInPaths"].split(), *depends]
        because = younger([path for path in files if path], started(state))
        action = "restart" if because else "none"
    else:
        action = "start"
    # systemd 237 calls an enabled instance of a template `indirect`.
    linked = os.path.islink(os.path.join(UNITS, "multi-user.target.wants", unit))
    enable = state["UnitFileState"] != "enabled" and not linked
    if not module.check_mode:
        if enable:
            module.run_command(["systemctl", "enable", "--quiet", unit], check_rc=True)
        if action != "none":
            # An engine that failed too often is locked by systemd's start limit; a deploy is a new try.
            module.run_command(["systemctl", "reset-failed", unit])
            module.run_command(["systemctl", "--no-block", action, unit], check_rc=True)
    return {"unit": unit, "action": action, "because": because, "enabled": enable}


def main() -> None:
    """Entry point."""
    one = {"unit": {"type": "str", "required": True}, "depends": {"type": "list", "elements": "path", "default": []}}
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str"},
            "depends": one["depends"],
            "units": {"type": "list", "elements": "dict", "default": [], "options": one},
            "unwanted": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    wanted = list(module.params["units"])
    if module.params["unit"]:
        wanted.append({"unit": module.params["unit"], "depends": module.params["depends"]})
    gone = unwanted_units(module, module.params["unwanted"], [item["unit"] for item in wanted])
    if gone and not module.check_mode:
        for unit in gone:
            remove_unit(module, unit)
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    done = [run_unit(module, item["unit"], item["depends"]) for item in wanted]
    changed = bool(gone) or any(item["enabled"] or item["action"] != "none" for item in done)
    module.exit_json(changed=changed, units=done, removed=gone)


if __name__ == "__main__":
    main()
