# MIT licence (see LICENSE)
"""Wait for a unit with visible progress (documented in plugins/modules/wait_unit.py)."""

from __future__ import annotations

import re
import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.modelhost.serving.plugins.plugin_utils.progress import Progress
from ansible_collections.modelhost.serving.plugins.plugin_utils.units import Unit

#: Seconds between two looks at the unit.
INTERVAL = 2.0
#: Characters of the journal's last line that are shown.
WIDTH = 110


#: What vLLM and uvicorn put before a message: process, level, time, place.
PREFIX = re.compile(r"^(?:\(\S+ pid=\d+\) )?(?:(?:INFO|WARNING|ERROR):?\s+)?(?:[\d-]+ [\d:]+ )?(?:\[[\w.]+:\d+\] )?")


def message(line: str) -> str:
    """A journal line without what stands before its message."""
    return PREFIX.sub("", line).strip()


def phase_of(lines: list[str], phases: list[dict[str, str]]) -> str:
    """The phase that the last matching line of the journal stands for."""
    for line in reversed(lines):
        for phase in phases:
            if re.search(phase["pattern"], line):
                return phase["phase"]
    return "starting"


def ended(state: dict[str, str]) -> bool:
    """Whether nothing more will come of this start."""
    return state.get("ActiveState") in ("failed", "inactive") and not state.get("Job")


class ActionModule(ActionBase):
    """`modelhost.serving.wait_unit`."""

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        name = arguments.get("unit")
        if not name:
            raise AnsibleError("wait_unit: `unit` is missing")
        host = (task_vars or {}).get("inventory_hostname", "")
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True}
        with Progress(host, name) as progress:
            return {**result, "changed": False, **self._wait(Unit(self, name), progress)}

    def _wait(self, unit: Unit, progress: Progress) -> dict[str, Any]:
        """How it came out."""
        arguments = self._task.args
        timeout, phases = int(arguments.get("timeout", 600)), arguments.get("phases") or []
        restarts: int | None = None
        while True:
            state = unit.state()
            passed = progress.seconds
            if state.get("ActiveState") == "active":
                progress.close("ready")
                return {"seconds": round(passed, 1)}
            # A unit that ended and that systemd starts again, while we wait, counts as failed too.
            now = int(state.get("NRestarts") or 0)
            restarts = now if restarts is None else restarts
            if ended(state) or now > restarts or passed > timeout:
                journal = unit.journal(int(arguments.get("journal_lines", 40)))
                why = f"did not become active within {timeout} s" if passed > timeout else "ended while it was starting"
                told = f"{unit.name} on {progress.host} {why}. The end of its journal:\n" + "\n".join(journal)
                return {"failed": True, "msg": told}
            journal = unit.journal(200, state.get("InvocationID", ""))
            progress.say(phase_of(journal, phases), message(journal[-1])[:WIDTH] if journal else "")
            time.sleep(INTERVAL)
