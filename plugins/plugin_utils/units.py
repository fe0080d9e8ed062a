# MIT licence (see LICENSE)
"""A systemd unit on a host, as actions that follow it see it: its state and its journal."""

from __future__ import annotations

import shlex

from ansible.plugins.action import ActionBase

#: What is asked of a unit.
PROPERTIES = "ActiveState,SubState,Result,Job,NRestarts,InvocationID"


class Unit:
    """A unit on the host of an action."""

    def __init__(self, action: ActionBase, name: str) -> None:
        self.action, self.name = action, name
        self._quoted = shlex.quote(name)

    def sh(self, command: str) -> tuple[int, str, str]:
        """A command on the host: exit status, output, errors."""
        done = self.action._low_level_execute_command(command, sudoable=True)
        return int(done.get("rc", 0)), str(done.get("stdout", "")), str(done.get("stderr", ""))

    def state(self) -> dict[str, str]:
        """Its properties now."""
        return self.state_and("true")[0]

    def state_and(self, command: str) -> tuple[dict[str, str], str]:
        """Its properties and what a command prints, of one moment."""
        out = self.sh(f"systemctl show -p {PROPERTIES} {self._quoted}; echo; {command}")[1]
        head, _, tail = out.partition("\n\n")
        return dict(line.split("=", 1) for line in head.splitlines() if "=" in line), tail

    def journal(self, lines: int, invocation: str = "") -> list[str]:
        """The end of its journal, of one start alone if that is known."""
        chosen = (
            f"_SYSTEMD_INVOCATION_ID={invocation} _SYSTEMD_UNIT={self._quoted}" if invocation else f"-u {self._quoted}"
        )
        out = self.sh(f"journalctl --no-pager -o cat -n {lines} {chosen}")[1]
        return [line for line in out.splitlines() if line.strip()]
