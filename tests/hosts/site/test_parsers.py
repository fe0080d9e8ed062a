"""Our templates and tool parsers as they were installed, within the engine as it was installed, as its own account."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import SideEngine, run

SHARE = "/opt/modelhost/vllm/share"
ENGINE = "/opt/modelhost/vllm/current/bin/python"
QUIET = ["-e", "HF_HUB_OFFLINE=1", "-e", "VLLM_NO_USAGE_STATS=1", "-e", "VLLM_LOGGING_LEVEL=ERROR", "-e", "HOME=/tmp"]
#: Takes the checks from its input, because the host has no pytest and nothing of this repository.
SCRIPT = f"""
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar -x -C "$folder"
MODEL=$(dirname "$(find /var/lib/modelhost/models -name tokenizer.json | head -n1)")
export MODEL
{ENGINE} -B "$folder/checks.py" {SHARE}
"""


def test_what_is_shipped_is_installed(host: Any, root: Path) -> None:
    for kind, pattern in (("parsers", "*.py"), ("templates", "*.jinja")):
        shipped = {path.name: path.read_text(encoding="utf-8") for path in (root / "catalog" / kind).glob(pattern)}
        assert {Path(name).name for name in host.file(f"{SHARE}/{kind}").listdir()} == set(shipped)
        for name, text in shipped.items():
            file = host.file(f"{SHARE}/{kind}/{name}")
            assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
            assert file.content_string == text


def test_parsers_and_templates_in_the_real_engine(container: str, root: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("checks.py", "quotations.yml"):
            archive.add(root / "tests/engine_parsers" / name, arcname=name)
    done = subprocess.run(
        ["docker", "exec", "-i", "-u", "vllm", *QUIET, container, "bash", "-c", SCRIPT],
        input=packed.getvalue(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()[-2000:] + done.stderr.decode()[-6000:]
    assert "are as they should be" in done.stdout.decode()


@pytest.mark.skipif(not os.environ.get("MODELHOST_TEST_ALL"), reason="the long form: ./run test --all")
def test_a_running_engine_with_our_parser(side_engine: SideEngine, container: str, root: Path) -> None:
    """What models wrote, said again by the loopback model, comes back as tool calls on both APIs, streamed and not."""
    (model,) = run(
        "docker", "exec", container, "bash", "-c", "echo /var/lib/modelhost/models/modelhost/*/*"
    ).stdout.split()
    arguments = [model, "--served-model-name", "loopback", "--enforce-eager", "--kv-cache-memory-bytes", "134217728"]
    arguments += ["--max-model-len", "65536", "--host", "0.0.0.0", "--port", "8198", "--enable-auto-tool-choice"]
    arguments += ["--tool-parser-plugin", f"{SHARE}/parsers/json_tool_calls.py", "--tool-call-parser", "qwen2_5_coder"]
    side_engine.start(arguments, 8198)
    address = run("docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engine_parsers/test_live.py"]
        + [f"--junitxml={root}/.cache/reports/live-parsers.xml"],
        cwd=root, env={**os.environ, "PARSER_URL": f"http://{address.stdout.strip()}:8198"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
