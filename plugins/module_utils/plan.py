# MIT licence (see LICENSE)
"""What each host can run, as data: playbooks/plan.yml prints it and writes it as JSON and HTML (plan_report.py)."""

from __future__ import annotations

import difflib
import functools
import json
import re
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import (
    accelerator,
    capacity,
    catalog,
    hardware,
    problems,
    runtime,
    vllm_flags,
    vllm_validation,
)
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]

#: Slower than this, nobody waits for an answer.
USABLE_DECODE = 5.0
#: Claude Code gives up on a stream that is silent for this many seconds (CLAUDE_STREAM_IDLE_TIMEOUT_MS).
PATIENCE = 300
#: What a model's tool calls rest on, the best first.
TOOL_CALLING = {"native": 0, "adapted": 1, "prompted": 2, "none": 3}
#: What is kept of a host's facts for planning elsewhere: its hardware, and nobody's accounts, addresses or programs.
SAVED = (
    "architecture", "assumed", "container", "cpu_cores", "cpu_count", "cpu_flags", "cpu_max_mhz", "cpu_model",
    "cpu_quota", "cpu_sockets", "described", "disk", "distribution", "distribution_name", "distribution_version",
    "glibc", "gpus", "kernel", "memory", "memory_devices", "numa", "nvidia_devices", "nvidia_driver", "nvswitch",
    "paths", "virtualization", "wsl",
)  # fmt: skip
#: The role vllm's own default.
MODELS_DIR = "/var/lib/modelhost/models"
#: In place of a value that is nobody's business.
HIDDEN = "(not shown)"
#: The problem of a host that runs nothing.
EMPTY = ("vllm_instances", None)

#: Weights that somebody has rounded to so few bits that it costs quality; scores are those of the original.
#: Licences that nobody has to be warned of.
FREE = ("Apache-2.0", "MIT")
LOSSY = ("awq", "gptq", "int4", "bitsandbytes")
#: What to expect of them.
EXPECT = {
    "prompted": "tool calls by a generic prompt: they come as far as the model follows it",
    "none": "chat only: no tool calls, so Claude Code cannot act with it",
}


# --- facts -------------------------------------------------------------------------------------------------------


def saved(facts: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a host's facts."""
    kept = {name: facts[name] for name in SAVED if name in facts}
    kept["gpus"] = [{name: gpu[name] for name in gpu if name != "uuid"} for gpu in facts.get("gpus") or []]
    return kept


def facts_of(wish: Any) -> dict[str, Any]:
    """Facts for a host's capacity_plan_hardware: saved ones, the file that holds them, or a description."""
    where = "the facts in capacity_plan_hardware"
    if isinstance(wish, str) and wish.strip().endswith(".json"):
        where = wish.strip()
        try:
            wish = json.loads(Path(where).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise hardware.DescriptionError(f"the facts in {where} cannot be read: {error}") from None
        if not isinstance(wish, dict):
            wish = {}
    elif not isinstance(wish, dict) or "memory" not in wish:
        return hardware.describe(wish)
    try:
        facts = saved(wish)
        machine = hardware.machine(facts, free=True)
        hardware_lines(facts, machine)
        for device in machine["devices"]:
            float(device["budget"] + device["bandwidth"])
    except Exception as error:
        # Whatever a file of this name may hold: the message is all that anybody can use.
        raise hardware.DescriptionError(
            f"{where}: these are not facts that an earlier plan saved ({type(error).__name__}: {error})"
        ) from None
    return facts


# --- models ------------------------------------------------------------------------------------------------------


def model_row(machine: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """One model on one machine."""
    found = capacity.assess(machine, entry)
    capabilities = entry.get("capabilities") or {}
    score = entry.get("agentic_coding") or {}
    row = {
        **found,
        "title": entry.get("title") or entry["id"],
        "parameters": entry.get("parameters"),
        "weights_gib": entry.get("weights_gib"),
        "quantization": entry.get("quantization"),
        "licence": entry.get("licence"),
        "tool_calling": capabilities.get("tool_calling", "none"),
        "chat_only": bool(entry.get("chat_only")),
        "score": score.get("score"),
        "benchmark": score.get("benchmark"),
        "revision": (entry.get("source") or {}).get("revision"),
        "notes": [],
    }
    if row["tool_calling"] in EXPECT:
        row["notes"].append(EXPECT[row["tool_calling"]])
    if row["revision"] == "unverified":
        row["notes"].append("its revision is not pinned yet: ./run pins fills it")
    native = entry.get("native_compute_capability")
    if native and machine["kind"] == "cuda" and 0 < machine["compute_capability"] < native:
        row["notes"].append(
            f"no native {str(entry.get('quantization') or 'format').upper()} below compute capability {native}: "
            "weights are kept in it and computed in BF16, which saves memory but no time on prompts"
        )
    if found["fits"] and (found["first_turn"] or 0) > PATIENCE:
        row["notes"].append(
            f"the first turn takes longer than the {PATIENCE} s of silence that Claude Code waits: "
            "claude_code_profile: lean, or a faster host"
        )
    if found["fits"] and not row["sessions"][capacity.MIN_CONTEXT]:
        row["notes"].append("less than 64K of context: Claude Code would compact all the time")
    return row


def smaller_sibling(row: dict[str, Any], rows: list[dict[str, Any]], developers: int) -> dict[str, Any] | None:
    """What fits in the place of a model: another checkpoint of it, else the best of its makers' smaller models."""

    def makers(item: dict[str, Any]) -> str:
        # qwen2.5-…, qwen3-… → qwen
        return re.split(r"[^a-z]", item["model"])[0]

    def size(item: dict[str, Any]) -> float:
        return float(item["weights_gib"] or 0)

    fitting = [item for item in rows if item["fits"] and makers(item) == makers(row)]
    same = [item for item in fitting if item["parameters"] == row["parameters"]]
    if same:
        # Of models with as many parameters, the one that is called most alike.
        return max(same, key=lambda item: difflib.SequenceMatcher(None, item["model"], row["model"]).ratio())
    return recommended([item for item in fitting if size(item) < size(row)], developers)


def recommended(rows: list[dict[str, Any]], developers: int) -> dict[str, Any] | None:
    """The row to take: real tool calls, enough sessions, fast enough, then the order of catalog/preference.yml."""

    def rank(row: dict[str, Any]) -> tuple[Any, ...]:
        enough = min(row["sessions"][capacity.MIN_CONTEXT], developers)
        usable = (row["decode"] or 0) >= USABLE_DECODE and (row["first_turn"] or 1e9) <= PATIENCE
        return (
            -TOOL_CALLING[row["tool_calling"]] if row["tool_calling"] in TOOL_CALLING else -9,
            usable,
            # Where nothing is fast, the fastest.
            0 if usable else -(row["first_turn"] or 1e9),
            enough >= min(developers, 2),
            -catalog.preference().get(row["model"], 999),
            row["quantization"] not in LOSSY,
            enough,
            row["decode"] or 0,
        )

    fitting = [
        row
        for row in rows
        if row["fits"]
        and not row["chat_only"]
        and row["tool_calling"] in ("native", "adapted")
        and row["sessions"][capacity.MIN_CONTEXT]
    ]
    return max(fitting, key=rank, default=None)


def why_recommended(row: dict[str, Any], developers: int) -> str:
    """A sentence for the choice, that names what is weak about it too."""
    sessions = row["sessions"][capacity.MIN_CONTEXT]
    words = [f"{row['title']}: {sessions} session{'s' if sessions != 1 else ''} of 64K"]
    if row["score"]:
        words.append(f"{row['score']:g} on {row['benchmark']}, as its makers publish it")
    if row["licence"] not in FREE:
        words.append(f"licence: {row['licence']}")
    if row["decode"]:
        words.append(
            f"about {row['decode']:.0f} tokens/s for one session"
            if row["decode"] >= 2
            else f"about {row['decode']:.1f} tokens/s for one session"
        )
    if sessions < developers:
        words.append(
            f"fewer sessions than the {developers} developers: the others wait, or their prefix is computed again"
        )
    if row["decode"] and row["decode"] < USABLE_DECODE:
        words.append("slow: for jobs that run while nobody waits")
    if row["first_turn"] and row["first_turn"] > PATIENCE:
        words.append(
            f"its first turn takes about {row['first_turn'] / 60:.0f} minutes, longer than Claude Code waits: set "
            "claude_code_profile: lean"
        )
    return "; ".join(words)


def host_plan(
    host: str,
    facts: dict[str, Any],
    variables: dict[str, Any],
    developers: int,
    versions: dict[str, str],
    groups: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Everything that is said of one host. versions: vLLM's version for cpu and cuda. groups: those of the inventory.

    An inventory may be unfinished or broken: problems then stand in the place of flags.
    """
    groups = groups or {}
    machine = hardware.of_variables(facts, variables, free=True)
    # As `auto` will turn out here.
    judged = {**variables, "vllm_variant": machine["kind"]}
    known, _problems = vllm_validation.own_entries(host, variables.get("vllm_models"), versions[machine["kind"]])
    entries = {name: catalog.on_host(entry, facts.get("paths")) for name, entry in known.items()}
    found, asked = vllm_validation.host_problems(host, judged, groups, versions)
    rows = []
    if machine["devices"]:
        rows = [
            model_row(machine, entry) for entry in entries.values() if not (entry.get("source") or {}).get("builder")
        ]
    room = disk_free(facts, str(variables.get("vllm_models_dir") or MODELS_DIR))
    storable = []
    for row in rows:
        if row["fits"] and room is not None and row["disk_gib"] * capacity.GIB > room:
            row["notes"].append(f"too little disk for its weights: {capacity.gib(room)} are free")
        else:
            storable.append(row)
    best = recommended(storable, developers)
    for row in rows:
        other = None if row["fits"] else smaller_sibling(row, rows, developers)
        if other:
            row["why"] = [*row["why"], f"→ {other['model']} ({other['weights_gib']:.1f} GiB) fits"]
    return {
        "host": host,
        "described": facts.get("described") or False,
        "assumed": facts.get("assumed") or [],
        "system": str(facts.get("distribution_name") or ""),
        "hardware": hardware_lines(facts, machine),
        "kind": machine["kind"],
        "notes": [*machine["notes"], *hints(facts, machine)],
        "problems": [
            told(item)
            for item in found
            # Nobody has to know what to run before looking at what fits.
            if not item["variable"].startswith("vllm_instances[") and (item["variable"], item["value"]) != EMPTY
        ],
        "models": sorted(
            rows,
            # Scores of different benchmarks say nothing of each other, so the order is the recommendation's.
            key=lambda row: (
                not row["fits"],
                row["chat_only"],
                catalog.preference().get(row["model"], 999),
                row["model"],
            ),
        ),
        "recommended": best
        and {
            "model": best["model"],
            "why": why_recommended(best, developers),
            "instance": suggestion(best, entries[best["model"]]),
        },
        "instances": instance_plans(facts, variables, entries, machine, versions[machine["kind"]], found, asked),
    }


def told(item: dict[str, Any]) -> dict[str, Any]:
    """A problem with its value as text, without what is secret in it."""
    return {**item, "value": None if item["value"] is None else problems.shown(item["value"])}


def hints(facts: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """What a look at the hardware says beside its figures."""
    found = []
    if machine["kind"] == "cuda" and not machine["devices"] and not facts.get("gpus"):
        found.append(
            "no GPU could be listed, so nothing can be planned for one: does nvidia-smi work on this host? "
            "vllm_variant: cpu plans for its processors"
        )
    seen = facts.get("nvidia_devices") or 0
    if machine["kind"] == "cpu" and seen:
        found.append(
            f"{seen} NVIDIA device{'s' if seen != 1 else ''} without a loaded driver: planned for the CPU; install "
            "the driver and plan again"
        )
    return found


def disk_free(facts: dict[str, Any], folder: str) -> float | None:
    """Bytes that are free for a folder, by the longest known path above it."""
    spaces = facts.get("disk") or {}
    above = [path for path in spaces if folder == path or folder.startswith(path.rstrip("/") + "/")]
    return float(spaces[max(above, key=len)]["free"]) if above else None


def suggestion(row: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The item of vllm_instances for a row of the table; what is left out is the default anyway."""
    return {"name": "coder", "model": entry["id"]}


def hardware_lines(facts: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """The hardware found, one line for each kind of part."""
    memory = facts.get("memory") or {}
    lines = []
    for gpu in {(gpu["name"], gpu["memory_total"]): gpu for gpu in facts.get("gpus") or []}.values():
        same = [
            item for item in facts["gpus"] if (item["name"], item["memory_total"]) == (gpu["name"], gpu["memory_total"])
        ]
        free = sum(item.get("memory_free") or 0 for item in same)
        size = "memory of unknown size" if gpu["memory_total"] is None else f"{capacity.gib(gpu['memory_total'])} each"
        lines.append(
            f"{len(same)} × {gpu['name']}, {size}"
            + (f", {capacity.gib(free)} free together" if free else "")
            + (f", compute capability {gpu['compute_capability']}" if gpu.get("compute_capability") else "")
            + (f", driver {facts['nvidia_driver']}" if facts.get("nvidia_driver") else "")
        )
    flags = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in (facts.get("cpu_flags") or [])]
    if not flags:
        flags = ["no AVX2"] if facts.get("architecture") in (None, "x86_64") else [str(facts["architecture"])]
    sockets = facts.get("cpu_sockets") or 1
    lines.append(
        f"{facts.get('cpu_model') or 'unnamed CPU'}, {sockets} socket{'s' if sockets != 1 else ''}, "
        f"{facts.get('cpu_cores') or facts.get('cpu_count')} cores, {', '.join(flags)}"
    )
    nodes = [node for node in facts.get("numa") or [] if node["cpus"] and node["memory_total"]]
    lines.append(
        f"{capacity.gib(memory.get('total', 0))} memory, {capacity.gib(memory.get('available', 0))} free"
        + (f", in {len(nodes)} NUMA nodes" if len(nodes) > 1 else "")
    )
    disks = {space["mount"]: space["free"] for space in (facts.get("disk") or {}).values()}
    if disks:
        lines.append("disk: " + ", ".join(f"{capacity.gib(free)} free on {mount}" for mount, free in disks.items()))
    where = [
        text
        for text, is_it in (
            ("WSL2", facts.get("wsl")),
            (f"container ({facts.get('container')})", facts.get("container")),
            (f"virtual machine ({facts.get('virtualization')})", facts.get("virtualization") not in (None, "", "none")),
            ("NVSwitch", facts.get("nvswitch")),
        )
        if is_it
    ]
    if where:
        lines.append(", ".join(where))
    for device in machine["devices"][:1]:
        unit = {"cuda": "GPU", "cpu": "NUMA node" if len(machine["devices"]) > 1 else "machine"}[machine["kind"]]
        eight = f", {device['fp8_flops'] / 1e12:.0f} in FP8" if device.get("fp8_flops") else ""
        lines.append(
            f"reckoned with, for each {unit}: {capacity.gib(max(device['budget'], 0))} for engines"
            + (f", {device['bandwidth'] / 1e9:.0f} GB/s" if device["bandwidth"] else "")
            + (f", {device['flops'] / 1e12:.3g} TFLOPS in BF16{eight}" if device["flops"] else "")
        )
    return lines


@functools.cache
def accelerator_flags() -> dict[str, dict[str, Any]]:
    """Flags that the role vllm gives to every engine of a kind."""
    found = read_yaml(ROOT / "roles/vllm/vars/main.yml")
    flags: dict[str, dict[str, Any]] = found["__vllm_accelerator_flags"]
    return flags


def instance_plans(
    facts: dict[str, Any],
    variables: dict[str, Any],
    entries: dict[str, Any],
    free: dict[str, Any],
    version: str,
    wrong: list[dict[str, Any]],
    asked: list[vllm_validation.Asked],
) -> list[dict[str, Any]]:
    """What the inventory asks of the host, with each effective flag and where it comes from.

    wrong, asked: what validation says against the instances, and those that are sound but for that.
    """
    kind = free["kind"]
    # As the role vllm reckons: with what the machine has. What is free would change from run to run.
    machine = hardware.of_variables(facts, {**variables, "vllm_variant": kind})
    bad = {item["variable"] for item in wrong}
    flags = mapping(variables, "vllm_flags")
    effective = vllm_flags.effective_instances(
        [item.instance for item in asked],
        entries,
        version,
        vllm_flags={name: value for name, value in flags.items() if f"vllm_flags.{name}" not in bad},
        accelerator_flags={**accelerator_flags()[kind], **mapping(variables, "vllm_accelerator_flags")},
        environment=mapping(variables, "vllm_environment"),
        # Wired from this function; a described machine has no facts that wiring could know.
        release_environment=accelerator.environment(facts, {**variables, "vllm_variant": kind}),
        runtimes=runtime.of_engines(facts, variables),
        models_dir=str(variables.get("vllm_models_dir") or MODELS_DIR),
        bind_address=str(variables.get("vllm_bind_address") or "127.0.0.1"),
        machine=machine,
    )
    sound = {item.where: result for item, result in zip(asked, effective, strict=True)}
    found = []
    wished = variables.get("vllm_instances")
    for at, instance in enumerate(wished if isinstance(wished, list) else []):
        where = f"vllm_instances[{at}]"
        named = instance if isinstance(instance, dict) else {}
        model = named.get("model")
        item: dict[str, Any] = {
            "name": str(named.get("name") or where),
            "model": str(model.get("id") if isinstance(model, dict) else model or "no model"),
            "problems": [told(item) for item in wrong if item["variable"].split(".")[0] == where],
            "assessment": {},
            "flags": [],
            "environment": {},
            "command": [],
        }
        found.append(item)
        if where in sound:
            item.update(worked_out(sound[where]))
    crowd = crowded(machine, free, [result["capacity"] for result in effective])
    if crowd:
        fix = "stop what uses it, or set vllm_memory_reserved_gib, a smaller model or fewer instances"
        found[0]["problems"].append(problems.problem("", "memory", None, crowd, fix, "warning"))
    return found


def worked_out(result: dict[str, Any]) -> dict[str, Any]:
    """An effective instance as the plan shows it."""
    named = [*result["flags"].items(), *result["environment"].items()]
    secrets = {vllm_flags.text(value) for name, value in named if problems.is_secret(name)}
    return {
        "assessment": result["capacity"],
        "flags": [
            {"flag": name, "value": HIDDEN if problems.is_secret(name) else value, "origin": result["origins"][name]}
            for name, value in result["flags"].items()
        ],
        "environment": {
            name: HIDDEN if problems.is_secret(name) else value for name, value in result["environment"].items()
        },
        "command": ["vllm", "serve", *(HIDDEN if text in secrets else text for text in result["argv"])],
    }


def mapping(variables: dict[str, Any], name: str) -> dict[str, Any]:
    """A variable that is a mapping; nothing where it is something else, which validation says."""
    value = variables.get(name)
    return value if isinstance(value, dict) else {}


def crowded(machine: dict[str, Any], free: dict[str, Any], assessments: list[dict[str, Any]]) -> str:
    """What is lacking where others use too much of the machine now for what the engines will take, or nothing."""
    for device, now in zip(machine["devices"], free["devices"], strict=True):
        need = 0.0
        for found in assessments:
            if not found.get("fits") or device["index"] not in found["devices"]:
                continue
            if machine["kind"] == "cuda":
                need += found["gpu_memory_utilization"] * device["total"]
            else:
                need += found["weights"] + found["overhead"] + found["kv_cache_memory_bytes"]
        if need > now["budget"] + capacity.GIB / 10:
            return (
                f"the engines will take {capacity.gib(need)} of {device['name']}, and {capacity.gib(now['budget'])} "
                "are left by what runs there now"
            )
    return ""


def plan(hosts: list[dict[str, Any]], developers: int) -> dict[str, Any]:
    """All hosts."""
    return {"developers": developers, "contexts": list(capacity.CONTEXTS), "hosts": hosts}
