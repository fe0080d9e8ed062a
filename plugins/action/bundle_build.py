# MIT licence (see LICENSE)
"""Build a bundle on the controller (documented in plugins/modules/bundle_build.py)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.action.validate_inventory import plain
from ansible_collections.modelhost.serving.plugins.lookup.pin import ROOT, pins
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_builder import Builder, Settings
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_plan import BundleError, split_bytes
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_store import WORK, Store
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem, report
from ansible_collections.modelhost.serving.plugins.plugin_utils.progress import Progress

display = Display()


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """No two builds in one folder."""
    store.work.mkdir(parents=True, exist_ok=True)
    with (store.work / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            why = "another build works in this folder"
            raise BundleError("bundle_dir", str(store.folder), why, "wait for its end") from None
        yield


def inventories(sources: list[Any]) -> list[Path]:
    """The folders of the inventories in use, with their group_vars and host_vars; a list of hosts (`a,b`) has none."""
    paths = [Path(os.path.abspath(str(source))) for source in sources if os.path.exists(str(source))]
    return sorted({path if path.is_dir() else path.parent for path in paths})


def ours(folder: Path) -> None:
    """Refuse a folder with anything else in it: what does not belong to a bundle is removed from it."""
    if folder.exists() and not folder.is_dir():
        raise BundleError("bundle_dir", str(folder), "this is a file", "name a folder")
    if not folder.is_dir() or (folder / WORK).is_dir() or (folder / "manifest.json").is_file():
        return
    if any(folder.iterdir()):
        why = "this folder holds other things, and what is not of the bundle would be removed"
        raise BundleError("bundle_dir", str(folder), why, "name a new folder, or an empty one")


class ActionModule(ActionBase):
    """`modelhost.serving.bundle_build`."""

    _supports_check_mode = True
    _requires_connection = False

    def _needs(self, task_vars: Any) -> list[dict[str, Any]]:
        """What every host needs, on which platform."""
        found = []
        for host in task_vars["ansible_play_hosts_all"]:
            source = task_vars["hostvars"][host]
            if "__bundle_needs" not in source:
                raise AnsibleError(f"{host}: what it needs could not be worked out; see the task that failed above")
            for item in plain(source["__bundle_needs"]):
                found += [{"host": host, "platform": item["platform"], **needs} for needs in item["needs"]]
        return found

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        with Progress("", "") as progress:

            def pulse(line: str) -> None:
                what, _, far = line.partition(": ")
                progress.say(what, far)

            return {**result, **self._build(task_vars, pulse)}

    def _build(self, task_vars: Any, pulse: Callable[[str], None]) -> dict[str, Any]:
        """How it came out."""
        arguments = self._task.args
        folder = Path(os.path.abspath(Path(str(arguments["directory"])).expanduser()))
        try:
            settings = Settings(
                root=ROOT,
                apt_sources=arguments.get("apt_sources") or {},
                python_mirror=str(arguments.get("python_mirror") or ""),
                npm_registry=str(arguments.get("npm_registry") or ""),
                images=boolean(arguments.get("images", True)),
                models=boolean(arguments.get("models", True)),
                model_sources=plain(arguments.get("model_sources") or [{"type": "hub"}]),
                signing_key=str(arguments.get("signing_key") or ""),
                archive=boolean(arguments.get("archive", False)),
                split=split_bytes(arguments.get("split_size")),
                reserve=int(float(arguments.get("reserve_gib") or 0) * 2**30),
                inventories=inventories(task_vars.get("ansible_inventory_sources") or []),
                versions=yaml.safe_load(json.dumps(pins())),
            )
            ours(folder)
            needs = self._needs(task_vars)
            if self._task.check_mode:
                # Records are read where they are; all that is written goes elsewhere.
                with tempfile.TemporaryDirectory() as scratch:
                    store = Store(folder, Path(scratch))
                    builder = Builder(store, settings, needs, display.display, pulse)
                    builder.estimate()
                missing = builder.missing
                return {
                    "changed": missing > 0,
                    "directory": str(folder),
                    "bytes": builder.total,
                    "missing": missing,
                }
            store = Store(folder)
            with alone(store):
                builder = Builder(store, settings, needs, display.display, pulse)
                builder.estimate()
                builder.build()
        except BundleError as error:
            item = problem("localhost", error.variable, error.value, error.why, error.fix)
            return {"failed": True, "msg": f"No bundle was made.\n{report([item])}"}
        except OSError as error:
            return {"failed": True, "msg": f"bundle_dir = {folder}: {error}. No bundle was made."}
        shutil.rmtree(store.work / "parts", ignore_errors=True)
        return {
            "changed": store.changed,
            "directory": str(folder),
            "bytes": builder.total,
            "missing": builder.missing,
        }
