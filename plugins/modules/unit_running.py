#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: a systemd unit that runs with what now lies on disk."""

from __future__ import annotations

import os
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: unit_running
author: the modelhost authors
short_description: Keep a unit enabled, and running with its present files
description:
  - Starts the unit if it does not run, and restarts it if a file it depends on is younger than
    the running unit. Where a handler forgets a change when the run breaks off between writing a
    file and the restart, this finds it in the next run; and it restarts once, whatever changed.
  - Does not wait for the start to finish; see M(modelhost.serving.wait_unit).
options:
  unit:
    description: Name of the unit.
    type: str
    required: true
  depends:
    description: >-
      Files and links that the running unit must not be older than. The unit's own file and
      drop-ins count always. Missing ones count as unchanged.
    type: list
    elements: path
    default: []
"""
EXAMPLES = r"""
- name: Run the engine
  modelhost.serving.unit_running:
    unit: vllm@coder.service
    depends: [/opt/modelhost/vllm/current, /etc/modelhost/vllm/coder.env]
"""
RETURN = r"""
action:
  description: What was done (C(none), C(start) or C(restart)).
  returned: always
  type: str
because:
  description: Files that are younger than the unit.
  returned: always
  type: list
  elements: str
"""

PROPERTIES = (
    "LoadState,ActiveState,UnitFileState,NeedDaemonReload,FragmentPath,DropInPaths,InactiveExitTimestampMonotonic"
)


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


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "depends": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    unit = module.params["unit"]
    state = show(module, unit)
    if state["LoadState"] == "not-found" and module.check_mode:
        module.exit_json(changed=True, action="start", because=[])

    # What systemd read last may be older than the files: read them before judging.
    if (state["NeedDaemonReload"] == "yes" or state["LoadState"] == "not-found") and not module.check_mode:
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        state = show(module, unit)
    if state["LoadState"] == "not-found":
        module.fail_json(msg="there is no unit %s" % unit)

    because: list = []
    if state["ActiveState"] in ("active", "activating", "reloading"):
        files = [state["FragmentPath"], *state["DropInPaths"].split(), *module.params["depends"]]
        because = younger([path for path in files if path], started(state))
        action = "restart" if because else "none"
    else:
        action = "start"
    # systemd 237 calls an enabled instance of a template `indirect`.
    wanted = os.path.islink("/etc/systemd/system/multi-user.target.wants/" + unit)
    enable = state["UnitFileState"] != "enabled" and not wanted
    if not module.check_mode:
        if enable:
            module.run_command(["systemctl", "enable", "--quiet", unit], check_rc=True)
        if action != "none":
            # An engine that failed too often is locked by systemd's start limit; a deploy is a new try.
            module.run_command(["systemctl", "reset-failed", unit])
            module.run_command(["systemctl", "--no-block", action, unit], check_rc=True)
    module.exit_json(changed=enable or action != "none", action=action, because=because)


if __name__ == "__main__":
    main()
