"""The engine's own parser judges every flag that we render; systemd judges the units."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))
init_plugin_loader([str(ROOT / ".collections")])

import inventory_pages as pages  # noqa: E402 (needs the path and the loader)
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin  # noqa: E402 (needs the loader)
from ansible_collections.modelhost.serving.plugins.module_utils import catalog, hardware, vllm_flags  # noqa: E402 (same)

ENGINE = "/opt/modelhost/vllm/current/bin/python"
QUIET = ["-e", "HF_HUB_OFFLINE=1", "-e", "VLLM_NO_USAGE_STATS=1", "-e", "VLLM_LOGGING_LEVEL=ERROR", "-e", "HOME=/tmp"]
VERSION = str(pin("vllm.cpu.version"))

#: Reads lists of arguments, writes what the parser says of each: null, or its error.
PARSE = """
import contextlib, io, json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser, verdicts = make_arg_parser(FlexibleArgumentParser()), {}
for name, argv in json.loads(%r).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            validate_parsed_serve_args(parser.parse_args(argv))
        verdicts[name] = None
    except (SystemExit, Exception) as error:
        verdicts[name] = said.getvalue() or repr(error)
print("VERDICTS" + json.dumps(verdicts))
"""


def engine_python(container: str, script: str) -> str:
    """What a script prints that the engine's own Python runs on the host."""
    done = subprocess.run(
        ["docker", "exec", "-i", *QUIET, container, ENGINE, "-"],
        input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


#: Kinds of hosts that the catalogue claims, one of each generation.
MACHINES = (
    "32 GB laptop",
    "dual E5-2680 v4, 363 GB of which 238 GB are free",
    "dual Xeon Platinum 8480+, 1 TB",
    "RTX 4090, 64 GB",
    "4× A100 80 GB",
    "4× H20",
    "8× H200, 2 TB",
    "4× B200, 2 TB",
)


def rendered() -> dict[str, list[str]]:
    """The arguments of each catalogue model, as they are on every kind of host where it fits, without knowing the host,
    and with everything that an instance can set; and those of the examples."""
    found = {}
    entries = catalog.entries()
    machines = {text: hardware.machine(hardware.describe(text), free=True) for text in MACHINES}
    full = {"max_num_seqs": 2, "tensor_parallel_size": 2, "max_model_len": 70000, "served_model_name": ["x"]}
    for name in entries:
        plain = {"name": "coder", "model": name}
        for suffix, instance in (("", plain), (" with all keys", {**plain, **full})):
            found[name + suffix] = vllm_flags.effective_instance(instance, entries, VERSION)["argv"]
        for text, machine in machines.items():
            (item,) = vllm_flags.effective_instances([plain], entries, VERSION, machine=machine)
            if item["capacity"]["fits"]:
                found[f"{name} on {text}"] = item["argv"]
    for file in ROOT.glob("inventories/*/group_vars/**/*.yml"):
        data = yaml.safe_load(file.read_text()) or {}
        entries = catalog.entries(data.get("vllm_models") or [])
        for instance in data.get("vllm_instances") or []:
            argv = vllm_flags.effective_instance(instance, entries, VERSION)["argv"]
            found[f"{file.parent.parent.name}:{instance['name']}"] = argv
    # On the machines that the worked inventories name.
    for name in pages.NAMES:
        for setting in pages.settings(name):
            for item in pages.planned(pages.site(name, setting))["instances"]:
                found[f"{name} {setting}: {item['name']}"] = item["command"][2:]
    return found


def test_every_model_fits_somewhere() -> None:
    names = rendered()
    for name in catalog.entries():
        assert any(key.startswith(f"{name} on ") for key in names), name


#: What its parser has to refuse.
WRONG = {"wrong: gone": ["/m", "--swap-space", "4"], "wrong: no parser": ["/m", "--enable-auto-tool-choice"]}


@functools.cache
def engine_says(container: str) -> tuple[Any, dict[str, str | None]]:
    """How the engine describes itself, and its parser's verdicts: in one process, because vLLM is long in loading."""
    describe = (ROOT / "catalog/engines/describe_vllm.py").read_text(encoding="utf-8")
    out = engine_python(container, describe + PARSE % json.dumps({**rendered(), **WRONG}))
    printed, verdicts = out.split("VERDICTS")
    return json.loads(printed), json.loads(verdicts)


def test_flags_and_parsers_are_the_engines_own(container: str) -> None:
    """catalog/engines/ is what validation knows of vLLM without an engine at hand."""
    printed, _verdicts = engine_says(container)
    assert printed == vllm_flags.engine_description(VERSION)


def test_the_real_parser_takes_what_we_render_and_refuses_what_it_should(container: str) -> None:
    _printed, verdicts = engine_says(container)
    assert len(verdicts) >= 200
    for name, verdict in verdicts.items():
        assert (verdict is not None) == name.startswith("wrong"), f"{name}: {verdict}"


@pytest.mark.parametrize("unit", ["vllm@coder.service", "litellm@main.service"])
def test_systemd_finds_nothing_wrong_with_the_units(host: Any, unit: str) -> None:
    done = host.run("systemd-analyze verify %s", unit)
    assert done.rc == 0, done.stderr
    assert "Unknown key" not in done.stderr, done.stderr


def test_engines_without_a_gateway_are_a_mode_of_its_own(root: Path, container: str, tmp_path: Path) -> None:
    """API service only: the same engine in an inventory that has no gateway."""
    inventory = {
        "all": {
            "hosts": {
                container: {
                    "ansible_connection": "community.docker.docker",
                    "vllm_instances": [{"name": "coder", "model": "loopback"}],
                }
            },
            "children": {"engines": {"hosts": {container: {}}}},
        }
    }
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(path), "playbooks/validate.yml", "playbooks/preflight.yml",
         "playbooks/verify.yml", "playbooks/report.yml"],
        cwd=root, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "API service only" in done.stdout
    assert "http://127.0.0.1:8000/v1" in done.stdout
    assert "tool call, streamed" in done.stdout
    assert "0 failed" in done.stdout
