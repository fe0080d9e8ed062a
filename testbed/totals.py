#!/usr/bin/env python3
"""Keep results as JUnit XML and add them up.

totals.py case FILE NAME EXIT_CODE SECONDS LOG   add one test case to FILE
totals.py total PATH…                            print the seconds of each part that parts.py ran, and
                                                 `N passed, M failed` over files or folders; exit 1 on failures
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

#: Of a part's test case: seconds of processors for what it ran on this machine, outside of test hosts.
PROCESSOR = "processor"


def add_case(
    file: Path,
    name: str,
    code: str,
    seconds: str,
    log: Path,
    processor: str = "",
    steps: Iterable[tuple[str, str]] = (),
) -> None:
    suite = ET.parse(file).getroot() if file.exists() else ET.Element("testsuite", name=file.stem)
    case = ET.SubElement(suite, "testcase", classname=file.stem, name=name, time=seconds)
    if processor:
        properties = ET.SubElement(case, "properties")
        for key, value in ((PROCESSOR, processor), *steps):
            ET.SubElement(properties, "property", name=key, value=value)
    if code != "0":
        failure = ET.SubElement(case, "failure", message=f"exit code {code}")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-60:]
        # XML knows no control characters, and tools colour their output.
        failure.text = "\n".join("".join(c for c in line if c.isprintable()) for line in lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)


def failed(case: ET.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def table(cases: list[ET.Element]) -> list[str]:
    """Seconds by part, the longest first. They run beside each other, so the seconds are no sum."""
    rows = []
    for case in sorted(cases, key=lambda it: -float(it.get("time", "0"))):
        (_name, processor), *steps = [(it.get("name"), it.get("value", "0")) for it in case.iter("property")]
        told = " · ".join(f"{name} {float(value):.0f}" for name, value in steps if float(value) >= 1)
        rows.append((case.get("name", ""), float(case.get("time", "0")), processor, told, failed(case)))
    width = max(len(name) for name, *_rest in rows)
    lines = [f"{'part':{width}}  seconds  CPU here  result  steps"]
    for name, seconds, processor, told, bad in rows:
        lines.append(f"{name:{width}}  {seconds:7.0f}  {processor:>8}  {'FAILED' if bad else 'ok':6}  {told}".rstrip())
    return lines


def total(paths: list[Path]) -> int:
    passed, skipped, names = 0, 0, []
    files = [file for path in paths for file in (sorted(path.glob("*.xml")) if path.is_dir() else [path])]
    found = [(file, case) for file in files for case in ET.parse(file).getroot().iter("testcase")]
    parts = [case for _file, case in found if case.find(f"properties/property[@name='{PROCESSOR}']") is not None]
    if parts:
        print("\n".join(table(parts)))
    for file, case in found:
        if failed(case):
            names.append(f"{file.stem}: {case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    for name in names:
        print(f"FAILED {name}")
    print(f"{passed} passed, {len(names)} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if names or not passed else 0


if __name__ == "__main__":
    if sys.argv[1] == "case":
        add_case(Path(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5], Path(sys.argv[6]))
    else:
        sys.exit(total([Path(argument) for argument in sys.argv[2:]]))
