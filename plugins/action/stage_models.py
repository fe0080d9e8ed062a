# MIT licence (see LICENSE)
"""Follow a job of the store of weights (documented in plugins/modules/stage_models.py)."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.module_utils import model_manifest

display = Display()

#: Seconds between two looks at the job, and between two lines about the same file.
INTERVAL = 1.0
REPEAT = 15.0
#: Seconds for which a host may be out of reach while its job goes on.
PATIENCE = 600.0


def amount(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def progress(status: dict[str, Any]) -> str:
    """One line about a running job: what is there of how much, how fast, and how long it will take."""
    total, done = status.get("total") or 0, status.get("done") or 0
    parts = []
    if total:
        parts.append(f"{amount(done)} of {amount(total)} ({100 * done / total:.0f} %)")
    if status.get("rate"):
        parts.append(f"{status['rate'] / 1e6:.0f} MB/s")
    if status.get("left") is not None and total > done:
        parts.append(f"{duration(status['left'])} left")
    return ", ".join(parts)


class ActionModule(ActionBase):
    """`modelhost.serving.stage_models`."""

    _supports_check_mode = True

    def _sh(self, command: str) -> str:
        return str(self._low_level_execute_command(command, sudoable=True).get("stdout", ""))

    def _look(self, unit: str, path: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The unit's state and the job's own word, of one moment."""
        out = self._sh(
            f"systemctl show -p ActiveState,Result,Job,InvocationID {shlex.quote(unit)}; echo; cat {shlex.quote(path)}"
        )
        head, _, tail = out.partition("\n\n")
        state = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
        try:
            status = json.loads(tail)
        except ValueError:
            status = {}  # it has just begun
        return state, status

    def _outdated(self, mark: str, depends: list[str]) -> bool:
        """Whether a job that runs was started before what it goes by was written."""
        mark = shlex.quote(mark)
        files = " ".join(shlex.quote(path) for path in depends)
        found = self._sh(f"test -e {mark} || echo {mark}; find {files} -maxdepth 0 -newer {mark} 2>/dev/null")
        return bool(found.strip())

    def _patient_look(self, host: str, unit: str, path: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The same through a connection that may break: the job does not need it."""
        lost = time.monotonic()
        while True:
            try:
                return self._look(unit, path)
            except AnsibleConnectionFailure as error:
                if time.monotonic() - lost > PATIENCE:
                    raise
                display.display(f"    {host}  the connection is lost ({error}); {unit} goes on there; trying again")
                self._connection.reset()
                time.sleep(INTERVAL)

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        unit, path, mark = arguments.get("unit"), arguments.get("status"), arguments.get("started")
        depends = arguments.get("depends") or []
        if not unit or not path or (depends and not mark):
            raise AnsibleError("stage_models: `unit` and `status` are needed, and `started` with `depends`")
        host = (task_vars or {}).get("inventory_hostname", "")
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True}

        state, _ = self._look(unit, path)
        running = state.get("ActiveState") == "activating"
        if running and not (depends and self._outdated(mark, depends)):
            display.display(f"    {host}  {unit} runs already, started before this run; following it")
        else:
            # The unit's file may be new as well.
            self._sh(
                f"rm -f {shlex.quote(path)}; systemctl daemon-reload; systemctl restart --no-block {shlex.quote(unit)}"
            )

        shown, shown_at = "", 0.0
        while True:
            state, status = self._patient_look(host, unit, path)
            if state.get("ActiveState") != "activating" and not state.get("Job"):
                break
            line, now = status.get("doing") or "", time.monotonic()
            if (line and line != shown) or now - shown_at > REPEAT:
                numbers = progress(status)
                display.display(f"    {host}  {line}" + (f"  [{numbers}]" if numbers else ""))
                shown, shown_at = line, now
            time.sleep(INTERVAL)

        answer = {key: status.get(key) for key in ("results", "transferred", "seconds", "done")}
        if state.get("Result") == "success" and status.get("state") == "done":
            if status.get("transferred"):
                rate = status["transferred"] / max(status.get("seconds") or 1, 1)
                display.display(
                    f"    {host}  {amount(status['transferred'])} downloaded in {duration(status['seconds'])} "
                    f"({rate / 1e6:.0f} MB/s)"
                )
            for item in status.get("results") or []:
                if item.get("state") == "staged" and not item.get("bound"):
                    display.warning(f"{host}: {item['id']}: {model_manifest.only_from(item['source'])}")
            states = [item.get("state") for item in status.get("results") or []]
            changed = not {"staged", "mended", "repaired", "adopted"}.isdisjoint(states)
            return {**result, **answer, "changed": changed}
        if status.get("error"):
            why = str(status["error"])
        else:
            invocation = state.get("InvocationID", "")
            chosen = f"_SYSTEMD_INVOCATION_ID={invocation}" if invocation else f"-u {shlex.quote(unit)}"
            journal = self._sh(f"journalctl --no-pager -o cat -n 20 {chosen}")
            why = f"it ended ({state.get('Result')}). The end of its journal:\n{journal}"
        return {**result, **answer, "failed": True, "changed": False, "msg": f"{unit} on {host}: {why}"}
