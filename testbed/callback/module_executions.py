"""Counts what a run of a playbook costs: module executions, commands, seconds and CPU time, by role and task.

Loaded from outside (ANSIBLE_CALLBACK_PLUGINS names this folder), so that any revision of the playbooks can be counted.
It does nothing unless MODELHOST_EXECUTIONS names a folder; there it leaves one JSON file for each run that ended.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ansible.playbook import Playbook
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: module_executions
type: aggregate
short_description: counts module executions by role
description: Writes one JSON file for each run of a playbook into the folder that E(MODELHOST_EXECUTIONS) names.
"""


def owner(task: Task) -> str:
    """The role of a task, or the playbook that it stands in."""
    role = task._role
    if role is not None:
        return str(role.get_name(include_role_fqcn=False))
    path, _colon, _line = (task.get_path() or "").rpartition(":")
    return Path(path).name or "play"


def label(task: Task) -> str:
    """A task's name without its role."""
    return str(task.get_name(include_role_fqcn=False)).rpartition(" : ")[2]


def record_executions(file: str) -> None:
    """Have every execution of a module, and every command on a connection, write a line to this file.

    Tasks run in forks of this process, which inherit the changed methods. One short write to a file that is opened for
    appending stays one line, however many of them write.
    """

    def note(task: Task, what: str) -> None:
        line = json.dumps([owner(task), label(task), what]) + "\n"
        handle = os.open(file, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    execute, command = ActionBase._execute_module, ActionBase._low_level_execute_command

    def counted_execute(self: ActionBase, module_name: Any = None, module_args: Any = None, **rest: Any) -> Any:
        name = str(module_name or self._task.action).rpartition(".")[2]
        # A task that asks until something is true asks more often on a slow machine: that is no growth of the role.
        seen = self.__dict__.setdefault("_modules_counted", set())
        asked = (name, repr(module_args))
        if not (self._task.until or self._task.retries) or asked not in seen:
            note(self._task, name)
        seen.add(asked)
        return execute(self, module_name, module_args, **rest)

    def counted_command(self: ActionBase, *arguments: Any, **rest: Any) -> Any:
        note(self._task, "")
        return command(self, *arguments, **rest)

    ActionBase._execute_module = counted_execute
    ActionBase._low_level_execute_command = counted_command


def cpu() -> float:
    """CPU seconds of this process and of the tasks that ended."""
    # Takes ended tasks off the list of children, which adds their time to ours.
    multiprocessing.active_children()
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Attributes the time from one task's start to the next one's to the first one's role."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "module_executions"
    CALLBACK_NEEDS_ENABLED = False

    def __init__(self) -> None:
        super().__init__()
        folder = os.environ.get("MODELHOST_EXECUTIONS", "")
        if not folder:
            self.disabled = True
            return
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, self.lines = tempfile.mkstemp(prefix=".module-executions-")
        os.close(handle)
        atexit.register(Path(self.lines).unlink)
        record_executions(self.lines)
        self.playbook, self.count = "", 0
        self.began = time.time()
        self.spent: dict[str, list[float]] = {}
        self.since = ("start", time.monotonic(), 0.0)

    def turn_to(self, what: str) -> None:
        """The clock runs for this role from now on."""
        before, clock, used = self.since
        self.since = (what, time.monotonic(), cpu())
        spent = self.spent.setdefault(before, [0.0, 0.0])
        spent[0] += self.since[1] - clock
        spent[1] += self.since[2] - used

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        self.playbook = str(playbook._file_name)
        # One command may run several playbooks, each with its own file of counts.
        self.count += 1
        if self.count > 1:
            self.began, self.spent = time.time(), {}
            self.since = ("start", time.monotonic(), cpu())

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        self.turn_to(owner(task))

    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        self.turn_to(owner(task))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self.turn_to("end")
        roles: dict[str, dict[str, Any]] = {
            name: {"seconds": round(seconds, 3), "cpu": round(used, 3), "executions": 0, "commands": 0, "tasks": {}}
            for name, (seconds, used) in self.spent.items()
        }
        noted = Path(self.lines).read_text(encoding="utf-8").splitlines()
        for (role, task, module), times in Counter(tuple(json.loads(line)) for line in noted).items():
            entry = roles[role]
            entry["executions" if module else "commands"] += times
            if module:
                modules = entry["tasks"].setdefault(task, {})
                modules[module] = modules.get(module, 0) + times
        run = {
            "playbook": Path(self.playbook).name,
            "check": bool(_check_mode()),
            "began": self.began,
            "hosts": {host: stats.summarize(host) for host in sorted(stats.processed)},
            "roles": roles,
        }
        os.truncate(self.lines, 0)
        # The name sorts by time; a reader never sees half a file.
        target = (
            self.folder / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(self.began))}-{os.getpid()}-{self.count}.json"
        )
        part = target.with_suffix(".part")
        part.write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")
        part.replace(target)


def _check_mode() -> Any:
    from ansible import context

    return context.CLIARGS.get("check", False)
