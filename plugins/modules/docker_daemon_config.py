#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: our keys in Docker's daemon.json, beside those of the host's owner."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import docker_daemon

DOCUMENTATION = r"""
module: docker_daemon_config
author: the modelhost authors
short_description: Keep our keys in daemon.json
description:
  - Merges options into Docker's daemon.json. Keys that we do not set are the host owner's and stay. Keys that an
    earlier run wrote and that are no longer wanted go away, and what they had replaced comes back; O(record) remembers
    them. Objects are merged key by key, lists are replaced.
  - Nothing is written that the engine does not accept. C(dockerd --validate) is asked with the flags of the unit, so
    that a key which is also a flag is refused as well. Engines before 23.0 have no such check; they are asked to start
    with a log level that does not exist, which they refuse after having read the file and before having done anything.
  - Moving C(data-root) away from images, containers or volumes is refused.
  - Does not touch the daemon; see M(modelhost.serving.docker_daemon_running).
options:
  options:
    description: What is wanted. It wins over what the file holds.
    type: dict
    default: {}
  defaults:
    description: >-
      Groups of options that are wanted where none of them contradicts what the owner set, or O(options). A log driver
      of the owner's own keeps its options.
    type: list
    elements: dict
    default: []
  state:
    description: V(absent) takes our keys out again.
    choices: [present, absent]
    type: str
    default: present
  path:
    description: The file.
    type: path
    default: /etc/docker/daemon.json
  record:
    description: Where it is remembered what we wrote.
    type: path
    default: /etc/modelhost/docker_engine/daemon.json
  depends:
    description: Files that count as part of the daemon's configuration; see M(modelhost.serving.docker_daemon_running).
    type: list
    elements: path
    default: []
"""
EXAMPLES = r"""
- name: Rotate the logs of containers
  modelhost.serving.docker_daemon_config:
    options: {registry-mirrors: ["https://mirror.example"]}
    defaults:
      - {log-driver: json-file, log-opts: {max-size: 50m, max-file: "3"}}
      - {live-restore: true}
"""
RETURN = r"""
actions:
  description: What a daemon that ran with the former content needs for each changed key (C(reload) or C(restart)).
  returned: when the state is present
  type: dict
validated:
  description: How the new content was checked (C(dockerd --validate), C(refused start)), or nothing.
  returned: when the state is present
  type: str
backup:
  description: The copy of the file as it was before our first change, if there was one.
  returned: always
  type: str
"""

#: What no engine knows as a log level.
NO_LEVEL = "modelhost-check"


def unit_command(module: AnsibleModule) -> tuple:
    """The unit's program and its flags, with the variables of its environment files filled in."""
    code, out, _err = module.run_command(
        ["systemctl", "show", "-p", "ExecStart,EnvironmentFiles,Environment", docker_daemon.SERVICE]
    )
    command = re.search(r"argv\[\]=(.*?) ;", out)
    if code or not command:
        return "", []
    values: dict = {}
    for line in re.findall(r"^Environment=(.*)$", out, re.M):
        values.update(word.partition("=")[::2] for word in shlex.split(line) if "=" in word)
    for path in re.findall(r"^EnvironmentFiles=(\S+)", out, re.M):
        for line in (docker_daemon.read(path) or "").splitlines():
            for word in shlex.split(line, comments=True):
                name, sign, value = word.partition("=")
                if sign:
                    values[name] = value
    flags: list = []
    program, *words = command.group(1).split()
    for word in words:
        variable = re.match(r"\$\{?(\w+)\}?$", word)
        flags += shlex.split(values.get(variable.group(1), "")) if variable else [word]
    return program, flags


def without_log_level(flags: list) -> list:
    """Flags without one for the log level."""
    found, skip = [], False
    for flag in flags:
        if not skip and not re.match(r"(--log-level|-l)(=|$)", flag):
            found.append(flag)
        skip = not skip and flag in ("--log-level", "-l")
    return found


def complaint(module: AnsibleModule, data: dict) -> tuple:
    """(how the content was checked, what the engine has against it)."""
    program, flags = unit_command(module)
    if not os.access(program, os.X_OK):
        # Not installed yet (check mode).
        return "", ""
    checked = os.path.join(module.tmpdir, "daemon.json")
    _code, usage, _err = module.run_command([program, "--help"])
    if "--validate" in usage:
        how, command, content = "dockerd --validate", [program, *flags, "--validate"], data
    else:
        content = {key: value for key, value in data.items() if key != "log-level"}
        how, command = "refused start", [program, *without_log_level(flags), "--log-level", NO_LEVEL]
    with open(checked, "w", encoding="utf-8") as handle:
        json.dump(content, handle)
    code, out, err = module.run_command([*command, "--config-file", checked])
    text = (out + err).strip()
    if code == 0 or (how == "refused start" and NO_LEVEL in text):
        return how, ""
    # The last line; the name of our copy means nothing to anybody.
    return how, (text.splitlines() or ["no reason given"])[-1].replace(checked, "daemon.json")


def holds_data(root: str) -> bool:
    """Whether a folder holds containers, volumes or images of Docker."""
    volumes = [path for path in glob.glob(root + "/volumes/*") if os.path.isdir(path)]
    return bool(volumes or glob.glob(root + "/containers/*") or glob.glob(root + "/image/*/imagedb/content/sha256/*"))


def check_root(before: dict, after: dict) -> None:
    """Raises where a new data-root would leave images, containers or volumes behind."""
    old, new = (os.path.normpath(data.get("data-root") or docker_daemon.DATA_ROOT) for data in (before, after))
    if old == new or os.path.realpath(old) == os.path.realpath(new) or holds_data(new) or not holds_data(old):
        return
    raise docker_daemon.ConfigError(
        "data-root is to change from %(old)s to %(new)s, and images, containers or volumes lie in the old folder, none "
        "in the new one. Nothing was changed. Move them first, which stops all containers: "
        "systemctl stop docker.socket docker.service && mkdir -p %(new)s && "
        "rsync -aHAX --numeric-ids %(old)s/ %(new)s/; then run this again. Or begin anew by removing them (docker "
        "system prune --all --volumes)" % {"old": old, "new": new}
    )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict", "default": {}},
            "defaults": {"type": "list", "elements": "dict", "default": []},
            "state": {"choices": ["present", "absent"], "default": "present"},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "record": {"type": "path", "default": "/etc/modelhost/docker_engine/daemon.json"},
            "depends": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        run(module)
    except docker_daemon.ConfigError as error:
        module.fail_json(msg=str(error))


def run(module: AnsibleModule) -> None:
    """The module's work; ConfigError before anything is changed."""
    params = module.params
    path, absent = params["path"], params["state"] == "absent"
    record, text = docker_daemon.load(params["record"]), docker_daemon.read(path)
    present = docker_daemon.parse(text, path)
    backup = path + ".before-modelhost"
    if absent:
        after, keys = docker_daemon.foreign(present, record), {}
    else:
        after, keys = docker_daemon.merged(present, record, params["options"], params["defaults"])
        keys["made"] = record.get("made", text is None)
    result = {"backup": backup if os.path.exists(backup) else "", "changed": after != present or keys != record}
    if after != present:
        check_root(present, after)
        if not absent:
            how, against = complaint(module, after)
            if against:
                raise docker_daemon.ConfigError(
                    "the engine does not accept what %s would hold, so it was left as it is: %s. Keys come from "
                    "docker_engine_daemon_options, from other docker_engine_ variables and from the file itself; a key "
                    "may not be a flag of docker.service at the same time" % (path, against)
                )
            result["validated"] = how
        result["diff"] = {
            "before": shown(present), "after": shown(after), "before_header": path, "after_header": path,
        }  # fmt: skip
    if not absent:
        result["actions"] = docker_daemon.actions(present, after)
    if not result["changed"] or module.check_mode:
        module.exit_json(**result)

    remember_running(module)
    # What we are about to write is remembered first: after an interruption it is still known as ours.
    if not absent:
        docker_daemon.save(params["record"], keys)
    if after != present:
        if absent and record.get("made") and not after:
            os.unlink(path)
        else:
            if text is not None and not record and not os.path.exists(backup):
                shutil.copy2(path, backup)
            write(module, path, after)
    if absent:
        for leftover in (params["record"], backup):
            if os.path.exists(leftover):
                os.unlink(leftover)
        result["backup"] = ""
    elif os.path.exists(backup):
        result["backup"] = backup
    module.exit_json(**result)


def shown(data: dict) -> str:
    """The content for a diff, without what may hold a password."""
    data = {key: "…" if key == "proxies" else value for key, value in data.items()}
    return re.sub(r"//[^/@\s]+@", "//…@", json.dumps(data, indent=2, sort_keys=True)) + "\n"


def write(module: AnsibleModule, path: str, data: dict) -> None:
    """All of the file or nothing; an owner's mode stays."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = os.path.join(module.tmpdir, "new.json")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w", encoding="utf-8") as handle:
        json.dump(data, handle, indent=2)
        handle.write("\n")
    module.atomic_move(temporary, path)


def remember_running(module: AnsibleModule) -> None:
    """Write down what the running daemon started with, before the file says something else."""
    code, _out, _err = module.run_command(["systemctl", "is-active", "--quiet", docker_daemon.SERVICE])
    if code:
        return
    state = docker_daemon.show(module, "InvocationID", "InactiveExitTimestampMonotonic")
    found = docker_daemon.applied(state, module.params["path"], module.params["depends"])
    docker_daemon.save(docker_daemon.APPLIED, found)


if __name__ == "__main__":
    main()
