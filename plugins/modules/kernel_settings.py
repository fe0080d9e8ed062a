#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: values in files of the kernel, below /sys and /proc/sys, with a way back."""

from __future__ import annotations

import glob
import json
import os

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: kernel_settings
author: the modelhost authors
short_description: Write values into files below /sys and /proc/sys, and remember what was there
description:
  - Writes each value where another one stands, and keeps what stood there before in a file, so that it can be
    written back. What a host does not have, or does not let anybody write (a container, many virtual machines), is
    left out and named.
  - The kernel forgets such values at its next start; RV(lines) is what systemd-tmpfiles needs to write them again.
options:
  settings:
    description: Values by path. A path may hold wildcards as a shell knows them.
    type: dict
    default: {}
  memory:
    description: The file that keeps what was there before.
    type: path
    required: true
  state:
    description: V(absent) writes back what was there before and removes O(memory).
    choices: [present, absent]
    type: str
    default: present
"""
EXAMPLES = r"""
- name: Let engines use huge pages
  modelhost.serving.kernel_settings:
    settings:
      /sys/kernel/mm/transparent_hugepage/enabled: madvise
      /sys/devices/system/cpu/cpufreq/policy*/scaling_governor: performance
    memory: /var/lib/modelhost/accelerator/before.json
"""
RETURN = r"""
lines:
  description: Lines for tmpfiles.d(5) that set what is in force.
  returned: always
  type: list
  elements: str
skipped:
  description: What was left out, with the reason.
  returned: always
  type: list
  elements: dict
"""


def chosen(text: str) -> str:
    """C(always [madvise] never) → C(madvise)."""
    _before, bracket, rest = text.partition("[")
    return rest.partition("]")[0] if bracket else text.strip()


def current(path: str) -> str:
    """What a file says now."""
    with open(path, encoding="utf-8") as handle:
        return chosen(handle.read())


def put(path: str, value: str, check_mode: bool) -> str:
    """Write a value; the reason where it is not taken."""
    if not os.access(path, os.W_OK):
        return "this host does not let anybody write it"
    if check_mode:
        return ""
    try:
        with open(path, "w", encoding="utf-8") as handle:
            handle.write(value)
        now = current(path)
    except OSError as error:
        return f"the kernel does not take {value}: {error.strerror}"
    return "" if now == value else f"the kernel keeps {now}"


def load(path: str) -> dict[str, str]:
    """What was there before, by path."""
    try:
        with open(path, encoding="utf-8") as handle:
            found: dict[str, str] = json.load(handle)
    except FileNotFoundError:
        return {}
    return found


def keep(path: str, before: dict[str, str]) -> None:
    """Remember it; nothing to remember leaves no file."""
    if not before:
        if os.path.exists(path):
            os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8") as handle:
        json.dump(before, handle, indent=1, sort_keys=True)
        handle.write("\n")
    os.replace(path + ".part", path)


def work(settings: dict[str, str], memory: str, check_mode: bool) -> dict:
    """Write what differs, write back what is no longer wanted."""
    before = load(memory)
    remembered = dict(before)
    wanted: dict[str, str] = {}
    skipped, changes = [], []
    for pattern, value in settings.items():
        paths = sorted(glob.glob(pattern))
        if not paths:
            skipped.append({"path": pattern, "reason": "this host does not have it"})
        wanted.update((path, str(value)) for path in paths)
    # Last what was set once and is not wanted any more.
    back = {path: value for path, value in before.items() if path not in wanted and os.path.exists(path)}
    lines = []
    for path, value in [*wanted.items(), *back.items()]:
        now = current(path)
        if now != value:
            reason = put(path, value, check_mode)
            if reason:
                skipped.append({"path": path, "reason": reason})
                continue
            changes.append((path, now, value))
            remembered.setdefault(path, now)
        # What is right and cannot be written needs nobody to write it at each start.
        if path in wanted and os.access(path, os.W_OK):
            lines.append(f"w {path} - - - - {value}")
    remembered = {path: value for path, value in remembered.items() if path in wanted}
    if not check_mode and remembered != before:
        keep(memory, remembered)
    return {
        "changed": bool(changes) or remembered != before,
        "lines": lines,
        "skipped": skipped,
        "diff": {
            "before": "".join(f"{path}: {now}\n" for path, now, _value in changes),
            "after": "".join(f"{path}: {value}\n" for path, _now, value in changes),
        },
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "default": {}},
            "memory": {"type": "path", "required": True},
            "state": {"choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    settings = module.params["settings"] if module.params["state"] == "present" else {}
    try:
        result = work(settings, module.params["memory"], module.check_mode)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
