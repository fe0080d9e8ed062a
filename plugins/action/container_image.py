# MIT licence (see LICENSE)
"""A container image on the host, pulled with visible progress (documented in plugins/modules/container_image.py)."""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.action.bundle_push import transfer
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_transfer import TransferError

display = Display()

#: Seconds between two looks at a pull, and between two lines that say the same.
INTERVAL = 2.0
REPEAT = 15.0
#: Where a copied archive waits for being loaded.
CACHE = "/var/cache/modelhost/images"


def refusal(image: str, archive: str, checksum: str) -> str:
    """What is wrong with what was asked for, or nothing."""
    if archive and not re.fullmatch("[0-9a-f]{64}", checksum):
        return f"the archive {archive} needs `archive_sha256`"
    if not image:
        return "" if archive else "neither `image` nor `archive` is set"
    if not re.fullmatch(r"(?:\S+@)?sha256:[0-9a-f]{64}", image):
        return f"{image} names no digest; write it as {image.split('@')[0]}@sha256:…"
    return ""


class ActionModule(ActionBase):
    """`modelhost.serving.container_image`."""

    _supports_check_mode = True

    def _sh(self, command: str) -> tuple[int, str]:
        done = self._low_level_execute_command(command, sudoable=True)
        return int(done.get("rc", 0)), str(done.get("stdout", "")) + str(done.get("stderr", ""))

    def _pull(self, host: str, image: str) -> str:
        """Pull in a unit of its own, which goes on without us; the daemon's complaint, or nothing."""
        unit = f"modelhost-image-{hashlib.sha256(image.encode()).hexdigest()[:12]}.service"
        if self._sh(f"systemctl is-active {unit}")[0] != 0:
            # What an interrupted run left behind.
            self._sh(f"systemctl reset-failed {unit}")
            program = f"/opt/modelhost/bin/pull-image {shlex.quote(image)}"
            status, out = self._sh(f"systemd-run --unit={unit} -p RemainAfterExit=yes {program}")
            if status:
                return out
        begun = time.monotonic()
        shown, shown_at = "", begun
        while True:
            _status, out = self._sh(f"systemctl show -p ActiveState,SubState,Result,InvocationID {unit}")
            state = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
            which = f"_SYSTEMD_INVOCATION_ID={state.get('InvocationID', '')} _SYSTEMD_UNIT={unit}"
            lines = self._sh(f"journalctl --no-pager -o cat -n 5 {which}")[1].strip().splitlines()
            last = lines[-1] if lines else "asking the registry"
            if (last != shown and time.monotonic() - shown_at > INTERVAL) or time.monotonic() - shown_at > REPEAT:
                display.display(f"    {host}  {image.split('@')[0]}  {time.monotonic() - begun:4.0f} s  {last}")
                shown, shown_at = last, time.monotonic()
            if state.get("SubState") == "exited" or state.get("ActiveState") in ("failed", "inactive"):
                failed = state.get("Result") != "success"
                self._sh(f"systemctl stop {unit}; systemctl reset-failed {unit}")
                return "\n".join(lines) or "the pull ended without a word" if failed else ""
            time.sleep(INTERVAL)

    def _copy(self, archive: str, checksum: str, task_vars: Any) -> str:
        """The archive on the host."""
        size = Path(archive).stat().st_size
        file = {"root": CACHE, "path": f"{checksum}.tar", "source": archive, "size": size, "sha256": checksum}
        sender = transfer(self, task_vars, f"{CACHE}/.arrived.json", "image")
        files = [{**file, "unless": []}]
        sender.send(files, sender.look(files, [], write=True))
        return f"{CACHE}/{checksum}.tar"

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        image, archive = str(arguments.get("image") or ""), str(arguments.get("archive") or "")
        checksum = str(arguments.get("archive_sha256") or "").lower()
        remote = arguments.get("archive_remote_src") in (True, "true", "True", "yes")
        host = (task_vars or {}).get("inventory_hostname", "")

        def module(**more: Any) -> dict[str, Any]:
            asked = {"component": arguments.get("component"), "image": image, "archive": archive, **more}
            asked["archive_sha256"] = checksum
            name = "modelhost.serving.container_image"
            return dict(self._execute_module(module_name=name, module_args=asked, task_vars=task_vars))

        if arguments.get("state") == "absent":
            return {**result, **module(state="absent")}
        wrong = refusal(image, archive, checksum)
        if wrong:
            return {**result, "failed": True, "msg": f"container_image: {wrong}"}

        seen = module()
        if seen.get("failed") or seen.get("id"):
            return {**result, **seen}
        if self._task.check_mode:
            return {**result, "changed": True, "id": image or f"archive-{checksum[:12]}"}
        if archive:
            if not remote and not Path(archive).is_file():
                return {**result, "failed": True, "msg": f"there is no file {archive} on the controller"}
            display.display(f"    {host}  loading {archive}")
            try:
                place = archive if remote else self._copy(archive, checksum, task_vars)
            except TransferError as error:
                return {**result, "failed": True, "msg": f"{host}: {error}"}
            done = module(archive=place, load=True)
            if not remote:
                self._sh(f"rm -f {place} {CACHE}/.arrived.json {CACHE}/.arrived.json.lock")
            return {**result, **done}
        if image.startswith("sha256:"):
            why = "this host has no image of this id; load it there (`docker load`), or name one that can be pulled"
            return {**result, "failed": True, "msg": f"{image}: {why}"}
        complaint = self._pull(host, image)
        if complaint:
            return {**result, "failed": True, "msg": f"{image} could not be pulled on {host}: {complaint}"}
        return {**result, **module(pulled=True), "changed": True}
