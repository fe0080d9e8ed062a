"""host_files: what its `look` says of a host."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def apply(items: list[dict[str, Any]], look: list[Path], check: bool = False) -> dict[str, Any]:
    payload = base64.b64encode(zlib.compress(json.dumps(items).encode())).decode()
    arguments = {"payload": payload, "look": [str(path) for path in look], "_ansible_check_mode": check}
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/host_files_apply.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
        env={**os.environ, "_ANSIBLE_TEST": "1", "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_it_tells_what_was_there_before_the_change(tmp_path: Path) -> None:
    gone, kept, dangling, missing = (tmp_path / name for name in ("gone", "kept", "dangling", "missing"))
    gone.touch()
    kept.mkdir()
    dangling.symlink_to(missing)
    items = [{"path": str(gone), "kind": "absent"}]
    for check in (True, False):
        done = apply(items, [gone, kept, dangling, missing], check)
        assert done["there"] == [str(gone), str(kept), str(dangling)]
        assert done["changed"]
    assert apply(items, [gone, kept])["there"] == [str(kept)]


def test_a_look_alone_changes_nothing(tmp_path: Path) -> None:
    done = apply([], [tmp_path])
    assert done["there"] == [str(tmp_path)]
    assert not done["changed"]
