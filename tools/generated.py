# MIT licence (see LICENSE)
"""Files that a tool makes: written, or with --check only held against what would be written."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def keep(files: Iterable[tuple[Path, str]], folder: Path | None = None) -> int:
    """Write each file that is not as it should be, and name it; 1 when --check found one.

    folder: holds such files only. Any other Markdown file in it is left over from earlier, and is removed.
    """
    check, stale = "--check" in sys.argv[1:], False
    wanted = dict(files)
    for path, text in wanted.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale = True
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(("stale: " if check else "written: ") + str(path.relative_to(ROOT)))
    for path in sorted(set(folder.glob("*.md")) - wanted.keys()) if folder else []:
        stale = True
        if not check:
            path.unlink()
        print(("left over: " if check else "removed: ") + str(path.relative_to(ROOT)))
    return 1 if check and stale else 0
