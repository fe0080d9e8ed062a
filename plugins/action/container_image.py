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
from ansible_collections.modelhost.serving.plugins.action.bundle_push import transfer
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_transfer import TransferError
from ansible_collections.modelhost.serving.plugins.plugin_utils.progress import Progress
from ansible_collections.modelhost.serving.plugins.plugin_utils.units import Unit

#: Seconds between two looks at a pull.
INTERVAL = 2.0
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

    def _pull(self, host: str, image: str) -> str:
        """Pull in a unit of its own, which goes on without us; the daemon's complaint, or nothing."""
        unit = Unit(self, f"modelhost-image-{hashlib.sha256(image.encode()).hexdigest()[:12]}.service")
        if unit.sh(f"systemctl is-active {unit.name}")[0] != 0:
            # What an interrupted run left behind.
            unit.sh(f"systemctl reset-failed {unit.name}")
            program = f"/opt/modelhost/bin/pull-image {shlex.quote(image)}"
            status, out, errors = unit.sh(f"systemd-run --unit={unit.name} -p RemainAfterExit=yes {program}")
            if status:
                return out + errors
        with Progress(host, image.split("@")[0]) as progress:
            return self._follow(unit, progress)

    def _follow(self, unit: Unit, progress: Progress) -> str:
        """Show how far a pull is until it ends; its complaint, or nothing."""
        while True:
            state = unit.state()
            lines = unit.journal(5, state.get("InvocationID", ""))
            progress.say("pulling", lines[-1].strip() if lines else "asking the registry")
            if state.get("SubState") == "exited" or state.get("ActiveState") in ("failed", "inactive"):
                failed = state.get("Result") != "success"
                unit.sh(f"systemctl stop {unit.name}; systemctl reset-failed {unit.name}")
                if failed:
                    return "\n".join(lines) or "the pull ended without a word"
                progress.close(f"pulled: {lines[-1].strip()}" if lines else "pulled")
                return ""
            time.sleep(INTERVAL)

    def _copy(self, archive: str, checksum: str, task_vars: Any) -> str:
        """The archive on the host."""
        size = Path(archive).stat().st_size
        file = {"root": CACHE, "path": f"{checksum}.tar", "source": archive, "size": size, "sha256": checksum}
        files = [{**file, "unless": []}]
        with Progress((task_vars or {}).get("inventory_hostname", ""), "image") as progress:
            sender = transfer(self, task_vars, progress, f"{CACHE}/.arrived.json")
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
            Progress(host, "image").tell(f"loading {archive}")
            try:
                place = archive if remote else self._copy(archive, checksum, task_vars)
            except TransferError as error:
                return {**result, "failed": True, "msg": f"{host}: {error}"}
            done = module(archive=place, load=True)
            if not remote:
                self._low_level_execute_command(
                    f"rm -f {place} {CACHE}/.arrived.json {CACHE}/.arrived.json.lock", sudoable=True
                )
            return {**result, **done}
        if image.startswith("sha256:"):
            why = "this host has no image of this id; load it there (`docker load`), or name one that can be pulled"
            return {**result, "failed": True, "msg": f"{image}: {why}"}
        complaint = self._pull(host, image)
        if complaint:
            return {**result, "failed": True, "msg": f"{image} could not be pulled on {host}: {complaint}"}
        return {**result, **module(pulled=True), "changed": True}
