# MIT licence (see LICENSE)
"""What nvidia-smi tells of a host's GPUs. Runs on hosts (Python 3.8), read-only.

Each call of nvidia-smi starts every GPU anew where nothing keeps the driver loaded, which takes eight of them a minute.
So there are two: one for what CSV has, and one for what only the long answer has.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

#: What is asked for each GPU. A driver that does not know a field names it, and is asked again without.
FIELDS = (
    "index",
    "name",
    "memory.total",
    "memory.free",
    "compute_cap",
    "uuid",
    "pci.bus_id",
    "ecc.errors.uncorrected.volatile.total",
    "ecc.errors.uncorrected.aggregate.total",
    "pcie.link.width.current",
    "pcie.link.width.max",
    # What card and slot reach together, and what the card could. The present generation is no use: idle cards go down.
    "pcie.link.gen.max",
    "pcie.link.gen.gpumax",
    "mig.mode.current",
    "persistence_mode",
    "driver_version",
)
#: What run() returns as the status of a program that was ended because it took too long.
TIMED_OUT = -2
MIB = 1024 * 1024


def number(text):
    """A whole number, or None for `[N/A]` and its like."""
    found = re.match(r"\s*(-?\d+)(?:\.\d+)?\s*$", text or "")
    return int(found.group(1)) if found else None


def mebibytes(text):
    """Bytes of `81559` or `81559 MiB`; None for `[N/A]`, which is not nothing."""
    found = number(re.sub(r"\s*MiB\s*$", "", text or ""))
    return None if found is None else found * MIB


def gpus(program, run):
    """GPUs, nvidia-smi's complaint where it has one, and whether it gave no answer in time."""
    fields = list(FIELDS)
    while program and fields:
        status, out = run([program, "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"])
        if status == TIMED_OUT:
            return [], " ".join(out.split())[:300], True
        unknown = re.search(r'Field "([^"]+)" is not a valid field', out)
        if unknown and unknown.group(1) in fields:
            fields.remove(unknown.group(1))
            continue
        found = parse(out, fields)
        return found, "" if found and status == 0 else " ".join(out.split())[:300], False
    return [], "", False


def parse(text, fields=FIELDS):
    """Lines of nvidia-smi's CSV; lines that are not of its form are its complaints."""
    found = []
    for line in text.splitlines():
        values = dict(zip(fields, (value.strip() for value in line.split(","))))
        if len(values) != len(fields) or line.count(",") != len(fields) - 1 or number(values["index"]) is None:
            continue
        capability = values.get("compute_cap", "")
        found.append(
            {
                "index": number(values["index"]),
                "name": values.get("name", ""),
                # None where the GPU shares the CPU's memory (GB10): how much it has is unknown, not zero.
                "memory_total": mebibytes(values.get("memory.total")),
                "memory_free": mebibytes(values.get("memory.free")),
                "compute_capability": capability if re.match(r"\d+\.\d+$", capability) else "",
                "uuid": values.get("uuid", ""),
                "pci": values.get("pci.bus_id", "").lower(),
                "ecc_errors": number(values.get("ecc.errors.uncorrected.volatile.total")),
                "ecc_errors_ever": number(values.get("ecc.errors.uncorrected.aggregate.total")),
                "pcie_width": number(values.get("pcie.link.width.current")),
                "pcie_width_max": number(values.get("pcie.link.width.max")),
                "pcie_generation": number(values.get("pcie.link.gen.max")),
                "pcie_generation_card": number(values.get("pcie.link.gen.gpumax")),
                "mig": values.get("mig.mode.current") == "Enabled",
                "persistence": values.get("persistence_mode") == "Enabled",
                "driver": values.get("driver_version", ""),
            }
        )
    return found


def details(program, run):
    """What only the long answer has: {uuid: {fabric, rows_pending, rows_failed, processes}}."""
    status, out = run([program, "-q", "-x"])
    if status != 0:
        return {}
    found = {}
    for gpu in ElementTree.fromstring(out).iter("gpu"):

        def said(path, gpu=gpu):
            return (gpu.findtext(path) or "").strip()

        found[said("uuid")] = {
            # Completed, In Progress, Not Started; N/A where no switch joins GPUs.
            "fabric": said("fabric/state"),
            "rows_pending": said("remapped_rows/remapped_row_pending") == "Yes",
            "rows_failed": said("remapped_rows/remapped_row_failure") == "Yes",
            "processes": [
                {name: (item.findtext(name) or "").strip() for name in ("pid", "process_name", "used_memory")}
                for item in gpu.iter("process_info")
            ],
        }
    return found


def add_details(found, long, unit_of):
    """Puts the long answer into each GPU; returns who holds memory of them. unit_of(pid): the unit of a process."""
    holders = []
    for gpu in found:
        more = long.get(gpu["uuid"], {})
        gpu.update({name: more.get(name, "") for name in ("fabric",)})
        gpu.update({name: more.get(name, False) for name in ("rows_pending", "rows_failed")})
        held = [
            {
                "pid": int(item["pid"]),
                "gpu_uuid": gpu["uuid"],
                "memory": mebibytes(item["used_memory"]) or 0,
                "process": item["process_name"].rpartition("/")[2],
                "unit": unit_of(item["pid"]),
            }
            for item in more.get("processes", [])
            if item["pid"].isdigit()
        ]
        # What our own engines hold and would give back at a restart.
        gpu["memory_engines"] = sum(item["memory"] for item in held if item["unit"].startswith("vllm@"))
        holders += held
    return holders
