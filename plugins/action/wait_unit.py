# MIT licence (see LICENSE)
"""Wait for a unit with visible progress (documented in plugins/modules/wait_unit.py)."""

from __future__ import annotations

import re
import shlex
import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

#: Seconds between two looks at the unit, and between two progress lines that say the same.
INTERVAL = 2.0
REPEAT = 15.0
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

    def _sh(self, command: str) -> str:
        result = self._low_level_execute_command(command, sudoable=True)
        return str(result.get("stdout", ""))

    def _state(self, unit: str) -> dict[str, str]:
        out = self._sh("systemctl show -p ActiveState,SubState,Result,Job,NRestarts,InvocationID " + shlex.quote(unit))
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def _journal(self, unit: str, lines: int, invocation: str = "") -> list[str]:
        selection = (
            f"_SYSTEMD_INVOCATION_ID={invocation} _SYSTEMD_UNIT={shlex.quote(unit)}"
            if invocation
            else "-u " + shlex.quote(unit)
        )
        out = self._sh(f"journalctl --no-pager -o cat -n {lines} {selection}")
        return [line for line in out.splitlines() if line.strip()]

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        unit = arguments.get("unit")
        if not unit:
            raise AnsibleError("wait_unit: `unit` is missing")
        timeout = int(arguments.get("timeout", 600))
        phases = arguments.get("phases") or []
        host = (task_vars or {}).get("inventory_hostname", "")
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True}

        begun = time.monotonic()
        shown, shown_at = "", begun
        restarts: int | None = None
        while True:
            state = self._state(unit)
            passed = time.monotonic() - begun
            if state.get("ActiveState") == "active":
                return {**result, "changed": False, "seconds": round(passed, 1)}
            # A unit that ended and that systemd starts again, while we wait, counts as failed too.
            now = int(state.get("NRestarts") or 0)
            restarts = now if restarts is None else restarts
            if ended(state) or now > restarts or passed > timeout:
                journal = self._journal(unit, int(arguments.get("journal_lines", 40)))
                why = f"did not become active within {timeout} s" if passed > timeout else "ended while it was starting"
                return {
                    **result,
                    "failed": True,
                    "changed": False,
                    "msg": f"{unit} on {host} {why}. The end of its journal:\n" + "\n".join(journal),
                }
            journal = self._journal(unit, 200, state.get("InvocationID", ""))
            phase = phase_of(journal, phases)
            last = message(journal[-1])[:WIDTH] if journal else ""
            if phase != shown or time.monotonic() - shown_at > REPEAT:
                display.display(f"    {host}  {unit}  {passed:4.0f} s  {phase}: {last}")
                shown, shown_at = phase, time.monotonic()
            time.sleep(INTERVAL)
