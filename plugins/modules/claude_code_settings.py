#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: merge settings into a JSON file of a user."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import pwd
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: claude_code_settings
author: the modelhost authors
short_description: Merge settings into a JSON file in a user's home
description:
  - Sets the given keys in a JSON file and leaves every other key as it is. Lists are united.
  - Remembers in O(record) what it put there, by hash, and what stood there before. What is no longer asked for, and
    everything with O(state=absent), is taken back, unless the user has changed it since.
  - Works with the user's own rights, so that a link in a home cannot lead it to a file of somebody else.
  - A file that is no JSON object is copied and left alone; the module fails.
options:
  user:
    description: OS account.
    type: str
    required: true
  path:
    description: The file, relative to the account's home.
    type: str
    required: true
  settings:
    description: What to set, in the file's own structure. Not used with O(state=absent).
    type: dict
    default: {}
  record:
    description: File, readable by root only, in which this module remembers what it put.
    type: path
    required: true
  state:
    description: V(absent) takes back what this module put.
    type: str
    choices: [present, absent]
    default: present
  mode:
    description: Mode of the file.
    type: str
    default: "0600"
"""

EXAMPLES = r"""
- name: Point alice's Claude Code at the gateway
  modelhost.serving.claude_code_settings:
    user: alice
    path: .claude/settings.json
    record: /var/lib/modelhost/claude_code/alice-settings.json
    settings:
      env: {ANTHROPIC_BASE_URL: "https://gateway.example"}
"""

RETURN = r"""
path:
  description: The file.
  type: str
  returned: always
keys:
  description: Names of the keys that were set or taken back, without values.
  type: list
  elements: str
  returned: always
"""


class Refused(Exception):
    """The file is not what it should be; nothing was changed."""


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def leaves(settings, path=()):
    """Yield (path, value, whether it is an item of a list)."""
    for key, value in settings.items():
        here = path + (key,)
        if isinstance(value, dict):
            yield from leaves(value, here)
        elif isinstance(value, list):
            for item in value:
                yield here, item, True
        else:
            yield here, value, False


def parent_of(data, path, create):
    """The object that holds the last key of `path`, or None."""
    node = data
    for depth, key in enumerate(path[:-1]):
        if key not in node:
            if not create:
                return None
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            if not create:
                return None
            raise Refused("%s is no object there, so that nothing can be set in it" % ".".join(path[: depth + 1]))
    return node


def take_back(data, entry):
    """Undo one entry of the record, unless the user has changed the value since. Say whether something changed."""
    path = entry["path"]
    node = parent_of(data, path, create=False)
    if node is None or path[-1] not in node:
        return False
    value = node[path[-1]]
    if entry["item"]:
        if not isinstance(value, list):
            return False
        kept = [item for item in value if digest(item) != entry["sha256"]]
        if len(kept) == len(value):
            return False
        node[path[-1]] = kept
    elif digest(value) != entry["sha256"]:
        return False
    elif "previous" in entry:
        node[path[-1]] = entry["previous"]
    else:
        del node[path[-1]]
    # What this leaves empty was made for it.
    if node.get(path[-1]) == []:
        del node[path[-1]]
    for depth in range(len(path) - 1, 0, -1):
        above = parent_of(data, path[:depth], create=False)
        if above is not None and above.get(path[depth - 1]) == {}:
            del above[path[depth - 1]]
    return True


def merge(data, settings, record):
    """Return (new data, new record, names of the keys that changed)."""
    data = copy.deepcopy(data)
    old = {(tuple(e["path"]), e["sha256"] if e["item"] else ""): e for e in record}
    new, keys = [], []
    wanted = list(leaves(settings))
    wanted_ids = {(path, digest(value) if item else "") for path, value, item in wanted}
    for ident, entry in old.items():
        if ident not in wanted_ids and take_back(data, entry):
            keys.append(".".join(entry["path"]))
    for path, value, item in wanted:
        entry = old.get((path, digest(value) if item else ""))
        node = parent_of(data, path, create=True)
        if item:
            there = node.setdefault(path[-1], [])
            if not isinstance(there, list):
                raise Refused("%s is no list there, so that nothing can be added to it" % ".".join(path))
            if value not in there:
                there.append(value)
                keys.append(".".join(path))
                entry = {"path": list(path), "item": True, "sha256": digest(value)}
        else:
            # Python takes True for 1; JSON does not.
            same = path[-1] in node and digest(node[path[-1]]) == digest(value)
            if not same:
                # What the user had is kept through later changes of ours.
                entry = dict(entry or {}, path=list(path), item=False, sha256=digest(value))
                if path[-1] in node and not old.get((path, "")):
                    entry["previous"] = node[path[-1]]
                node[path[-1]] = value
                keys.append(".".join(path))
        # A value that the user had already is not ours to take back.
        if entry is not None:
            new.append(entry)
    return data, new, keys


@contextlib.contextmanager
def rights_of(account):
    """Work with the effective rights of an account."""
    if os.geteuid() != 0 or account.pw_uid == 0:
        yield
        return
    groups = os.getgroups()
    os.initgroups(account.pw_name, account.pw_gid)
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def read(path, check_mode):
    """Return the file's object, or None if there is no file."""
    try:
        with open(path, encoding="utf-8") as handle:
            text = handle.read()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        text, why = None, "it is not UTF-8 (%s)" % error
    if text is not None:
        if not text.strip():
            return {}
        try:
            data = json.loads(text)
            if isinstance(data, dict):
                return data
            why = "it holds no JSON object"
        except ValueError as error:
            why = "it is not valid JSON (%s)" % error
    saved = path + ".unreadable"
    if not check_mode and not os.path.exists(saved):
        shutil.copy2(path, saved)
    raise Refused("%s; it was left as it is, with a copy at %s. Mend it or move it away, and run again" % (why, saved))


def write(path, data, mode):
    """Replace the file in one step."""
    # A link, to a repository of dotfiles for instance, stays one.
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".modelhost-", dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            json.dump(data, handle, indent=2, ensure_ascii=False)
            handle.write("\n")
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_record(path):
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError:
        return {"created": False, "entries": []}
    except ValueError as error:
        raise Refused("the record %s is damaged (%s). Remove it, and run again" % (path, error)) from error


def apply(module, account):
    """Do the work; return (changed, path, keys)."""
    path = os.path.join(account.pw_dir, module.params["path"])
    mode = int(module.params["mode"], 8)
    record_path = module.params["record"]
    absent = module.params["state"] == "absent"
    record = read_record(record_path)
    with rights_of(account):
        data = read(path, module.check_mode)
        if data is None and absent:
            new, entries, keys = None, [], []
        else:
            settings = {} if absent else module.params["settings"]
            new, entries, keys = merge(data or {}, settings, record["entries"])
        remove = absent and record["created"] and new == {}
        wrong_mode = not absent and data is not None and (os.stat(path).st_mode & 0o7777) != mode
        changed = bool(keys) or wrong_mode or (data is None and not absent)
        if changed and not module.check_mode:
            if remove:
                os.unlink(path)
            else:
                write(path, new, mode)
    created = record["created"] or (data is None and not absent)
    after = {"created": created, "entries": entries}
    if absent:
        if os.path.exists(record_path):
            changed = True
            if not module.check_mode:
                os.unlink(record_path)
    elif after != record:
        changed = True
        if not module.check_mode:
            os.makedirs(os.path.dirname(record_path), mode=0o700, exist_ok=True)
            write(record_path, after, 0o600)
    return changed, path, keys


def main():
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "path": {"type": "str", "required": True},
            # Not no_log as a whole: the role hides the task where a token stands in it.
            "settings": {"type": "dict", "default": {}},
            "record": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "mode": {"type": "str", "default": "0600"},
        },
        supports_check_mode=True,
    )
    try:
        account = pwd.getpwnam(module.params["user"])
    except KeyError:
        if module.params["state"] == "absent":
            module.exit_json(changed=False, path="", keys=[])
        module.fail_json(
            msg="There is no account %r on this host. Create it, or take it out of claude_code_users."
            % module.params["user"]
        )
    path = os.path.join(account.pw_dir, module.params["path"])
    try:
        changed, path, keys = apply(module, account)
    except Refused as reason:
        module.fail_json(msg="%s: %s." % (path, reason))
    except OSError as error:
        module.fail_json(msg="%s: %s" % (path, error))
    module.exit_json(changed=changed, path=path, keys=keys)


if __name__ == "__main__":
    main()
