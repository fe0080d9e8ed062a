# MIT licence (see LICENSE)
"""Machines: from a host's facts, or from somebody's description, to what capacity.py reckons with.

Facts are what the module host_probe returns. A description ("4× A100 80 GB, 512 GB", or a mapping) becomes facts of
the same form, so that everything after it is the same for a machine that nobody has yet.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import capacity
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
GIB = capacity.GIB

#: Bytes/s that one core can read at most, whatever the channels hold: what bounds a small virtual machine. Cores with
#: AVX512-BF16 (Zen 4, Sapphire Rapids and later) read more: 37 GB/s measured through vLLM on two of them.
CORE_BANDWIDTH, MODERN_CORE_BANDWIDTH = 12e9, 30e9
#: CPUs that the table does not know, old and with AVX512-BF16: memory channels of a socket, MT/s, GHz.
UNKNOWN_CPU = {"memory_channels": 2, "memory_mts": 2666, "base_ghz": 2.5}
UNKNOWN_MODERN_CPU = {"memory_channels": 8, "memory_mts": 4800, "base_ghz": 3.0}
#: A share of memory, and GiB at least, that the system, a gateway and its other services keep.
RESERVED_SHARE, RESERVED_GIB = 0.04, 3.0

WORDS = {"single": 1, "one": 1, "dual": 2, "two": 2, "twin": 2, "quad": 4, "four": 4, "eight": 8}
EXAMPLES = (
    "`4× H20`, `4× A100 80 GB, 512 GB`, `dual E5-2680 v4, 363 GB of which 238 GB are free`, `32 GB laptop`, "
    "`RTX 4090, 64 GB`"
)


class DescriptionError(ValueError):
    """A description that cannot be understood; the message says which part and how to write it."""


@functools.cache
def table() -> dict[str, Any]:
    """catalog/hardware.yml: figures of GPUs and CPUs, each with its source."""
    data = read_yaml(ROOT / "catalog" / "hardware.yml")
    assert isinstance(data, dict)
    return data


def plain(name: str) -> str:
    """`Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz` → `Intel Xeon E5-2680 v4`."""
    name = re.sub(r"\((?:R|TM|C)\)|@.*|\bCPU\b|\bProcessor\b|\b\d+-Core\b", " ", name, flags=re.I)
    return " ".join(name.split())


def gpu_row(name: str) -> dict[str, Any]:
    """The table's row for a GPU as nvidia-smi names it; empty when there is none."""
    for row in table()["gpus"]:
        if re.search(row["match"], name, re.I):
            return dict(row)
    return {}


def cpu_row(name: str) -> dict[str, Any]:
    """The table's row for a CPU as /proc/cpuinfo names it; empty when there is none."""
    for row in table()["cpus"]:
        if re.search(row["match"], name, re.I) or re.search(row["match"], plain(name), re.I):
            return dict(row)
    return {}


# --- from facts --------------------------------------------------------------------------------------------------


def reserved(total: float, wish_gib: float = 0) -> float:
    """Bytes that are not for engines: what somebody set, or a share for the system."""
    return wish_gib * GIB if wish_gib else max(RESERVED_GIB * GIB, RESERVED_SHARE * total)


def machine(
    facts: dict[str, Any],
    variant: str = "auto",
    reserved_gib: float = 0,
    free: bool = False,
    reserved_cores: Any = "auto",
) -> dict[str, Any]:
    """What capacity.assess() takes.

    variant: auto, cpu or cuda. reserved_gib: memory kept for others; 0 works it out. free: count what is free now
    (and what our own engines hold) rather than what the machine has. reserved_cores: on which engines do not compute;
    auto works it out.
    """
    gpus = facts.get("gpus") or []
    if variant == "auto":
        variant = "cuda" if gpus or facts.get("nvidia_driver") else "cpu"
    result: dict[str, Any] = {
        "kind": variant,
        "architecture": facts.get("architecture") or "x86_64",
        "isa": facts.get("cpu_flags") or [],
        "memory": facts.get("memory") or {},
        "compute_capability": 0.0,
        "reserved_cores": cores_reserved(reserved_cores),
        "cpu_quota": float(facts.get("cpu_quota") or 0),
        "paths": facts.get("paths") or {},
        # NUMA nodes with memory, whether or not they have processors.
        "memory_nodes": len([node for node in facts.get("numa") or [] if node["memory_total"]]) or 1,
        "notes": [],
    }
    if variant == "cuda":
        known = [gpu for gpu in gpus if gpu_memory(gpu, facts) is not None]
        result["devices"] = [gpu_device(gpu, facts, free) for gpu in known]
        unknown = dict.fromkeys(gpu["name"] for gpu in gpus if gpu not in known)
        result["notes"] += [f"{name} tells no size of its memory: nothing is reckoned for it" for name in unknown]
        capabilities = [float(gpu.get("compute_capability") or 0) for gpu in gpus]
        result["compute_capability"] = min(capabilities, default=0.0)
    else:
        result["devices"] = cpu_devices(facts, reserved_gib, free)
    for device in result["devices"]:
        result["notes"] += [note for note in device["notes"] if note not in result["notes"]]
    return result


def cores_reserved(wish: Any) -> int | None:
    """accelerator_cpu_reserved_cores as a number, or None for auto."""
    if str(wish) == "auto":
        return None
    if not str(wish).isdigit():
        raise ValueError(f"accelerator_cpu_reserved_cores is {wish!r}: set a number of cores, or auto")
    return int(wish)


def gpu_memory(gpu: dict[str, Any], facts: dict[str, Any]) -> float | None:
    """Bytes of a GPU's memory. One that shares the CPU's memory tells none: then what the table knows of it, and no
    more than the computer has; None where nobody knows."""
    if gpu["memory_total"] is not None:
        return float(gpu["memory_total"])
    known = gpu_row(gpu["name"]).get("memory_gib")
    whole = (facts.get("memory") or {}).get("total") or 0
    return min(known * GIB, whole) if known and whole else None


def gpu_device(gpu: dict[str, Any], facts: dict[str, Any], free: bool) -> dict[str, Any]:
    """One GPU."""
    row = gpu_row(gpu["name"])
    total = (gpu_memory(gpu, facts) or 0) * capacity.GPU_VISIBLE
    budget = total * capacity.GPU_MEMORY_UTILIZATION
    if free:
        left = gpu.get("memory_free", total)
        left = (facts.get("memory") or {}).get("available", total) if left is None else left
        budget = min(budget, left + gpu.get("memory_engines", 0))
    notes = [] if row else [f"no figures for {gpu['name']} in catalog/hardware.yml: speeds cannot be estimated"]
    return {
        "index": gpu["index"],
        "name": gpu["name"],
        "total": total,
        "budget": budget,
        "bandwidth": row.get("bandwidth_gbs", 0) * 1e9,
        "flops": (row.get("bf16_tflops") or 0) * 1e12,
        "fp8_flops": (row.get("fp8_tflops") or 0) * 1e12 or None,
        "notes": notes,
    }


def isa_flops(flags: list[str], kind: str) -> float:
    """Operations that one core does in a cycle by its best instructions: in BF16 in `dense` or `experts` layers, or in
    dense ones in `float32`."""
    known = table()["isa_flops_per_cycle"]
    # Not all were measured; of the others the kernels reach about two fifths.
    found = [row.get(kind) or 0.4 * row["flops"] for name, row in known.items() if name in flags]
    return float(max(found, default=0))


def within_quota(cores: list[int], quota: float) -> list[int]:
    """How many cores of each node a limit of CPU time keeps busy: more threads than that wait for each other.

    quota: CPUs' worth of time, 0 for no limit.
    """
    whole = sum(cores)
    if not quota or quota >= whole:
        return cores
    return [max(1, math.ceil(count * quota / whole)) for count in cores]


def cpu_devices(facts: dict[str, Any], reserved_gib: float, free: bool) -> list[dict[str, Any]]:
    """The NUMA nodes that have processors and memory."""
    memory = facts["memory"]
    nodes = [node for node in facts.get("numa") or [] if node["cpus"] and node["memory_total"]]
    if not nodes:
        cores = list(range(int(facts.get("cpu_cores") or facts.get("cpu_count") or 1)))
        nodes = [
            {
                "node": 0,
                "cpus": cores,
                "cores": [[core] for core in cores],
                "memory_total": memory["total"],
                "memory_free": memory["available"],
            }
        ]
    row = cpu_row(facts.get("cpu_model") or "")
    sockets = max(1, int(facts.get("cpu_sockets") or row.get("sockets") or 1))
    measured = facts.get("memory_devices") or {}
    isa = facts.get("cpu_flags") or row.get("isa") or []
    modern = "avx512_bf16" in isa
    guess = UNKNOWN_MODERN_CPU if modern else UNKNOWN_CPU
    channels = (measured.get("channels") or 0) / sockets or row.get("memory_channels") or guess["memory_channels"]
    mts = measured.get("mts") or row.get("memory_mts") or guess["memory_mts"]
    ghz = row.get("all_core_ghz") or row.get("base_ghz") or (facts.get("cpu_max_mhz") or 0) / 1000 or guess["base_ghz"]
    notes = []
    if not row:
        notes.append(
            f"no figures for {facts.get('cpu_model') or 'this CPU'} in catalog/hardware.yml: speeds rest on "
            f"{channels:g} memory channels at {mts} MT/s and {ghz:g} GHz"
        )
    keep = reserved(memory["total"], reserved_gib)
    node_cores = [node.get("cores") or [[cpu] for cpu in node["cpus"]] for node in nodes]
    allowed = within_quota([len(cores) for cores in node_cores], float(facts.get("cpu_quota") or 0))
    devices = []
    for node, all_cores, count in zip(nodes, node_cores, allowed, strict=True):
        cores = all_cores[:count]
        total = node["memory_total"]
        budget = total - keep / len(nodes)
        if free:
            ours = (memory.get("engines") or 0) / len(nodes)
            available = node.get("memory_free", total)
            if len(nodes) == 1 and memory.get("available"):
                available = min(available, memory["available"])
            budget = min(budget, available + ours - capacity.CPU_RESERVE_GIB * GIB / len(nodes))
        share = sockets * channels * mts * 8e6 / len(nodes)
        devices.append(
            {
                "index": node["node"],
                "name": (plain(facts.get("cpu_model") or "") or "this CPU")
                + (f", NUMA node {node['node']}" if len(nodes) > 1 else ""),
                "total": total,
                "budget": budget,
                "bandwidth": min(share, len(cores) * (MODERN_CORE_BANDWIDTH if modern else CORE_BANDWIDTH)),
                "flops": len(cores) * ghz * 1e9 * isa_flops(isa, "dense"),
                "expert_flops": len(cores) * ghz * 1e9 * isa_flops(isa, "experts"),
                "float32_flops": len(cores) * ghz * 1e9 * isa_flops(isa, "float32"),
                "cores": cores,
                "notes": notes,
            }
        )
    return devices


# --- from a description ------------------------------------------------------------------------------------------


def describe(text: Any) -> dict[str, Any]:
    """Facts of a machine that somebody describes.

    text: words such as `dual E5-2680 v4, 363 GB of which 238 GB are free`, or a mapping with any of cpu, sockets,
    cores, memory_gib, memory_free_gib, gpus (a list of {name, count, memory_gib}), disk_free_gib.
    """
    if isinstance(text, dict):
        return described_mapping(text)
    if not isinstance(text, str) or not text.strip():
        raise DescriptionError(f"a description is text or a mapping, such as {EXAMPLES}")
    wish: dict[str, Any] = {"gpus": [], "assumed": []}
    for part in re.split(r"[,;]|\s\+\s|\bwith\b|\band\b", text):
        if part.strip():
            read_part(part.strip(), wish)
    if not (wish["gpus"] or wish.get("cpu") or wish.get("memory")):
        raise DescriptionError(f"{text!r} names neither a GPU nor a CPU nor an amount of memory; write {EXAMPLES}")
    return facts_of(wish, text)


AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(T|G)(?:i?B)?\b", re.I)


def amount(match: re.Match[str]) -> float:
    """Bytes of `363 GB`; people mean powers of two when they speak of memory."""
    return float(match.group(1)) * GIB * (1024 if match.group(2).upper() == "T" else 1)


def count_of(part: str) -> tuple[int, str]:
    """`4× H20` → 4 and `H20`; `dual E5-2680 v4` → 2 and the rest."""
    match = re.match(r"(\d+)\s*[x×*]\s*(.+)", part, re.I) or re.match(r"(\d{1,2})\s+([a-z].*)", part, re.I)
    if match and not AMOUNT.match(part):
        return int(match.group(1)), match.group(2)
    word, _space, rest = part.partition(" ")
    if word.lower().rstrip("-") in WORDS and rest:
        return WORDS[word.lower().rstrip("-")], rest
    return 1, part


def words(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def gpu_names(row: dict[str, Any]) -> set[str]:
    """What people call a GPU: `GeForce RTX 4090` → rtx 4090, 4090; `A100 80 GB PCIe` → a100 pcie, a100."""
    title = row["title"].replace("GeForce ", "")
    others = re.findall(r"\((.*?)\)", title)
    full = " ".join(re.sub(r"\(.*?\)|\b\d+ GB\b", " ", title).split())
    short = re.sub(r"\s+(SXM|PCIe|NVL|Max-Q|Blackwell)\b", "", full)
    return {words(name) for name in (full, short, re.sub(r"^RTX (?=\d{4})", "", short), *others)}


def gpu_rows_named(text: str) -> list[dict[str, Any]]:
    """Rows of GPUs that a text names, by its longest name; the usual form factor first."""
    original, text = text, words(text)
    found = []
    for row in table()["gpus"]:
        fitting = [len(name) for name in gpu_names(row) if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", text)]
        # nvidia-smi's own name says more.
        exact = re.search(row["match"], original, re.I)
        fitting += [len(words(exact.group()))] if exact else []
        if fitting:
            found.append((max(fitting), row))
    longest = max((length for length, _row in found), default=0)
    rows = [row for length, row in found if length == longest]
    return sorted(rows, key=lambda row: bool(re.search(r"PCIe|NVL|Max-Q", row["title"])))


def read_part(part: str, wish: dict[str, Any]) -> None:
    """One part of a description into the wish, or an error that names it."""
    amounts = [(match, amount(match)) for match in AMOUNT.finditer(part)]
    count, rest = count_of(part)
    rows = gpu_rows_named(rest)
    if rows:
        # `8× H200 2 TB` speaks of the host.
        largest = 2 * max(float(row["memory_gib"]) for row in rows)
        for _match, value in amounts:
            if value / GIB > largest:
                wish["memory"] = value
        sizes = [value / GIB for _match, value in amounts if value / GIB <= largest]
        if sizes:
            fitting = [row for row in rows if abs(row["memory_gib"] - sizes[0]) <= 0.1 * sizes[0]]
            if not fitting:
                known = ", ".join(sorted({f"{row['memory_gib']:g} GB" for row in rows}))
                raise DescriptionError(f"{part!r}: this GPU has {known}, not {sizes[0]:g} GB")
            rows = fitting
        elif len({row["memory_gib"] for row in rows}) > 1:
            rows = sorted(rows, key=lambda row: float(row["memory_gib"]))
            wish["assumed"].append(f"{rest.strip()} taken as {rows[0]['title']}; name its memory if it has more")
        wish["gpus"].append((count, rows[0]))
        return
    if re.search(r"\b(gpus?|nvidia|rtx|geforce|tesla)\b", rest, re.I):
        raise DescriptionError(f"{part!r}: which GPU? Write its name as in {EXAMPLES}")
    rest = re.sub(r"\bE([357])[ -]?(\d{4})", r"E\1-\2", rest, flags=re.I)
    # Without amounts, or `32 GB` would be looked for among names.
    row = cpu_row(AMOUNT.sub(" ", rest))
    named = bool(row) or re.search(r"\b(xeon|epyc|ryzen|core|i[3579]|threadripper)\b", rest, re.I)
    cores = re.search(r"(\d+)[\s-]*cores?\b", part, re.I)
    if cores:
        wish["cores"] = int(cores.group(1))
    for flag in re.findall(r"\b(avx2|avx512\w*|avx-512|amx)\b", part, re.I):
        names = {"avx2": ["avx2"], "amx": ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]}
        wish.setdefault("isa", []).extend(names.get(flag.lower(), ["avx2", "avx512f"]))
    if re.search(r"\b(disk|ssd|nvme|storage)\b", part, re.I) and amounts:
        wish["disk"] = amounts[0][1]
        return
    if named:
        wish["cpu"], wish["sockets"] = row, count
        wish["cpu_name"] = AMOUNT.sub("", rest).strip()
    if re.search(r"\b(laptop|notebook|desktop|pc|workstation|server|machine|box|vm)\b", part, re.I):
        wish.setdefault("cpu", {})
        wish["shape"] = "laptop" if re.search(r"laptop|notebook|desktop|\bpc\b", part, re.I) else "server"
    for match, value in amounts:
        after = part[match.end() :].lower()
        before = part[: match.start()].lower()
        if re.match(r"\s*(are|is|still)?\s*(free|available)", after) or re.search(r"(of which|free:?)\s*$", before):
            wish["free"] = value
        else:
            wish["memory"] = value
    if not (amounts or named or cores or "shape" in wish or wish.get("isa")):
        raise DescriptionError(
            f"{part!r} is not understood: catalog/hardware.yml has no such GPU or CPU; write {EXAMPLES}, or a mapping "
            "{cpu: …, memory_gib: …, gpus: [{name: …, count: …, memory_gib: …}]}"
        )


def described_mapping(wish: dict[str, Any]) -> dict[str, Any]:
    """Facts from the exact form."""
    allowed = {"cpu", "sockets", "cores", "memory_gib", "memory_free_gib", "gpus", "disk_free_gib", "isa"}
    unknown = sorted(set(map(str, wish)) - allowed)
    if unknown:
        raise DescriptionError(f"there is no {unknown[0]!r}; a described machine has {', '.join(sorted(allowed))}")
    if not wish.keys() & {"cpu", "gpus", "memory_gib"}:
        raise DescriptionError(f"{wish!r} has neither cpu nor gpus nor memory_gib")
    if not isinstance(wish.get("cpu", ""), str):
        raise DescriptionError(f"cpu is a name as /proc/cpuinfo shows it, not {wish['cpu']!r}")
    parts: dict[str, Any] = {"gpus": [], "assumed": []}
    try:
        if wish.get("cpu"):
            parts.update(cpu=cpu_row(str(wish["cpu"])), cpu_name=str(wish["cpu"]), sockets=int(wish.get("sockets", 1)))
        for name, key in (("memory", "memory_gib"), ("free", "memory_free_gib"), ("disk", "disk_free_gib")):
            if wish.get(key) is not None:
                parts[name] = float(wish[key]) * GIB
        if wish.get("cores"):
            parts["cores"] = int(wish["cores"])
        if wish.get("isa"):
            parts["isa"] = [str(flag) for flag in wish["isa"]]
        for gpu in wish.get("gpus") or []:
            size = f" {gpu['memory_gib']} GB" if gpu.get("memory_gib") else ""
            read_part(f"{int(gpu.get('count', 1))}× {gpu['name']}{size}", parts)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, DescriptionError):
            raise
        raise DescriptionError(
            f"{wish!r}: {error!r}; write numbers as numbers, and gpus as a list of mappings"
        ) from None
    return facts_of(parts, "")


def facts_of(wish: dict[str, Any], text: str) -> dict[str, Any]:
    """Facts as host_probe returns them, for what was read; what was assumed stands in `assumed`."""
    assumed = list(wish["assumed"])
    row = wish.get("cpu") or {}
    laptop = wish.get("shape") == "laptop"
    sockets = int(wish.get("sockets") or 1)
    if wish.get("cores"):
        per_socket = max(1, wish["cores"] // sockets)
    else:
        per_socket = int(row.get("cores") or (8 if laptop else 16))
    isa = wish.get("isa") or row.get("isa")
    if not row:
        assumed.append(
            f"CPU: {per_socket} cores"
            + ("" if isa else ", AVX2")
            + (", a laptop's two memory channels" if laptop else "")
        )
    isa = isa or ["avx2"]
    memory = wish.get("memory") or wish.get("free")
    if not memory:
        memory = max(64 * GIB, 1.5 * sum(count * row["memory_gib"] * GIB for count, row in wish["gpus"]))
        assumed.append(f"memory: {memory / GIB:.0f} GB")
    free = wish.get("free") or memory * 0.95
    disk = wish.get("disk")
    if not disk:
        disk = 2048 * GIB if wish["gpus"] or memory > 128 * GIB else 256 * GIB
        assumed.append(f"free disk: {disk / GIB:.0f} GB")
    gpus: list[dict[str, Any]] = []
    for count, gpu in wish["gpus"]:
        for _number in range(count):
            gpus.append(
                {
                    "index": len(gpus),
                    "name": gpu["example"],
                    "memory_total": int(gpu["memory_gib"] * GIB),
                    "memory_free": int(gpu["memory_gib"] * GIB * 0.995),
                    "compute_capability": str(gpu["compute_capability"]),
                }
            )
    numa = []
    for node in range(sockets):
        first = node * per_socket
        numa.append(
            {
                "node": node,
                "cpus": list(range(first, first + per_socket)),
                "cores": [[core] for core in range(first, first + per_socket)],
                "memory_total": int(memory / sockets),
                "memory_free": int(free / sockets),
            }
        )
    return {
        "described": text or True,
        "assumed": assumed,
        "architecture": "x86_64",
        "cpu_model": row.get("example") or wish.get("cpu_name") or "",
        "cpu_flags": isa,
        "cpu_cores": per_socket * sockets,
        "cpu_sockets": sockets,
        "cpu_count": per_socket * sockets,
        "memory": {"total": int(memory), "available": int(free), "engines": 0},
        "numa": numa,
        "gpus": gpus,
        "nvidia_driver": "",
        "disk": {"/": {"free": int(disk), "mount": "/"}},
        "container": "",
        "wsl": False,
    }


def of_variables(facts: dict[str, Any], variables: Any, free: bool = False) -> dict[str, Any]:
    """The machine that facts and a host's variables describe."""
    reserve, cores = variables.get("vllm_memory_reserved_gib"), variables.get("accelerator_cpu_reserved_cores", "auto")
    return machine(facts, str(variables.get("vllm_variant") or "auto"), float(reserve or 0), free, cores)


def of_host(variables: Any, free: bool = False) -> dict[str, Any] | None:
    """The machine of a host whose facts preflight has read, or nothing."""
    facts = variables.get("host_preflight_probe")
    return of_variables(facts, variables, free) if facts else None
