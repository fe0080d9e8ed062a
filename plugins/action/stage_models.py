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
from ansible_collections.modelhost.serving.plugins.plugin_utils.progress import Progress
from ansible_collections.modelhost.serving.plugins.plugin_utils.units import Unit

display = Display()

#: Seconds between two looks at the job.
INTERVAL = 1.0
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


def numbers(status: dict[str, Any]) -> str:
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

    def _look(self, unit: Unit, path: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The unit's state and the job's own word, of one moment."""
        state, told = unit.state_and(f"cat {shlex.quote(path)}")
        try:
            return state, json.loads(told)
        except ValueError:
            return state, {}  # it has just begun

    def _outdated(self, unit: Unit, mark: str, depends: list[str]) -> bool:
        """Whether a job that runs was started before what it goes by was written."""
        mark = shlex.quote(mark)
        files = " ".join(shlex.quote(path) for path in depends)
        found = unit.sh(f"test -e {mark} || echo {mark}; find {files} -maxdepth 0 -newer {mark} 2>/dev/null")
        return bool(found.strip())

    def _patient_look(self, unit: Unit, path: str, progress: Progress) -> tuple[dict[str, str], dict[str, Any]]:
        """The same through a connection that may break: the job does not need it."""
        lost = time.monotonic()
        while True:
            try:
                return self._look(unit, path)
            except AnsibleConnectionFailure as error:
                if time.monotonic() - lost > PATIENCE:
                    raise
                progress.tell(f"the connection is lost ({error}); {unit.name} goes on there; trying again")
                self._connection.reset()
                time.sleep(INTERVAL)

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        name, path, mark = arguments.get("unit"), arguments.get("status"), arguments.get("started")
        depends = arguments.get("depends") or []
        if not name or not path or (depends and not mark):
            raise AnsibleError("stage_models: `unit` and `status` are needed, and `started` with `depends`")
        host = (task_vars or {}).get("inventory_hostname", "")
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True}
        unit = Unit(self, name)
        with Progress(host, "weights") as progress:
            state = unit.state()
            running = state.get("ActiveState") == "activating"
            if running and not (depends and self._outdated(unit, mark, depends)):
                progress.tell(f"{name} runs already, started before this run; following it")
            else:
                # The unit's file may be new as well.
                restart = f"systemctl daemon-reload; systemctl restart --no-block {shlex.quote(name)}"
                unit.sh(f"rm -f {shlex.quote(path)}; {restart}")
            state, status = self._follow(unit, path, progress)
            return {**result, **self._answer(unit, state, status, progress)}

    def _follow(self, unit: Unit, path: str, progress: Progress) -> tuple[dict[str, str], dict[str, Any]]:
        """The unit's state and the job's own word at its end."""
        while True:
            state, status = self._patient_look(unit, path, progress)
            if state.get("ActiveState") != "activating" and not state.get("Job"):
                return state, status
            known = numbers(status)
            progress.say(status.get("doing") or "starting", f"[{known}]" if known else "")
            time.sleep(INTERVAL)

    def _answer(self, unit: Unit, state: dict[str, str], status: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """How it came out."""
        answer = {key: status.get(key) for key in ("results", "transferred", "seconds", "done")}
        if state.get("Result") == "success" and status.get("state") == "done":
            progress.close()
            if status.get("transferred"):
                rate = status["transferred"] / max(status.get("seconds") or 1, 1)
                took = duration(status["seconds"])
                progress.tell(f"{amount(status['transferred'])} downloaded in {took} ({rate / 1e6:.0f} MB/s)")
            for item in status.get("results") or []:
                if item.get("state") == "staged" and not item.get("bound"):
                    display.warning(f"{progress.host}: {item['id']}: {model_manifest.only_from(item['source'])}")
            states = [item.get("state") for item in status.get("results") or []]
            changed = not {"staged", "mended", "repaired", "adopted"}.isdisjoint(states)
            return {**answer, "changed": changed}
        if status.get("error"):
            why = str(status["error"])
        else:
            journal = "\n".join(unit.journal(20, state.get("InvocationID", "")))
            why = f"it ended ({state.get('Result')}). The end of its journal:\n{journal}"
        return {**answer, "failed": True, "changed": False, "msg": f"{unit.name} on {progress.host}: {why}"}
