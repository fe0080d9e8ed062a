#!/usr/bin/env python3
"""Write the tables of docs/inventories/*.md: what the plan says of each worked inventory today.

A page holds `<!-- table: NAME -->` and `<!-- end -->`; what stands between them is made here, in both languages. The rest
is written by hand. `tools/inventory_pages.py --check` only says whether something would change. `./run lint` does that.
"""
# ruff: noqa: E501 (a sentence stands on one line in either language)

from __future__ import annotations

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from generated import keep

ROOT = Path(__file__).resolve().parents[1]
init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.modelhost.serving.plugins.action.capacity_plan import VARIABLES  # noqa: E402 (needs the loader)
from ansible_collections.modelhost.serving.plugins.action.validate_inventory import plain  # noqa: E402
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin  # noqa: E402
from ansible_collections.modelhost.serving.plugins.module_utils import (  # noqa: E402
    capacity,
    catalog,
    claude_code,
    inventory_validation,
    plan,
    plan_report,
    vllm_flags,
)

#: The worked inventories, in the order of the overview.
NAMES = ("gpu-235b", "gpu-72b", "cpu-xeon", "wsl2")
#: (setting, other machine); without a name the setting that is in use.
MACHINES = {
    "gpu-235b": [
        ("", machine)
        for machine in ("4× H100 80 GB", "4× H20 96 GB", "4× H20 141 GB", "4× H200", "4× A100 80 GB", "4× L40S")
    ],
    "gpu-72b": [
        *(("bf16_on_four", machine) for machine in ("4× A100 80 GB", "4× H100 80 GB", "4× H20 96 GB", "4× L40S")),
        *(("awq_on_two", machine) for machine in ("2× A100 80 GB", "2× H20 96 GB", "2× L40S")),
    ],
    "cpu-xeon": [
        ("", f"{machine}, 363 GB of which 238 GB are free")
        for machine in (
            *("dual E5-2680 v4", "dual E5-2680 v3", "dual E5-2680"),
            *("dual Xeon Gold 6248", "dual Xeon Platinum 8468"),
        )
    ],
    "wsl2": [
        *(("card_32gb", machine) for machine in ("RTX 5090, 48 GB", "RTX 4090, 32 GB")),
        *(("card_24gb", machine) for machine in ("RTX 4090, 32 GB", "RTX 3090, 32 GB", "RTX 4080, 32 GB")),
    ],
}
#: Other models for the described machine.
MODELS = {
    "gpu-235b": (
        "deepseek-v4-flash-0731",
        "qwen3.8-27b-fp8",
        "step-3.7-flash-fp8",
        "qwen3.6-35b-a3b-fp8",
        "qwen3-coder-next-fp8",
        "qwen3-235b-a22b-instruct-2507-fp8",
        "qwen3-235b-a22b-instruct-2507",
    ),
    "gpu-72b": (
        "qwen3.8-27b-fp8",
        "step-3.7-flash-fp8",
        "qwen3-coder-next-fp8",
        "qwen2.5-72b-instruct",
        "qwen2.5-72b-instruct-awq",
        "qwen2.5-72b-instruct-gptq-int8",
    ),
    "cpu-xeon": (
        "qwen3.6-35b-a3b",
        "qwen3-coder-next",
        "qwen3-coder-30b-a3b-instruct",
        "qwen3-4b-instruct-2507",
        "deepseek-coder-v2-lite-instruct",
        "qwen2.5-14b-instruct",
        "qwen2.5-coder-32b-instruct",
        "qwen2.5-72b-instruct",
        "qwen2.5-coder-32b-instruct-awq",
        "qwen3-coder-30b-a3b-instruct-fp8",
        "gpt-oss-20b",
        "qwen3-235b-a22b-instruct-2507",
    ),
    "wsl2": (
        "qwen3.8-27b-int4",
        "gpt-oss-20b",
        "qwen3-coder-30b-a3b-instruct-awq-4bit",
        "qwen3.5-9b",
        "qwen3.5-4b",
        "qwen3.8-27b-fp8",
    ),
}
#: First prompts of Claude Code 2.1.329, in tokens (measured): lean profile, headless, as the plan has it, and with the
#: model's name that old guides set.
PROMPTS = (3900, 11500, capacity.FIRST_PROMPT, 29300)
#: Tokens of a later turn that are new. Beside them a block of the prefix cache that is not full is read again.
LATER = 1000
#: Nominal GiB/s: of networks, and of disks that are read from end to end.
LINKS = {"1 Gbit/s": 1e9 / 8 / capacity.GIB, "100 Mbit/s": 1e8 / 8 / capacity.GIB}
DISKS = {"NVMe, 2 GiB/s": 2.0, "SATA SSD, 0.5 GiB/s": 0.5, "HDD, 0.15 GiB/s": 0.15}
#: What Claude Code keeps free beside the room of an answer before it compacts.
COMPACT = 13000

TEXT = {
    "settings": (
        "| setting | model | TP | context | sessions of its full context | of 64K | of 128K | Claude Code compacts at |",
        "| 设置 | 模型 | TP | 上下文 | 满上下文的会话数 | 64K 会话 | 128K 会话 | Claude Code 压缩点 |",
    ),
    "memory": (
        "| setting | weights | KV cache | runtime | together | may be taken | tokens in the KV cache |",
        "| 设置 | 权重 | KV 缓存 | 运行时 | 合计 | 可用上限 | KV 缓存可容纳的 token |",
    ),
    "speed": (
        "| setting | decode, tokens/s | prefill, tokens/s | later turn (1K new) | first turn: lean (3.9K) | headless (11.5K) | interactive (20K) | old model name of guides (29.3K) |",
        "| 设置 | 解码 tokens/s | 预填充 tokens/s | 后续轮次（新增 1K） | 首轮：lean（3.9K） | headless（11.5K） | 交互式（20K） | 旧教程的模型名（29.3K） |",
    ),
    "times": (
        "| model | on disk | download at {} | at {} | loading from {} | {} | {} | start may take |",
        "| 模型 | 磁盘占用 | 下载：{} | {} | 加载：{} | {} | {} | 启动时限 |",
    ),
    "machines": (
        "| machine | model | fits | TP | sessions of 64K | of 128K | decode | prefill | first turn (20K) |",
        "| 机器 | 模型 | 能否运行 | TP | 64K 会话 | 128K 会话 | 解码 | 预填充 | 首轮（20K） |",
    ),
    "models": (
        "| model | fits | TP | sessions of 64K | of 128K | decode | prefill | first turn (20K) | weights | makers' score |",
        "| 模型 | 能否运行 | TP | 64K 会话 | 128K 会话 | 解码 | 预填充 | 首轮（20K） | 权重 | 厂商公布的分数 |",
    ),
    "flags": ("| flag or variable | value | comes from |", "| 参数或变量 | 值 | 来源 |"),
    "overview": (
        "| inventory | machine | model | sessions of 64K | decode, tokens/s | first turn (20K) |",
        "| 清单 | 机器 | 模型 | 64K 会话 | 解码 tokens/s | 首轮（20K） |",
    ),
    "active": (" (in use)", "（使用中）"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "recommended": (" ← recommended by the plan", " ← plan 推荐"),
    "here": (" ← this inventory", " ← 本清单"),
    "estimate": ("Estimates of `{}`.", "由 `{}` 估算。"),
    "estimates": (
        "Estimates of `{}`, each with the host's line below that setting.",
        "由 `{}` 估算；每行对应把主机那一行移到该设置之下。",
    ),
    "computed": (
        "Worked out from `weights_gib` of the catalogue and nominal rates; not measured.",
        "由目录中的 `weights_gib` 和标称速率算出，并非实测。",
    ),
    "each": ("on each GPU", "每块 GPU"),
    "node": ("on each NUMA node", "每个 NUMA 节点"),
    "unknown": ("none published", "未公布"),
}


@dataclass(frozen=True)
class Site:
    """One inventory with one of its settings in use: what Ansible makes of it, and the machine that it describes."""

    name: str
    setting: str
    host: str
    manager: Any
    hostvars: Any
    groups: dict[str, list[str]]

    @property
    def variables(self) -> dict[str, Any]:
        """What a plan rests on."""
        found, wired = self.hostvars[self.host], inventory_validation.WIRED
        return {name: plain(found[name]) for name in VARIABLES if name in found and name not in wired}

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the described machine."""
        return plan.facts_of(self.variables["capacity_plan_hardware"])


def settings(name: str) -> list[str]:
    """Groups below `engines`, the one in use first; an empty name where there are none."""
    loader = DataLoader()
    engines = InventoryManager(loader=loader, sources=[str(ROOT / "inventories" / name)]).groups["engines"]
    return [group.name for group in sorted(engines.child_groups, key=lambda group: not group.hosts)] or [""]


def site(name: str, setting: str = "") -> Site:
    """An inventory as its user has it after moving the host's line below this setting."""
    loader = DataLoader()
    # Where site.yml has its playbooks, so that the wiring is at work.
    loader.set_basedir(str(ROOT / "playbooks"))
    sources = InventoryManager(loader=loader, sources=[str(ROOT / "inventories" / name)])
    (host,) = sources.groups["engines"].get_hosts()
    if setting:
        for group in sources.groups["engines"].child_groups:
            if host in group.hosts:
                group.remove_host(host)
        sources.groups[setting].add_host(host)
    manager = VariableManager(loader=loader, inventory=sources)
    return Site(name, setting, host.name, manager, HostVars(sources, manager, loader), sources.get_groups_dict())


def versions() -> dict[str, str]:
    """vLLM's version for each build."""
    return {kind: str(pin(f"vllm.{kind}.version")) for kind in ("cpu", "cuda")}


def planned(found: Site, machine: str = "", changed: dict[str, Any] | None = None) -> dict[str, Any]:
    """The plan of a site's host; on another machine, or with flags of its instance changed."""
    variables = {name: value for name, value in found.variables.items() if name != "capacity_plan_hardware"}
    if changed:
        first, *others = variables["vllm_instances"]
        variables["vllm_instances"] = [{**first, "flags": {**(first.get("flags") or {}), **changed}}, *others]
    facts = plan.facts_of(machine) if machine else found.facts
    return plan.host_plan(found.host, facts, variables, 4, versions(), found.groups)


@functools.cache
def rows(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(label, the instance as it is planned) for each setting of an inventory, and for what its files mention."""
    found = []
    for setting in settings(name):
        host = planned(site(name, setting))
        found.append((f"`{setting}`" if setting else "", host["instances"][0]))
    if name == "gpu-235b":
        host = planned(site(name, "context_128k"), changed={"kv_cache_dtype": "fp8"})
        found.append(("`context_128k`, `kv_cache_dtype: fp8`", host["instances"][0]))
    return found


def turn(result: dict[str, Any], tokens: int) -> str:
    """Reading a prompt and writing a short answer."""
    return plan_report.duration(tokens / result["prefill"] + capacity.FIRST_ANSWER / result["decode"])


def number(count: float) -> str:
    """310000 → 310,000, to three digits."""
    return f"{int(float(f'{count:.3g}')):,}"


def table(head: str, lines: list[list[str]], below: str) -> list[str]:
    """Markdown."""
    columns = head.count("|") - 1
    return [head, "|" + "---|" * columns, *("| " + " | ".join(line) + " |" for line in lines), "", below]


def command(name: str) -> str:
    """What prints it."""
    return f"./run plan -i inventories/{name}"


def below(name: str, language: int) -> str:
    """What stands below a table of settings."""
    return TEXT["estimates" if len(rows(name)) > 1 else "estimate"][language].format(command(name))


def label(at: int, text: str, instance: dict[str, Any], language: int) -> str:
    """The first column."""
    return (text or f"`{instance['model']}`") + (TEXT["active"][language] if text and not at else "")


def settings_table(name: str, language: int) -> list[str]:
    """What each setting gives."""
    active = site(name)
    answer = int(active.hostvars[active.host].get("claude_code_max_output_tokens") or 0)
    lines = []
    for at, (text, instance) in enumerate(rows(name)):
        found = instance["assessment"]
        context = found["max_model_len"]
        sessions = [str(found["sessions"][tokens] or "–") for tokens in capacity.CONTEXTS]
        usable = context - min(claude_code.max_output(context, answer), 20000) - COMPACT
        lines.append(
            [
                label(at, text, instance, language),
                f"`{instance['model']}`",
                plan_report.split(found),
                str(context),
                str(found["kv_tokens"] // context),
                *sessions,
                number(usable),
            ]
        )
    return table(TEXT["settings"][language], lines, below(name, language))


def memory_table(name: str, language: int) -> list[str]:
    """Where the memory goes."""
    lines = []
    for at, (text, instance) in enumerate(rows(name)):
        found = instance["assessment"]
        parts = [found["weights"], found["kv_cache_memory_bytes"], found["overhead"]]
        lines.append(
            [
                label(at, text, instance, language),
                *(capacity.gib(part) for part in (*parts, sum(parts), found["budget"])),
                number(found["kv_tokens"]),
            ]
        )
    where = TEXT["each" if rows(name)[0][1]["assessment"]["kind"] == "cuda" else "node"][language]
    head = TEXT["memory"][language].replace("| 设置", f"| 设置（{where}）").replace("| setting", f"| setting, {where}")
    return table(head, lines, below(name, language))


def speed_table(name: str, language: int) -> list[str]:
    """How it will feel."""
    lines = []
    for at, (text, instance) in enumerate(rows(name)):
        found = instance["assessment"]
        lines.append(
            [
                label(at, text, instance, language),
                plan_report.rate(found["decode"]),
                plan_report.rate(found["prefill"]),
                *(turn(found, tokens) for tokens in (LATER + found["block"], *PROMPTS)),
            ]
        )
    return table(TEXT["speed"][language], lines, below(name, language))


def times_table(name: str, language: int) -> list[str]:
    """How long bytes take."""
    lines = []
    # Of one model all settings run on the same kind of machine.
    on_gpu = {
        instance["model"]: bool(instance["assessment"].get("gpu_memory_utilization")) for _label, instance in rows(name)
    }
    for model in on_gpu:
        known = catalog.shipped()[model]
        size = float(known["weights_gib"])
        seconds = (size / rate for rate in (*LINKS.values(), *DISKS.values()))
        limit = vllm_flags.start_timeout(known, compiles=on_gpu[model])
        lines.append([f"`{model}`", f"{size:.1f} GiB", *(plan_report.duration(item) for item in (*seconds, limit))])
    return table(TEXT["times"][language].format(*LINKS, *DISKS), lines, TEXT["computed"][language])


def machines_table(name: str, language: int) -> list[str]:
    """The settings on other machines."""
    lines = []
    for setting, machine in MACHINES[name]:
        found = planned(site(name, setting), machine)["instances"][0]
        result, first = found["assessment"], [machine, f"`{found['model']}`"]
        if not result.get("fits"):
            lines.append([*first, f"{TEXT['no'][language]}: {result['why'][0]}", *[""] * 6])
            continue
        lines.append(
            [
                *first,
                TEXT["yes"][language],
                plan_report.split(result),
                *(str(result["sessions"][tokens] or "–") for tokens in capacity.CONTEXTS),
                plan_report.rate(result["decode"]),
                plan_report.rate(result["prefill"]),
                plan_report.duration(result["first_turn"]),
            ]
        )
    text = f"{command(name)} -e 'capacity_plan_hardware=\"{MACHINES[name][0][1]}\"'"
    return table(TEXT["machines"][language], lines, TEXT["estimate"][language].format(text))


def models_table(name: str, language: int) -> list[str]:
    """Other models on the described machine."""
    host = planned(site(name))
    known = {row["model"]: row for row in host["models"]}
    here = {instance["model"] for instance in host["instances"]}
    best = host["recommended"]["model"] if host["recommended"] else ""
    lines = []
    for model in dict.fromkeys((best, *MODELS[name])):
        row = known[model]
        score = f"{row['score']:g} ({row['benchmark']})" if row["score"] else TEXT["unknown"][language]
        mark = TEXT["recommended"][language] if model == best else ""
        mark += TEXT["here"][language] if model in here else ""
        size = f"{row['weights_gib']:.1f} GiB"
        if not row["fits"]:
            lines.append([f"`{model}`{mark}", f"{TEXT['no'][language]}: {row['why'][0]}", *[""] * 6, size, score])
            continue
        lines.append(
            [
                f"`{model}`{mark}",
                TEXT["yes"][language],
                plan_report.split(row),
                *(str(row["sessions"][tokens] or "–") for tokens in capacity.CONTEXTS),
                plan_report.rate(row["decode"]),
                plan_report.rate(row["prefill"]),
                plan_report.duration(row["first_turn"]),
                size,
                score,
            ]
        )
    return table(TEXT["models"][language], lines, TEXT["estimate"][language].format(command(name)))


def flags_table(name: str, language: int) -> list[str]:
    """What the engine of the setting in use is started with."""
    instance = rows(name)[0][1]
    lines = [
        [f"`--{item['flag'].replace('_', '-')}`", f"`{plan_report.shown(item['value'])}`", item["origin"]]
        for item in instance["flags"]
    ]
    lines += [[f"`{key}`", f"`{value}`", "environment"] for key, value in instance["environment"].items()]
    return table(TEXT["flags"][language], lines, TEXT["estimate"][language].format(command(name)))


def overview_table(_name: str, language: int) -> list[str]:
    """All of them."""
    lines = []
    for name in NAMES:
        instance = rows(name)[0][1]
        found = instance["assessment"]
        page = f"{name}{'.zh-CN' if language else ''}.md"
        lines.append(
            [
                f"[`{name}`]({page})",
                str(site(name).variables["capacity_plan_hardware"]),
                f"`{instance['model']}`",
                str(found["sessions"][capacity.MIN_CONTEXT] or "–"),
                plan_report.rate(found["decode"]),
                plan_report.duration(found["first_turn"]),
            ]
        )
    return table(TEXT["overview"][language], lines, TEXT["estimate"][language].format("./run plan -i inventories/…"))


TABLES = {
    "flags": flags_table,
    "machines": machines_table,
    "memory": memory_table,
    "models": models_table,
    "overview": overview_table,
    "settings": settings_table,
    "speed": speed_table,
    "times": times_table,
}


def page(path: Path) -> str:
    """A page with its tables as they should be."""
    name, language = path.name.split(".")[0], int(".zh-CN." in path.name)

    def filled(match: re.Match[str]) -> str:
        lines = TABLES[match.group(1)](name, language)
        return "\n".join([f"<!-- table: {match.group(1)} -->", "", *lines, "", "<!-- end -->"])

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", filled, path.read_text(encoding="utf-8"), flags=re.S)


def main() -> int:
    """Entry point."""
    return keep((path, page(path)) for path in sorted((ROOT / "docs" / "inventories").glob("*.md")))


if __name__ == "__main__":
    sys.exit(main())
