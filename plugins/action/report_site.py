# MIT licence (see LICENSE)
"""Say what runs where (documented in plugins/modules/report_site.py)."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.module_utils import site_report

display = Display()


class ActionModule(ActionBase):
    """`modelhost.serving.report_site`."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        text = site_report.lines(task_vars["groups"], task_vars["hostvars"])
        for line in text:
            display.display(line)
        return {**result, "changed": False, "msg": text}
