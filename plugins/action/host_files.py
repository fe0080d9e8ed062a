# MIT licence (see LICENSE)
"""The controller's part of host_files (see plugins/modules/host_files.py): finds and renders the sources."""

from __future__ import annotations

import base64
import json
import os
import shlex
import zlib
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

#: Options of one file; plugins/modules/host_files.py says what they mean.
FILE: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "each": {"type": "list", "elements": "raw"},
    "state": {"choices": ["present", "directory", "absent"], "default": "present"},
    "create": {"type": "bool", "default": True},
    "src": {"type": "str"},
    "vars": {"type": "dict"},
    "content": {"type": "str"},
    "generate": {"type": "str", "no_log": False},
    "link": {"type": "str"},
    "secret": {"type": "bool", "default": False, "no_log": False},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "mode": {"type": "str"},
    "directory_mode": {"type": "str", "default": "0755"},
    "keep": {"type": "bool", "default": False},
    "prune": {"type": "str"},
    "validate": {"type": "str"},
}
#: Options of what a program makes from files.
DERIVED: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "of": {"type": "list", "elements": "path", "required": True},
    "command": {"type": "str", "required": True},
}
#: What an entry's file is made of; one of these at most.
SOURCES = ("src", "content", "generate", "link")


def octal(text: str, path: str, option: str) -> int:
    """A mode as a number."""
    try:
        number = int(text, 8)
    except ValueError:
        number = -1
    if not 0 <= number <= 0o7777:
        raise AnsibleActionFail(
            f"host_files: {path}: {option} is {text!r}; write it in octal, in quotes, such as '0644'"
        )
    return number


def of_each(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """An entry once for each of its elements: its texts filled in, and the element given to its template as `item`."""
    if entry.get("each") is None:
        return [entry]
    made = []
    for element in entry["each"]:
        values = element if isinstance(element, dict) else {"item": element}
        one = {**entry, "vars": {**(entry.get("vars") or {}), "item": element}}
        for option in ("path", "src", "content", "link", "owner"):
            for name, value in values.items() if one.get(option) is not None else ():
                if isinstance(value, (str, int)):
                    one[option] = one[option].replace("{" + str(name) + "}", str(value))
        made.append(one)
    return made


def checked(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry that says one thing, with a plain path."""
    path = entry["path"]
    given = [name for name in SOURCES if entry.get(name) is not None]
    wrong = ""
    if not path.startswith("/") or os.path.normpath(path) != path:
        wrong = "path is to be absolute, without '..' or a slash at its end"
    elif len(given) > 1:
        wrong = f"{' and '.join(given)} exclude each other"
    elif entry["state"] == "directory" and given:
        wrong = f"a folder has no {given[0]}; leave out state to copy a folder of the role"
    elif entry["keep"] and entry["state"] != "directory":
        wrong = "keep is for folders (state: directory)"
    elif entry.get("generate") is not None and "{}" not in entry["generate"]:
        wrong = "generate needs {} where the secret shall stand"
    elif entry.get("validate") and "%s" not in entry["validate"]:
        wrong = "validate needs %s where the new file's name shall stand"
    if wrong:
        raise AnsibleActionFail(f"host_files: {path}: {wrong}")
    return entry


class ActionModule(ActionBase):
    """`modelhost.serving.host_files`."""

    _supports_check_mode = True
    _supports_diff = True

    def _source(self, entry: dict[str, Any]) -> str:
        """Where an entry's source lies on the controller; a template's name ends in `.j2`."""
        given = entry.get("src")
        wanted = [given] if given else [entry["path"].lstrip("/") + ".j2", entry["path"].lstrip("/")]
        for name in wanted:
            folder = "templates" if name.endswith(".j2") else "files"
            try:
                return str(self._find_needle(folder, name))
            except AnsibleError:
                continue
        raise AnsibleActionFail(
            f"host_files: {entry['path']}: there is neither "
            + " nor ".join(f"{'templates' if name.endswith('.j2') else 'files'}/{name}" for name in wanted)
        )

    def _rendered(self, source: str, entry: dict[str, Any], variables: dict[str, Any]) -> str:
        """A template's text. What a secret one holds does not stand in its error."""
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        try:
            (text,) = lookup.run([source], variables, template_vars=entry.get("vars") or {})
        except AnsibleError as error:
            if entry["secret"]:
                raise AnsibleActionFail(
                    f"host_files: {entry['path']}: {source} cannot be rendered ({type(error).__name__})"
                ) from None
            raise
        return str(text)

    def _items(self, entry: dict[str, Any], variables: dict[str, Any]) -> list[dict[str, Any]]:
        """What the host is told of an entry: one item, or one for each file and folder of a copied folder."""
        path, secret = entry["path"], entry["secret"] or entry.get("generate") is not None
        item = {name: entry.get(name) for name in ("path", "owner", "group", "create")}
        item["hidden"] = secret
        if entry["state"] == "absent":
            return [{**item, "kind": "absent"}]
        if entry["state"] == "directory":
            mode = octal(entry.get("mode") or "0755", path, "mode")
            return [{**item, "kind": "directory", "mode": mode, "keep": entry["keep"], "prune": entry.get("prune")}]
        if entry.get("link") is not None:
            return [{**item, "kind": "link", "target": entry["link"]}]
        item["mode"] = octal(entry.get("mode") or ("0600" if secret else "0644"), path, "mode")
        item["validate"] = shlex.split(entry.get("validate") or "")
        if entry.get("generate") is not None:
            return [{**item, "kind": "secret", "generate": entry["generate"]}]
        if entry.get("content") is not None:
            return [{**item, "kind": "file", "data": entry["content"].encode()}]
        source = self._source(entry)
        if source.endswith(".j2"):
            return [{**item, "kind": "file", "data": self._rendered(source, entry, variables).encode()}]
        if os.path.isdir(source):
            folder_mode = octal(entry["directory_mode"], path, "directory_mode")
            return list(self._tree(source, item, folder_mode, entry.get("prune")))
        with open(source, "rb") as handle:
            return [{**item, "kind": "file", "data": handle.read()}]

    def _tree(self, source: str, item: dict[str, Any], mode: int, prune: str | None) -> Any:
        """A folder's files and folders, without what Python leaves there."""
        for folder, folders, names in os.walk(source):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            place = os.path.normpath(os.path.join(item["path"], os.path.relpath(folder, source)))
            yield {**item, "path": place, "kind": "directory", "mode": mode, "prune": prune}
            for name in sorted(names):
                with open(os.path.join(folder, name), "rb") as handle:
                    yield {**item, "path": os.path.join(place, name), "kind": "file", "data": handle.read()}

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Collects the set and hands it to the host."""
        super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(
            {
                "files": {"type": "list", "elements": "dict", "required": True, "options": FILE},
                "derive": {"type": "list", "elements": "dict", "default": [], "options": DERIVED},
                "look": {"type": "list", "elements": "path", "default": []},
            }
        )
        entries = [one for entry in arguments["files"] for one in of_each(entry)]
        items = [item for entry in entries for item in self._items(checked(entry), task_vars or {})]
        paths = [item["path"] for item in items]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise AnsibleActionFail(f"host_files: {', '.join(twice)}: named twice in the set")
        for item in items:
            if "data" in item:
                item["data"] = base64.b64encode(item["data"]).decode()
        payload = base64.b64encode(zlib.compress(json.dumps(items).encode())).decode()
        rules = [{**rule, "command": shlex.split(rule["command"])} for rule in arguments["derive"]]
        result: dict[str, Any] = self._execute_module(
            module_name="modelhost.serving.host_files_apply",
            module_args={"payload": payload, "derive": rules, "look": arguments["look"]},
            task_vars=task_vars,
        )
        # The arguments hold the contents.
        result.pop("invocation", None)
        return result
