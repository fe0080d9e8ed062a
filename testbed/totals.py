#!/usr/bin/env python3
"""Keep results as JUnit XML and add them up.

totals.py case FILE NAME EXIT_CODE SECONDS LOG   add one test case to FILE
totals.py total PATH…                            print `N passed, M failed` over files or folders; exit 1 on failures
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def add_case(file: Path, name: str, code: str, seconds: str, log: Path) -> None:
    suite = ET.parse(file).getroot() if file.exists() else ET.Element("testsuite", name=file.stem)
    case = ET.SubElement(suite, "testcase", classname=file.stem, name=name, time=seconds)
    if code != "0":
        failure = ET.SubElement(case, "failure", message=f"exit code {code}")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-60:]
        # XML knows no control characters, and tools colour their output.
        failure.text = "\n".join("".join(c for c in line if c.isprintable()) for line in lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)


def total(paths: list[Path]) -> int:
    passed, skipped, failed = 0, 0, []
    files = [file for path in paths for file in (sorted(path.glob("*.xml")) if path.is_dir() else [path])]
    for file in files:
        for case in ET.parse(file).getroot().iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(f"{file.stem}: {case.get('classname')}::{case.get('name')}")
            elif case.find("skipped") is not None:
                skipped += 1
            else:
                passed += 1
    for name in failed:
        print(f"FAILED {name}")
    print(f"{passed} passed, {len(failed)} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    if sys.argv[1] == "case":
        add_case(Path(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5], Path(sys.argv[6]))
    else:
        sys.exit(total([Path(argument) for argument in sys.argv[2:]]))
