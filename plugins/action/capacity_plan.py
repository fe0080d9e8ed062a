# MIT licence (see LICENSE)
"""Say what fits on each host (documented in plugins/modules/capacity_plan.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.modelhost.serving.plugins.action.validate_inventory import plain
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import inventory_validation, plan, plan_report
from ansible_collections.modelhost.serving.plugins.module_utils.hardware import DescriptionError
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

display = Display()

KINDS = ("cpu", "cuda")
#: What of a host's variables a plan rests on.
VARIABLES = (
    "accelerator_cpu_preload",
    "accelerator_cpu_reserved_cores",
    "accelerator_cpu_transparent_hugepages",
    "accelerator_provider",
    "accelerator_state",
    "capacity_plan_hardware",
    "vllm_advertise_address",
    "vllm_accelerator_flags",
    "vllm_bind_address",
    "vllm_environment",
    "vllm_flags",
    "vllm_instances",
    "vllm_memory_reserved_gib",
    "vllm_models",
    "vllm_models_dir",
    "vllm_runtime",
    "vllm_variant",
)


def file_name(host: str) -> str:
    """A host's name as a file can be called."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", host).lstrip(".") or "host"


class ActionModule(ActionBase):
    """`modelhost.serving.capacity_plan`."""

    _supports_check_mode = True
    _requires_connection = False

    def _variables(self, host: str, source: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A host's variables that can be used, and what is wrong with the others: an inventory may be unfinished."""
        values: dict[str, Any] = {}
        broken = []
        for name in VARIABLES:
            try:
                if name in source:
                    values[name] = plain(source[name])
            except AnsibleError as error:
                why = f"its value cannot be worked out: {error.message}"
                broken.append(problem(host, name, None, why, "mend the expression"))
        broken += inventory_validation.spec_problems(host, values)
        wrong = {re.split(r"[.\[]", item["variable"])[0] for item in broken}
        return {name: value for name, value in values.items() if name not in wrong}, broken

    def _host(self, host: str, task_vars: Any, developers: int) -> tuple[dict[str, Any], Any]:
        """A host's plan and its facts; a host of which nothing is known has an error for a plan."""
        source, versions = task_vars["hostvars"][host], {kind: str(pin(f"vllm.{kind}.version")) for kind in KINDS}
        values, broken = self._variables(host, source)
        wish = values.pop("capacity_plan_hardware", None)
        try:
            facts = plan.facts_of(wish) if wish else source.get("host_preflight_probe")
            if not facts:
                bare = source.get("host_preflight_bare") or {}
                why = str(source.get("__capacity_plan_failure") or bare.get("error") or "it could not be reached")
                return {"host": host, "error": f"Not planned for: {why.removeprefix('Task failed: ').strip()}"}, None
            facts = plan.saved(facts)
            found = plan.host_plan(host, facts, values, developers, versions, task_vars["groups"])
        except DescriptionError as error:
            return {"host": host, "error": f"capacity_plan_hardware: {error}", "refused": True}, None
        found["problems"] = [*map(plan.told, broken), *found["problems"]]
        return found, facts

    def _write(self, folder: Path, found: dict[str, Any], facts: dict[str, Any]) -> None:
        """The files of the plan."""
        (folder / "facts").mkdir(parents=True, exist_ok=True)
        texts = {"plan.json": json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n"}
        texts["plan.html"] = plan_report.page(found)
        for host, known in facts.items():
            texts[f"facts/{file_name(host)}.json"] = json.dumps(known, indent=2, ensure_ascii=False) + "\n"
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        developers = int(arguments["developers"])
        hosts, facts = [], {}
        for host in task_vars["ansible_play_hosts_all"]:
            found, known = self._host(host, task_vars, developers)
            hosts.append(found)
            if known:
                facts[host] = known
        whole = plan.plan(hosts, developers)
        lines = plan_report.text(whole)
        result["changed"] = False
        folder = Path(arguments["output"]).expanduser()
        if self._task.check_mode:
            lines.append(f"Check mode: nothing was written to {folder}.")
        elif facts:
            try:
                self._write(folder, whole, facts)
                lines.append(f"Written: {folder}/plan.html, plan.json, and facts/ to plan with elsewhere or later.")
            except OSError as error:
                result.update(failed=True, msg=f"capacity_plan_output: {folder} cannot be written: {error}")
        for line in lines:
            display.display(line)
        refused = [f"{item['host']}: {item['error']}" for item in hosts if item.get("refused")]
        if refused:
            result.update(failed=True, msg="\n".join(refused))
        elif not facts:
            result.update(failed=True, msg="No host could be planned for: see the reasons above.")
        # The whole plan would bury the message of a failure.
        return result if result.get("failed") else {**result, "plan": whole}
