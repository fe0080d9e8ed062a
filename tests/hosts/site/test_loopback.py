"""The loopback model's own tests against this host: more than a hundred random tool calls, to the byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_replies_come_back_exactly(root: Path, gateway_url: str, user_key: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/loopback_model/test_engine.py"]
        + [f"--junitxml={root}/.cache/reports/loopback.xml"],
        cwd=root,
        env={
            **os.environ,
            "LOOPBACK_URL": gateway_url,
            "LOOPBACK_KEY": user_key,
            "LOOPBACK_MODEL": "local-claude-coder",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
