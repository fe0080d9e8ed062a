#!/usr/bin/env python3
"""Write docs/models.md and docs/models.zh-CN.md from the catalogue and its schema.

`tools/model_pages.py --check` only says whether something would change. `./run lint` does that.
"""
# ruff: noqa: E501 (a sentence stands on one line in either language)

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ansible.plugins.loader import init_plugin_loader
from generated import keep

ROOT = Path(__file__).resolve().parents[1]
init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.modelhost.serving.plugins.module_utils import capacity, catalog  # noqa: E402 (needs the loader)

#: Hosts for which entries are recommended, as the two languages call them.
HOSTS = {
    "laptop-cpu": ("a laptop, CPU only", "笔记本电脑(仅 CPU)"),
    "dual-xeon": ("two old Xeons (AVX2), 238 GB free", "双路老至强(AVX2),238 GB 可用"),
    "gpu-24": ("one GPU with 24 GB", "一块 24 GB GPU"),
    "gpu-80": ("one GPU with 80 GB", "一块 80 GB GPU"),
    "gpu-4x80": ("four GPUs with 80 GB", "四块 80 GB GPU"),
    "gpu-8x141": ("eight GPUs with 141 GB", "八块 141 GB GPU"),
}
TOOLS = {
    "native": ("native", "原生"),
    "adapted": ("with our parser and template", "使用本项目的解析器和模板"),
    "prompted": ("by a generic prompt", "通用提示词"),
    "none": ("none: chat only", "无:仅聊天"),
}
TEXT = {
    "head": (
        "# The models of the catalogue\n\n[中文](models.zh-CN.md) · [README](../README.md) · [What fits](plan.md)\n\n"
        "Made from [`catalog/models/`](../catalog/models) by `tools/model_pages.py`. An id goes into `model:` of an item of "
        "`vllm_instances`. What a model needs on *your* machine says `./run plan`.",
        "# 目录中的模型\n\n[English](models.md) · [README](../README.zh-CN.md) · [能跑什么](plan.zh-CN.md)\n\n"
        "本页由 `tools/model_pages.py` 根据 [`catalog/models/`](../catalog/models) 生成。把 id 写入 `vllm_instances` 某一项的 "
        "`model:`。某个模型在*你的*机器上需要什么,请运行 `./run plan`。",
    ),
    "choice": ("## A choice for a machine", "## 按机器选择"),
    "choice_head": ("| machine | choice |", "| 机器 | 选择 |"),
    "all": ("## All of them", "## 全部模型"),
    "all_head": (
        "| id | weights | KV cache of 64K | context | tool calls | runs on | licence |",
        "| id | 权重 | 64K 的 KV 缓存 | 上下文 | 工具调用 | 运行于 | 许可证 |",
    ),
    "known": ("## What is known of them", "## 已知情况"),
    "known_text": (
        "Faults, how each claim was checked, and the sources. The texts are those of the catalogue. A revision that stands as "
        "`unverified` is refused until `./run pins --write` has filled it from the hub.",
        "已知问题、每项说法的核实方式以及来源。文字取自目录本身(英文)。标为 `unverified` 的 revision 在 `./run pins --write` "
        "从 hub 填写之前会被拒绝。",
    ),
    "own": ("## A model of your own", "## 你自己的模型"),
    "own_text": (
        "Add an entry of the same form to `vllm_models`, or write it in the place of the id. `id` and `source` are needed. With "
        "`source: {path: …}` the plan reads `config.json` and the size of the weights on the host itself.",
        "把同样格式的条目加入 `vllm_models`,或直接写在 id 的位置。只有 `id` 和 `source` 是必需的。使用 `source: {path: …}` 时,"
        "plan 会在主机上读取 `config.json` 和权重大小。",
    ),
    "own_head": ("| key | type | meaning |", "| 键 | 类型 | 含义(英文) |"),
    "fault": ("Known fault", "已知问题"),
    "checked": ("Checked", "核实"),
    "source": ("Source", "来源"),
    "revision": ("revision", "revision"),
}

EXAMPLE = """```yaml
vllm_models:
  - id: my-model
    source: {path: /data/my-model}
    max_model_len: 131072
    flags: {enable_auto_tool_choice: true, tool_call_parser: hermes}
    capabilities: {tool_calling: native}
vllm_instances:
  - {name: coder, model: my-model}
```"""


def cell(text: Any) -> str:
    """One line that a table can hold."""
    return " ".join(str(text).split()).replace("|", "\\|")


def cache(entry: dict[str, Any]) -> str:
    """KV cache of one session of 64K on one device."""
    if not capacity.known(entry):
        return ""
    blocks = capacity.pool(capacity.layers(entry))
    return f"{blocks.request(capacity.MIN_CONTEXT) / capacity.GIB:.1f} GiB"


def choices(language: int) -> list[str]:
    """The table of machines."""
    lines = [TEXT["choice"][language], "", TEXT["choice_head"][language], "|---|---|"]
    for host, names in HOSTS.items():
        ids = [f"`{name}`" for name, entry in catalog.shipped().items() if host in (entry.get("choice_for") or [])]
        lines.append(f"| {names[language]} | {', '.join(ids)} |")
    return lines


def table(language: int) -> list[str]:
    """One row for each entry."""
    lines = [TEXT["all"][language], "", TEXT["all_head"][language], "|---|---|---|---|---|---|---|"]
    for name, entry in catalog.shipped().items():
        runs = entry.get("runs_on") or ["cpu", "cuda"]
        limit = entry.get("minimum_cpu") if "cpu" in runs else None
        tools = TOOLS[entry.get("capabilities", {}).get("tool_calling", "none")][language]
        cells = [
            f"`{name}`",
            f"{entry['weights_gib']:g} GiB",
            cache(entry),
            capacity.thousands(entry["max_model_len"]),
            tools,
            ", ".join(runs) + (f" ({limit})" if limit else ""),
            entry["licence"],
        ]
        lines.append("| " + " | ".join(cell(item) for item in cells) + " |")
    return lines


def known(language: int) -> list[str]:
    """What stands in the files beside the figures."""
    lines = [TEXT["known"][language], "", TEXT["known_text"][language]]
    for name, entry in catalog.shipped().items():
        source = entry["source"]
        where = f"[{source['repo']}](https://huggingface.co/{source['repo']})" if "repo" in source else ""
        lines += ["", f"### {name}", "", cell(entry["title"]) + (f" · {where}" if where else "")]
        if source.get("revision"):
            lines.append(f"· {TEXT['revision'][language]} `{source['revision']}`")
        lines.append("")
        lines += [
            f"- **{TEXT['fault'][language]}**: {cell(fault['what'])} ({cell(fault['source'])})"
            for fault in entry.get("faults") or []
        ]
        checked = entry.get("checked") or {}
        lines += [f"- {TEXT['checked'][language]}, {key}: {cell(text)}" for key, text in checked.items()]
        for key, urls in (entry.get("sources") or {}).items():
            lines += [
                f"- {TEXT['source'][language]}, {key}: {url}"
                for url in (urls if isinstance(urls, list) else [urls])
                if url
            ]
    return lines


def kind(node: dict[str, Any]) -> str:
    """The type of a property of the schema."""
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    found = node.get("type", "")
    return ", ".join(found) if isinstance(found, list) else str(found)


def own(language: int) -> list[str]:
    """The keys of an entry, from the schema."""
    schema = json.loads((ROOT / "catalog" / "model.schema.json").read_text(encoding="utf-8"))
    lines = [TEXT["own"][language], "", TEXT["own_text"][language], "", EXAMPLE, ""]
    lines += [TEXT["own_head"][language], "|---|---|---|"]
    for name, node in schema["properties"].items():
        lines.append(f"| `{name}` | {cell(kind(node))} | {cell(node.get('description', ''))} |")
        for inner, below in (node.get("properties") or {}).items():
            lines.append(f"| `{name}.{inner}` | {cell(kind(below))} | {cell(below.get('description', ''))} |")
    return lines


def page(language: int) -> str:
    """The whole page."""
    parts = [[TEXT["head"][language]], choices(language), table(language), own(language), known(language)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def main() -> int:
    """Entry point."""
    return keep((ROOT / "docs" / name, page(at)) for at, name in enumerate(("models.md", "models.zh-CN.md")))


if __name__ == "__main__":
    sys.exit(main())
