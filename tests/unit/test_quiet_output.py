"""What a run prints (plugins/callback/quiet.py), with Ansible itself and throw-away playbooks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CRASH = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
AnsibleModule(argument_spec={})
raise ValueError("boom inside")
"""
MIXED = """
- name: Phase one
  hosts: one,two
  gather_facts: false
  tasks:
    - {name: Unchanged, ansible.builtin.command: "true", changed_when: false}
    - {name: Skipped, ansible.builtin.command: "true", when: false}
    - {name: Changed, ansible.builtin.command: "true", when: inventory_hostname == 'one'}
    - {name: Say a line, ansible.builtin.debug: {msg: "all is well"}, run_once: true}
    - {name: Say a table, ansible.builtin.debug: {msg: "name   state\\ncoder  ready"}, run_once: true}
    - {name: Say a list, ansible.builtin.debug: {msg: [first, second]}, run_once: true}
    - {name: Say items, ansible.builtin.debug: {msg: "item {{ item }}"}, loop: [a, b], run_once: true}
    - {name: Say a value, ansible.builtin.debug: {var: some}, vars: {some: {key: 1}}, run_once: true}
    - {name: Warn, warn: , run_once: true}
    - {name: Include, ansible.builtin.include_tasks: more.yml, run_once: true}
- name: Phase two
  hosts: one
  gather_facts: false
  tasks:
    - name: Refuse
      ansible.builtin.assert: {that: [1 == 2], fail_msg: "2 problem(s)\\nbox: a\\n    \\"why\\" it's wrong\\nbox: b"}
      ignore_errors: true
    - {name: Crash, crash: , ignore_errors: true}
    - {name: Run, ansible.builtin.command: "sh -c 'echo out; echo err >&2; exit 4'", ignore_errors: true}
    - {name: Undefined, ansible.builtin.debug: {msg: "{{ nothing.here }}"}, ignore_errors: true}
    - {name: Loop, ansible.builtin.command: "{{ item }}", loop: ["true", "false"], ignore_errors: true}
    - name: Rescue
      block:
        - {name: Fail in a block, ansible.builtin.fail: {msg: "it is gone"}}
      rescue:
        - {name: Go on, ansible.builtin.command: "true", changed_when: false}
    - {name: Condition, ansible.builtin.command: "true", changed_when: false, failed_when: true, ignore_errors: true}
- name: Phase three
  hosts: gone
  gather_facts: false
  tasks:
    - {name: Reach, ansible.builtin.ping: }
"""
WARN = """
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        Display().warning("take care of it")
        return {**super().run(tmp, task_vars), "changed": False}
"""
INCLUDED = "- {name: Included, ansible.builtin.command: 'true', changed_when: false}\n"
QUIET = """
PLAY [Phase one]

TASK [Changed]
changed: [one]

TASK [Say a line]
ok: [one] => all is well

TASK [Say a table]
ok: [one] =>
    name   state
    coder  ready

TASK [Say a list]
ok: [one] =>
    first
    second

TASK [Say items]
ok: [one] => item a
ok: [one] => item b

TASK [Say a value]
ok: [one] =>
    some:
        key: 1

PLAY [Phase two]

TASK [Refuse]
fatal: [one]: FAILED! =>
    2 problem(s)
    box: a
        "why" it's wrong
    box: b
...ignoring

TASK [Crash]
fatal: [one]: FAILED! =>
    Task failed: Module failed: boom inside
    Origin: FOLDER/play.yml:23:7
...ignoring

TASK [Run]
fatal: [one]: FAILED! =>
    non-zero return code
    cmd:
    - sh
    - -c
    - echo out; echo err >&2; exit 4
    rc: 4
    stderr: err
    stdout: out
...ignoring

TASK [Undefined]
fatal: [one]: FAILED! =>
    Task failed: Finalization of task args for 'ansible.builtin.debug' failed: Error while resolving value for 'msg': \
'nothing' is undefined
    Origin: FOLDER/play.yml:25:54
...ignoring

TASK [Loop]
changed: [one] => (item=true)
failed: [one] (item=false) =>
    non-zero return code
    cmd:
    - 'false'
    rc: 1
...ignoring

TASK [Fail in a block]
fatal: [one]: FAILED! => it is gone

TASK [Condition]
fatal: [one]: FAILED! =>
    Action failed.
    Origin: FOLDER/play.yml:32:7
    cmd:
    - 'true'
    rc: 0
...ignoring

PLAY [Phase three]

TASK [Reach]
fatal: [gone]: UNREACHABLE! => Task failed: REASON

PLAY RECAP
gone : ok=0 changed=0 unreachable=1 failed=0 skipped=0 rescued=0 ignored=0
one : ok=17 changed=3 unreachable=0 failed=0 skipped=1 rescued=1 ignored=6
two : ok=1 changed=0 unreachable=0 failed=0 skipped=2 rescued=0 ignored=0

[WARNING]: take care of it
"""


def ansible(folder: Path, text: str, *more: str, **environment: str) -> str:
    """What a run of a playbook prints, without colours and rows of stars, with paths below FOLDER."""
    (folder / "library").mkdir(exist_ok=True)
    (folder / "action_plugins").mkdir(exist_ok=True)
    (folder / "library" / "crash.py").write_text(CRASH, encoding="utf-8")
    (folder / "action_plugins" / "warn.py").write_text(WARN, encoding="utf-8")
    (folder / "more.yml").write_text(INCLUDED, encoding="utf-8")
    (folder / "play.yml").write_text(text, encoding="utf-8")
    (folder / "hosts").write_text(
        f"one ansible_connection=local\ntwo ansible_connection=local\ngone ansible_host=127.0.0.1 ansible_port=1\n"
        f"[all:vars]\nansible_python_interpreter={sys.executable}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["ansible-playbook", "-i", str(folder / "hosts"), str(folder / "play.yml"), *more],
        cwd=ROOT, capture_output=True, text=True, check=False,
        # One at a time: the hosts' lines in their order.
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORKS": "1", "ANSIBLE_SSH_RETRIES": "0", **environment},
    )  # fmt: skip
    out = (done.stdout + done.stderr).replace(str(folder), "FOLDER")
    out = re.sub(r" \*{3,}$", "", out, flags=re.MULTILINE)
    return re.sub(r"[ \t]+$", "", out, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same playbook as it is printed in three ways."""
    folder = tmp_path_factory.mktemp("mixed")
    return {
        "quiet": ansible(folder, MIXED),
        "-v": ansible(folder, MIXED, "-v"),
        "default -v": ansible(folder, MIXED, "-v", ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default"),
    }


def test_changes_failures_and_messages_are_printed_once(runs: dict[str, str]) -> None:
    out = re.sub(r"UNREACHABLE! => Task failed: .*", "UNREACHABLE! => Task failed: REASON", runs["quiet"])
    head, recap = out.split("PLAY RECAP\n")
    assert head + "PLAY RECAP\n" + re.sub(r" +", " ", recap).strip() + "\n" == QUIET


def test_all_that_ansible_shows_is_there_with_v(runs: dict[str, str]) -> None:
    def same(out: str) -> str:
        """Without times, which differ from run to run."""
        return re.sub(r"(start|end|delta)(\W+)[\d:. -]+", r"\1", out)

    assert "TASK [Unchanged]" in runs["-v"]
    assert same(runs["-v"]) == same(runs["default -v"])


def test_more_can_be_shown_but_no_secret(tmp_path: Path) -> None:
    text = """
- hosts: one
  gather_facts: false
  vars: {secret: hunter2}
  tasks:
    - {name: Unchanged, ansible.builtin.command: "true", changed_when: false}
    - {name: Skipped, ansible.builtin.command: "true", when: false}
    - {name: Say, ansible.builtin.debug: {msg: all is well}}
    - {name: Fail, ansible.builtin.fail: {msg: "{{ secret }}"}, no_log: true, ignore_errors: true}
    - {name: Say it, ansible.builtin.debug: {msg: "{{ secret }}"}, no_log: true}
    - {name: Say items, ansible.builtin.debug: {msg: "{{ item }}"}, loop: ["{{ secret }}"], no_log: true}
    - {name: Run, ansible.builtin.command: "echo {{ secret }}", no_log: true}
    - {name: Run items, ansible.builtin.command: "false {{ item }}", loop: ["{{ secret }}"], no_log: true,
       ignore_errors: true}
    - {name: Cannot, ansible.builtin.command: "{{ lookup('ansible.builtin.file', secret) }}", no_log: true,
       ignore_errors: true}
    - {name: Refuse, ansible.builtin.assert: {that: [1 == 2], fail_msg: no such thing}}
"""
    shown = {"DISPLAY_OK_HOSTS": "true", "DISPLAY_SKIPPED_HOSTS": "true", "SHOW_WHOLE_FAILURES": "true"}
    out = ansible(tmp_path, text, **{f"ANSIBLE_{name}": value for name, value in shown.items()})
    assert "TASK [Unchanged]\nok: [one]\n" in out
    assert "TASK [Skipped]\nskipping: [one]\n" in out
    assert "ok: [one] => all is well\n" in out
    assert "FAILED! =>\n    no such thing\n    assertion: 1 == 2\n    evaluated_to: false\n" in out
    assert out.count("FAILED! => the output has been hidden") == 2, out
    assert "failed: [one] (item=(censored due to no_log)) => the output has been hidden" in out
    assert "hunter2" not in out
