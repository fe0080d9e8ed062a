#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: a Docker daemon that runs with what now lies on disk, and whose containers live on."""

from __future__ import annotations

import glob
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import docker_daemon

DOCUMENTATION = r"""
module: docker_daemon_running
author: the modelhost authors
short_description: Keep the Docker daemon enabled, and running with its present files
description:
  - Starts the daemon if it does not run. Compares what the running daemon has with daemon.json; keys that Docker takes
    in at a signal lead to a reload, all others to a restart, and no change to nothing. It judges from what lies on disk
    and from when the daemon started, so an interrupted run forgets nothing.
  - Also restarts where the unit, the program itself or one of O(depends) is not what the daemon started with.
  - Before a restart, live-restore is switched on in the running daemon if the file wants it, so that containers live
    on. Where they could not, it refuses.
options:
  depends:
    description: Files whose change asks for a restart, besides daemon.json and the unit's own.
    type: list
    elements: path
    default: []
  path:
    description: The daemon's configuration.
    type: path
    default: /etc/docker/daemon.json
  keep_containers:
    description: Whether to refuse a restart that would stop running containers.
    type: bool
    default: true
"""
EXAMPLES = r"""
- name: Run Docker
  modelhost.serving.docker_daemon_running:
    depends: [/etc/ssl/certs/ca-certificates.crt]
"""
RETURN = r"""
action:
  description: What was done (C(none), C(start), C(reload) or C(restart)).
  returned: always
  type: str
because:
  description: Why.
  returned: always
  type: list
  elements: str
"""

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "InactiveExitTimestampMonotonic",
    "InvocationID",
    "MainPID",
)
#: Whatever the environment says, the host's own daemon is meant.
DOCKER = ("docker", "--host", "unix:///var/run/docker.sock")
DROP_INS = "/etc/systemd/system/%s.d" % docker_daemon.SERVICE
#: Seconds that the daemon gets to take in a reload.
PATIENCE = 30


def info(module: AnsibleModule) -> dict:
    """What the running daemon says of itself."""
    form = "{{.LiveRestoreEnabled}} {{.ContainersRunning}}"
    code, out, _err = module.run_command([*DOCKER, "info", "--format", form])
    fields = out.split()
    if code or len(fields) != 2:
        return {"live_restore": False, "running": 0}
    return {"live_restore": fields[0] == "true", "running": int(fields[1])}


def needs_reading(state: dict) -> bool:
    """Whether systemd has to read the unit again. Of a drop-in's folder that is new it knows nothing by itself."""
    there = set(glob.glob(DROP_INS + "/*.conf"))
    known = {path for path in state["DropInPaths"].split() if path.startswith(DROP_INS + "/")}
    return state["NeedDaemonReload"] == "yes" or there != known


def reasons(module: AnsibleModule, state: dict, found: dict, wanted: dict) -> tuple:
    """(reload or restart or none, why)."""
    because: list = []
    if found["config"] is None:
        because.append("%s was written after the daemon started" % module.params["path"])
    for path, known in sorted(found["files"].items()):
        if known is None or known != docker_daemon.digest(path):
            because.append("%s is not what the daemon started with" % path)
    start = docker_daemon.started(state)
    for path in [state["FragmentPath"], *state["DropInPaths"].split()]:
        if path and docker_daemon.modified(path) > start:
            because.append("%s is younger than the daemon" % path)
    try:
        if os.readlink("/proc/%s/exe" % state["MainPID"]).endswith(" (deleted)"):
            because.append("the daemon's program was replaced")
    except OSError:
        pass
    changed = docker_daemon.actions(found["config"] or {}, wanted) if found["config"] is not None else {}
    because += [key for key, need in changed.items() if need == "restart"]
    if because:
        return "restart", because
    return ("reload", sorted(changed)) if changed else ("none", [])


def systemctl(module: AnsibleModule, action: str) -> None:
    """Start or restart, back when the daemon answers (Type=notify); fails with the end of its journal."""
    module.run_command(["systemctl", "reset-failed", docker_daemon.SERVICE])
    code, _out, err = module.run_command(["systemctl", action, docker_daemon.SERVICE])
    if code:
        _code, journal, _err = module.run_command(
            ["journalctl", "--no-pager", "-o", "cat", "-n", "20", "-u", docker_daemon.SERVICE]
        )
        module.fail_json(msg="systemctl %s %s failed: %s\n%s" % (action, docker_daemon.SERVICE, err.strip(), journal))


def reload_daemon(module: AnsibleModule) -> None:
    """SIGHUP; back when the daemon says that it is done, or fails with its complaint."""
    since = "%.6f" % time.time()
    module.run_command(["systemctl", "reload", docker_daemon.SERVICE], check_rc=True)
    deadline = time.monotonic() + PATIENCE
    while True:
        events = [*DOCKER, "events", "--since", since, "--until", "%.6f" % time.time(), "--filter", "event=reload"]
        if "daemon reload" in module.run_command(events)[1]:
            return
        _code, journal, _err = module.run_command(
            ["journalctl", "--no-pager", "-o", "cat", "--since", "@" + since, "-u", docker_daemon.SERVICE]
        )
        if "rror reconfiguring" in journal or time.monotonic() > deadline:
            module.fail_json(msg="the Docker daemon did not take in its new configuration:\n" + journal)
        time.sleep(0.2)


def restart(module: AnsibleModule, wanted: dict) -> None:
    """Restart the daemon so that its containers live on."""
    before = info(module)
    if before["running"] and not before["live_restore"]:
        if wanted.get("live-restore"):
            reload_daemon(module)
        elif module.params["keep_containers"]:
            module.fail_json(
                msg="the Docker daemon has to be restarted, and its %d running containers would stop, because "
                "live-restore is off in %s. Set docker_engine_daemon_options: {live-restore: true} to let them live "
                "on, or docker_engine_live_restore: false to accept that they stop"
                % (before["running"], module.params["path"])
            )
    systemctl(module, "restart")
    after = info(module)
    if after["running"] < before["running"]:
        module.warn("%d containers ran before the restart of Docker, %d after" % (before["running"], after["running"]))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "depends": {"type": "list", "elements": "path", "default": []},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "keep_containers": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    path, depends = module.params["path"], module.params["depends"]
    state = docker_daemon.show(module, *PROPERTIES)
    if state["LoadState"] == "not-found" and module.check_mode:
        module.exit_json(changed=True, action="start", because=[])
    if (needs_reading(state) or state["LoadState"] == "not-found") and not module.check_mode:
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        state = docker_daemon.show(module, *PROPERTIES)
    if state["LoadState"] != "loaded":
        why = "is masked; systemctl unmask it" if state["LoadState"] == "masked" else "is not there"
        module.fail_json(msg="the unit %s %s" % (docker_daemon.SERVICE, why))

    found: dict = {}
    try:
        wanted = docker_daemon.parse(docker_daemon.read(path), path)
        if state["ActiveState"] in ("active", "activating", "reloading"):
            found = docker_daemon.applied(state, path, depends)
            action, because = reasons(module, state, found, wanted)
        else:
            action, because = "start", ["it does not run (%s)" % state["ActiveState"]]
    except docker_daemon.ConfigError as error:
        module.fail_json(msg=str(error))
    enable = state["UnitFileState"] not in ("enabled", "enabled-runtime")
    if not module.check_mode:
        if enable:
            module.run_command(["systemctl", "enable", "--quiet", docker_daemon.SERVICE], check_rc=True)
        if action == "restart":
            restart(module, wanted)
        elif action == "start":
            systemctl(module, "start")
        elif action == "reload":
            reload_daemon(module)
        if action in ("start", "restart"):
            invocation = docker_daemon.show(module, "InvocationID")["InvocationID"]
            found = {"invocation": invocation, "files": {name: docker_daemon.digest(name) for name in depends}}
        # What the next run compares with, also where only a file's date changes until then.
        docker_daemon.save(docker_daemon.APPLIED, dict(found, config=wanted))
    module.exit_json(changed=enable or action != "none", action=action, because=because)


if __name__ == "__main__":
    main()
