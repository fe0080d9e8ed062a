# MIT licence (see LICENSE)
"""Files of a bundle on the host, with progress (documented in plugins/modules/bundle_push.py)."""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_transfer import Transfer, TransferError, size
from ansible_collections.modelhost.serving.plugins.plugin_utils.progress import Progress

#: Where a host keeps what arrived, and what of it was checked.
RECORD = "/var/cache/modelhost/bundle/.arrived.json"


def transfer(action: ActionBase, task_vars: Any, progress: Progress, record: str = RECORD) -> Transfer:
    """A transfer to the host of an action."""
    python = str((task_vars or {}).get("ansible_python_interpreter") or "")

    def run(command: str, data: bytes) -> tuple[int, str, str]:
        done = action._low_level_execute_command(command, sudoable=True, in_data=data)
        return int(done.get("rc", 0)), str(done.get("stdout", "")), str(done.get("stderr", ""))

    def say(line: str) -> None:
        progress.say("sending", line)

    return Transfer(run, python if python.startswith("/") else "python3", record, say)


class ActionModule(ActionBase):
    """`modelhost.serving.bundle_push`."""

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        with Progress((task_vars or {}).get("inventory_hostname", ""), "bundle") as progress:
            return {**result, **self._push(task_vars, progress)}

    def _push(self, task_vars: Any, progress: Progress) -> dict[str, Any]:
        """How it came out."""
        bundle = str(self._task.args.get("bundle") or "")
        in_place = self._task.args.get("in_place") in (True, "true", "True", "yes")
        prune = [str(path) for path in self._task.args.get("prune") or []]
        files = [
            {"unless": [], **item, "source": os.path.join(bundle, item.get("source") or item["path"])}
            for item in self._task.args.get("files") or []
        ]
        check = bool(self._task.check_mode)
        sender = transfer(self, task_vars, progress)
        try:
            seen = sender.look(files, prune, write=not check)
            missing = [item for item, have in zip(files, seen["have"], strict=True) if have >= 0]
            amount = sum(item["size"] - have for item, have in zip(files, seen["have"], strict=True) if have >= 0)
            changed = bool(missing or seen["removed"])
            if in_place and missing:
                names = ", ".join(item["path"] for item in missing[:5])
                raise TransferError(
                    f"{len(missing)} file(s) of the bundle {bundle} are missing or damaged on this host: {names}. Copy "
                    "the bundle again, or build it again"
                )
            if check:
                text = f"would bring {len(missing)} file(s), {size(amount)}" if missing else "all of it is here"
                if missing:
                    progress.tell(text)
                return {"changed": changed, "files": len(missing), "bytes": amount, "msg": text}
            sent = sender.send(files, seen)
        except (TransferError, OSError) as error:
            return {"failed": True, "changed": False, "msg": f"{progress.host}: {error}"}
        text = f"brought {len(missing)} file(s), {size(sent)}" if missing else "all of it is here"
        progress.close(text)
        return {"changed": changed, "files": len(missing), "bytes": sent, "msg": text}
