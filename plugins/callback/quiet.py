# MIT licence (see LICENSE)
"""What a run prints: changes, failures and messages; the rest with -v."""

from __future__ import annotations

import sys
from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default
from ansible_collections.modelhost.serving.plugins.plugin_utils import progress

DOCUMENTATION = r"""
name: quiet
type: stdout
author: the modelhost authors
short_description: Print what changes and what fails, once and for people
description:
  - Prints what P(ansible.builtin.default#callback) prints, but tasks that change nothing and tasks that are skipped
    show with C(-v) only. Their warnings show, and so does each message of M(ansible.builtin.debug), as plain lines.
  - A failure is printed once, as plain lines and without an excerpt of the playbook. What a program
    printed follows its message. The result of a task with C(no_log) stays hidden, its error as well.
  - On a terminal the last line lives. It names the task that runs, or says how far a long step is
    (start of an engine, weights, images, files of a bundle).
  - With C(-v) all is printed as P(ansible.builtin.default#callback) does.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
options:
  display_ok_hosts:
    description: Show tasks that changed nothing, without their results.
    name: Show 'ok' hosts
    type: bool
    default: false
    env:
      - name: ANSIBLE_DISPLAY_OK_HOSTS
    ini:
      - key: display_ok_hosts
        section: defaults
  display_skipped_hosts:
    description: Show tasks that were skipped.
    name: Show skipped hosts
    type: bool
    default: false
    env:
      - name: ANSIBLE_DISPLAY_SKIPPED_HOSTS
    ini:
      - key: display_skipped_hosts
        section: defaults
  show_whole_failures:
    description: Print all that the result of a failed task holds, not its message and the output of programs alone.
    type: bool
    default: false
    env:
      - name: ANSIBLE_SHOW_WHOLE_FAILURES
    ini:
      - key: show_whole_failures
        section: defaults
requirements:
  - set as C(stdout_callback = modelhost.serving.quiet) in ansible.cfg
seealso:
  - plugin: ansible.builtin.default
    plugin_type: callback
"""

#: What a failed task says beside its message: what ran, and what it printed.
TELLING = ("cmd", "url", "status", "rc", "stderr", "stdout", "module_stderr", "module_stdout", "content")
#: What a result holds that nobody wants to read.
NOISE = ("msg", "changed", "failed", "exception", "stdout_lines", "stderr_lines", "start", "end", "delta")


def lines_of(value: Any) -> list[str]:
    """A message as lines of text."""
    if isinstance(value, (list, tuple)):
        return [line for item in value for line in lines_of(item)]
    return str(value).rstrip().splitlines()


def errors_of(exception: Any) -> list[Any]:
    """An error of ansible-core 2.19 and later and its causes, the outermost first."""
    found = []
    event = getattr(exception, "event", None)
    while event is not None:
        found.append(event)
        event = getattr(getattr(event, "chain", None), "event", None)
    return found


def reasons_of(message: str, exception: Any) -> list[str]:
    """A failure's message and the causes that it does not name; and where that stands if nobody chose these words."""
    events = errors_of(exception)
    # A condition (`failed_when`) gives no message: Ansible says that the action failed.
    lines = lines_of(message or next((event.msg for event in reversed(events) if event.msg), ""))
    # Before them stand Ansible's own words: the task failed, its module failed.
    for event in events[2:]:
        for text in (event.msg, getattr(event, "help_text", None)):
            if text and " ".join(text.split()).rstrip(".") not in " ".join(" ".join(lines).split()):
                lines += lines_of(text)
    known = [context for event in events if (context := getattr(event, "formatted_source_context", None))]
    if known and (not message or message.startswith("Task failed")):
        lines.append(str(known[-1]).splitlines()[0])
    return lines


def tracebacks_of(exception: Any) -> list[str]:
    """Tracebacks that were asked for (ANSIBLE_DISPLAY_TRACEBACK), or that an older Ansible or a module hands over."""
    if isinstance(exception, str):
        return lines_of(exception)
    found = [getattr(it, "formatted_traceback", None) for it in errors_of(exception)]
    return [line for text in found if text for line in lines_of(text)]


class CallbackModule(Default):
    """`modelhost.serving.quiet`."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "modelhost.serving.quiet"

    _screen: progress.Screen | None = None

    def set_options(self, *arguments: Any, **named: Any) -> None:
        super().set_options(*arguments, **named)
        self._verbose = self._display.verbosity > 0
        if self._verbose:
            self._plugin_options.update(display_ok_hosts=True, display_skipped_hosts=True)

    # --- the living line ---------------------------------------------------------------------------------------------

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._screen = progress.open_screen(sys.stdout)
        super().v2_playbook_on_start(playbook)

    def _task_start(self, task: Any, prefix: str | None = None) -> None:
        super()._task_start(task, prefix)
        if self._screen:
            self._screen.begin(f"    {task.get_name().strip()}")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if self._screen:
            self._screen.close()
        super().v2_playbook_on_stats(stats)

    def v2_runner_retry(self, result: Any) -> None:
        if self._verbose or not self._screen:
            super().v2_runner_retry(result)
            return
        left = result._result["retries"] - result._result["attempts"]
        host = self.host_label(result)
        self._screen.show(host, f"    {host}  {result.task_name}: not yet, {left} more tries")

    # --- what changed nothing ----------------------------------------------------------------------------------------

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self.get_option("display_ok_hosts"):
            super().v2_playbook_on_include(included_file)

    def _hidden(self, result: Any) -> bool:
        """Whether a task that went well is not shown; what it warns of is, and what it has to tell."""
        if self._verbose or result._result.get("changed"):
            return False
        if result._task.action in C._ACTION_DEBUG and "censored" not in result._result:
            return self._message(result)
        if self.get_option("display_ok_hosts"):
            return False
        self._handle_warnings(result._result)
        return True

    def v2_runner_on_ok(self, result: Any) -> None:
        if self._looped(result) and result._task.action in C._ACTION_DEBUG and not self._verbose:
            return  # Its items have said what there is.
        if not self._hidden(result):
            super().v2_runner_on_ok(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        if not self._hidden(result):
            super().v2_runner_item_on_ok(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        if not self.get_option("display_skipped_hosts"):
            self._handle_warnings(result._result)
        super().v2_runner_on_skipped(result)

    @staticmethod
    def _looped(result: Any) -> bool:
        """Whether this is the end of a loop, of which each item has been shown."""
        return bool(result._task.loop) and "results" in result._result

    def _heading(self, result: Any) -> None:
        if self._last_task_banner != result._task._uuid:
            self._print_task_banner(result._task)

    def _message(self, result: Any) -> bool:
        """What a debug task says, as it is meant to be read; a value (`var`, a mapping) as Ansible prints values."""
        self._heading(result)
        self._handle_warnings(result._result)
        said, subject = result._result.get("msg"), f"ok: [{self.host_label(result)}]"
        if said is None or isinstance(said, dict):
            self._clean_results(result._result, result._task.action)
            self._display.display(f"{subject} => {self._dump_results(result._result)}", color=C.COLOR_OK)
        else:
            self._block(subject, lines_of(said), C.COLOR_OK)
        return True

    def _block(self, subject: str, lines: list[str], color: str, stderr: bool = False) -> None:
        """Who, and what there is to say: in the same line if it is one."""
        if len(lines) == 1:
            text = f"{subject} => {lines[0]}"
        else:
            text = "\n".join([f"{subject} =>", *(f"    {line}".rstrip() for line in lines)])
        self._display.display(text, color=color, stderr=stderr)

    # --- failures ----------------------------------------------------------------------------------------------------

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if self._verbose:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        self._heading(result)
        self._handle_warnings(result._result)
        if not self._looped(result):
            self._failure(result, f"fatal: [{self.host_label(result)}]: FAILED!")
        if ignore_errors:
            self._display.display("...ignoring", color=C.COLOR_SKIP)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        if self._verbose:
            super().v2_runner_item_on_failed(result)
            return
        self._heading(result)
        self._handle_warnings(result._result)
        item = self._get_item_label(result._result)
        self._failure(result, f"failed: [{self.host_label(result)}] (item={item})")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if self._verbose:
            super().v2_runner_on_unreachable(result)
            return
        self._heading(result)
        self._handle_warnings(result._result)
        self._failure(result, f"fatal: [{self.host_label(result)}]: UNREACHABLE!", C.COLOR_UNREACHABLE)
        if result._task.ignore_unreachable:
            self._display.display("...ignoring", color=C.COLOR_SKIP)

    def _failure(self, result: Any, subject: str, color: str = C.COLOR_ERROR) -> None:
        found = result._result
        # Ansible's own error says what it failed on, no_log or not: nothing but this is shown.
        if "censored" in found:
            lines = lines_of(found["censored"])
        else:
            exception = getattr(result, "exception", None) or found.get("exception")
            lines = reasons_of(str(found.get("msg") or ""), exception)
            if color == C.COLOR_UNREACHABLE:
                # Which task it was when the host did not answer is chance.
                lines = [line for line in lines if not line.startswith("Origin: ")]
            # Ansible 2.18 and earlier has a module's traceback in both places.
            if not (isinstance(exception, str) and exception.strip() in str(found.get("module_stderr"))):
                lines += tracebacks_of(exception)
            lines += self._rest(found, whole=not lines)
        self._block(subject, lines, color, self.get_option("display_failed_stderr"))

    def _rest(self, found: dict[str, Any], whole: bool) -> list[str]:
        """What a result holds beside its message."""
        if whole or self.get_option("show_whole_failures"):
            rest = {key: value for key, value in found.items() if key not in NOISE}
        else:
            rest = {key: found[key] for key in TELLING if key in found and found[key] not in ("", None, [])}
        rest = {key: value for key, value in rest.items() if not key.startswith("_ansible")}
        return [line[4:] for line in lines_of(self._dump_results(rest)) if line.strip()] if rest else []
