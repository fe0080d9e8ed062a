# MIT licence (see LICENSE)
"""Write a host's Compose project on the controller (documented in plugins/modules/compose_project.py)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.action.capacity_plan import file_name
from ansible_collections.modelhost.serving.plugins.action.validate_inventory import plain
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import (
    catalog,
    compose,
    gateways,
    hardware,
    inventory_validation,
    known_bad,
    vllm_backends,
    vllm_flags,
)
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem, report
from ansible_collections.modelhost.serving.plugins.modules.litellm_key_hashes import content as key_hashes

display = Display()

#: Roles whose variables a project is made from.
ROLES = ("vllm", "litellm", "claude_code")


def values_of(source: Any) -> dict[str, Any]:
    """A host's variables of those roles, with the roles' defaults."""
    found = {}
    for role in ROLES:
        for name, option in inventory_validation.specs()[role].items():
            default = {"list": [], "dict": {}, "int": 0}.get(option.get("type"), "")
            try:
                found[name] = plain(source[name]) if name in source else option.get("default", default)
            except AnsibleError:
                # Only the wiring's own, of hosts that this project is not about: validation has looked at the rest.
                found[name] = option.get("default", default)
    return found


def kind_of(host: str, values: dict[str, Any], facts: dict[str, Any], notes: list[str]) -> str:
    """cpu or cuda."""
    if values["vllm_variant"] != "auto":
        return str(values["vllm_variant"])
    if facts:
        return str(hardware.machine(facts)["kind"])
    entries = catalog.entries(values["vllm_models"])
    models = [vllm_flags.resolve(item, entries) for item in values["vllm_instances"]]
    on_gpus = all("cuda" in (entry.get("runs_on") or ["cuda"]) and "builder" not in entry["source"] for entry in models)
    kind = "cuda" if on_gpus else "cpu"
    wanted = "NVIDIA GPUs" if on_gpus else "a CPU"
    notes.append(f"taken for a host with {wanted}; set vllm_variant or compose_hardware if that is wrong")
    return kind


class ActionModule(ActionBase):
    """`modelhost.serving.compose_project`."""

    _supports_check_mode = True
    _requires_connection = False

    def _images(
        self,
        host: str,
        kind: str,
        values: tuple[dict[str, Any], dict[str, Any]],
        notes: list[str],
        found: list[dict[str, Any]],
    ) -> dict[str, str]:
        """Both images, for the values of the engine's host and the gateway's; one that nothing pins is a problem."""
        engine, gateway = values
        arguments = self._task.args
        allow = arguments.get("allow_unpinned") in (True, "true", "True", "yes")
        wanted = {
            "engine": (f"vllm.{kind}.image", "vllm_image", engine["vllm_image"]),
            "gateway": ("litellm.image", "litellm_image", gateway["litellm_image"]),
        }
        if arguments["engine"] == "ollama":
            wanted["engine"] = ("ollama.image", "compose_ollama_image", arguments.get("ollama_image") or "")
        images = {}
        for name, (path, variable, own) in wanted.items():
            found += known_bad.image_problems(host, variable, str(own))
            images[name], why = compose.pinned(pin(path), str(own), allow)
            if not why and "sha256:" not in images[name]:
                notes.append(f"{images[name]} is taken by its tag alone, which may mean another image tomorrow")
            if why:
                fix = (
                    f"run `./run pins --write` where the registry can be reached, or set {variable} to an image, or "
                    "say that a tag is enough: -e compose_allow_unpinned=true"
                )
                found.append(problem(host, variable, None, why, fix))
        return images

    def _inputs(self, host: str, task_vars: Any, notes: list[str], found: list[dict[str, Any]]) -> compose.Inputs:
        """What the project is made from."""
        arguments, hostvars, groups = self._task.args, task_vars["hostvars"], task_vars["groups"]
        members = groups.get("gateways") or []
        front = host if host in members else (members or [host])[0]
        engine, gateway = values_of(hostvars[host]), values_of(hostvars[front])
        facts = hostvars[host].get("host_preflight_probe") or {}
        kind = kind_of(host, engine, facts, notes)
        machine = None
        if facts:
            machine = hardware.machine(facts, kind, float(engine["vllm_memory_reserved_gib"]))
            machine = machine if machine["devices"] else None
        address = str(gateway["litellm_bind_address"])
        url = gateways.url(hostvars, front)
        if front != host:
            if not (vllm_backends.is_loopback(address) or address in ("0.0.0.0", "::")):
                notes.append(f"the gateway is published on 127.0.0.1: {address} is an address of {front}")
                address = "127.0.0.1"
            name = str(hostvars[host].get("ansible_host") or host)
            url = f"http://{'127.0.0.1' if vllm_backends.is_loopback(address) else name}:{gateway['litellm_port']}"
        images = self._images(host, kind, (engine, gateway), notes, found)
        version = str(pin(f"vllm.{kind}.version"))
        source = str(
            arguments.get("hardware_source") or "not known; the catalogue's own settings, without a look at it"
        )
        if machine is None and facts:
            source += ", where no GPU could be listed"
        return compose.Inputs(
            host=host,
            engine=engine,
            gateway=gateway,
            url=url,
            address=address,
            kind=kind,
            machine=machine,
            facts=facts,
            hardware=source,
            images=images,
            version=version,
            runs=str(arguments["engine"]),
            gpu=str(arguments.get("gpu") or "nvidia"),
            ollama_models=str(arguments.get("ollama_models") or ""),
        )

    def _write(self, path: Path, text: str, mode: int, diffs: list[dict[str, str]] | None) -> bool:
        """One file, if it is not so already. With a list for differences, the difference is added to it."""
        present = path.read_text(encoding="utf-8") if path.is_file() else None
        same_mode = present is not None and path.stat().st_mode & 0o777 == mode
        if present == text and same_mode:
            return False
        if diffs is not None:
            diffs.append(
                {"before": present or "", "after": text, "before_header": str(path), "after_header": str(path)}
            )
        if not self._task.check_mode:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Beside and moved, so that nobody reads half a file.
            handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as opened:
                opened.write(text)
            os.chmod(beside, mode)
            os.replace(beside, path)
        return True

    def _export(self, folder: Path, made: compose.Project) -> tuple[list[str], list[dict[str, str]]]:
        """Write what is not there yet or differs; names of those files, and differences without secrets."""
        diffs: list[dict[str, str]] = []
        # Containers are other users than whoever exports, and read what lies below.
        os.umask(0o022)
        if not self._task.check_mode:
            folder.mkdir(parents=True, exist_ok=True)
            # Hashes of keys have to be readable for the gateway's container, but nobody else gets here.
            folder.chmod(0o700)
        changed = [name for name, text in made.files.items() if self._write(folder / name, text, 0o644, diffs)]
        present = folder / ".env"
        before = present.read_text(encoding="utf-8") if present.is_file() else ""
        lines = compose.env_file(before, made.secret_names, made.environment)
        if self._write(present, lines, 0o600, None):
            changed.append(".env")
        keys: dict[str, str] = {}
        for user in made.access["users"]:
            path = folder / "keys" / user["name"]
            kept = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
            keys[user["name"]] = made.own_keys.get(user["name"]) or kept or compose.new_key()
            if self._write(path, keys[user["name"]] + "\n", 0o600, None):
                changed.append(f"keys/{user['name']}")
        hashes = key_hashes(made.access["models"], made.access["users"], lambda name: keys[name])
        if self._write(folder / "litellm/config/key_hashes.json", hashes, 0o644, None):
            changed.append("litellm/config/key_hashes.json")
        return changed, diffs

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        host = task_vars["inventory_hostname"]
        notes: list[str] = []
        found: list[dict[str, Any]] = []
        try:
            inputs = self._inputs(host, task_vars, notes, found)
            made = compose.project(inputs)
        except KeyError as error:
            return {**result, "failed": True, "msg": f"{host}: {error} is not known; run playbooks/validate.yml first"}
        found += made.problems
        if found:
            return {**result, "failed": True, "msg": f"{len(found)} problem(s). Nothing was written.\n{report(found)}"}
        folder = Path(self._task.args["directory"]).expanduser() / file_name(host)
        try:
            changed, diffs = self._export(folder, made)
        except (OSError, ValueError) as error:
            return {**result, "failed": True, "msg": f"compose_directory: {folder} cannot be written: {error}"}
        lines = [f"{host}: {folder}/ with {'vLLM' if inputs.runs == 'vllm' else 'Ollama'}; hardware: {inputs.hardware}"]
        lines += [f"    {note}" for note in [*notes, *made.notes]]
        if self._task.check_mode:
            lines.append(f"    check mode: {len(changed)} file(s) would be written, and none was")
        else:
            lines.append(f"    {len(changed)} file(s) written; {folder}/README.md says how to start it")
        for line in lines:
            display.display(line)
        result.update(changed=bool(changed), directory=str(folder), files=changed, msg=lines)
        if self._task.diff and diffs:
            result["diff"] = diffs
        return result
