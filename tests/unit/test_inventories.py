"""The worked inventories, each with each of its settings, on the machine that it describes: sound, fitting, with the
flags that are expected, in units that systemd reads; and their pages say what the plan says today."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.modelhost.serving.plugins.action.validate_inventory import plain, problems_of
from ansible_collections.modelhost.serving.plugins.module_utils import (
    capacity,
    inventory_validation,
    preflight,
    problems,
)
from test_preflight import SETTINGS, WELL

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import inventory_pages as pages  # noqa: E402 (needs the path)

GIB = capacity.GIB
RUNTIMES = ("venv", "docker")
CASES = [(name, setting) for name in pages.NAMES for setting in pages.settings(name)]
YARN = {
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
    },
}
#: Warnings of validation and of preflight that belong to an inventory; its comments or its page tell of each.
OPEN = "the gateway is reachable from other machines"
SOUND = {case: [OPEN] for case in CASES}
SOUND["gpu-235b", "context_32k"] = ["with this context it will compact all the time", OPEN]
FITS: dict[tuple[str, str], list[str]] = {("wsl2", "card_24gb"): ["does not compute in this checkpoint's format"]}

#: What each engine must be started with, whatever else follows from the host; None: the flag is not there.
GOLDEN: dict[tuple[str, str], dict[str, Any]] = {
    ("gpu-235b", "context_128k"): {
        "model": "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
        "tensor_parallel_size": 4,
        "max_model_len": 131072,
        "max_num_seqs": 10,
        "gpu_memory_utilization": 0.92,
        "kv_cache_dtype": None,
        "quantization": None,
        "tool_call_parser": "hermes",
        "hf_overrides": None,
    },
    ("gpu-235b", "context_32k"): {
        "model": "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
        "tensor_parallel_size": 4,
        "max_model_len": 32768,
        "max_num_seqs": 20,
        "gpu_memory_utilization": 0.92,
        "kv_cache_dtype": None,
        "quantization": None,
        "tool_call_parser": "hermes",
        "hf_overrides": None,
    },
    ("gpu-72b", "bf16_on_four"): {
        "model": "Qwen/Qwen2.5-72B-Instruct",
        "tensor_parallel_size": 4,
        "max_model_len": 131072,
        "max_num_seqs": 14,
        "gpu_memory_utilization": 0.92,
        "kv_cache_dtype": None,
        "tool_call_parser": "hermes",
        "hf_overrides": YARN,
        "CUDA_VISIBLE_DEVICES": None,
    },
    ("gpu-72b", "awq_on_two"): {
        "model": "Qwen/Qwen2.5-72B-Instruct-AWQ",
        "tensor_parallel_size": 2,
        "max_model_len": 131072,
        "max_num_seqs": 10,
        "gpu_memory_utilization": 0.92,
        "kv_cache_dtype": None,
        "quantization": None,
        "tool_call_parser": "hermes",
        "hf_overrides": YARN,
        "CUDA_VISIBLE_DEVICES": "0,1",
    },
    ("cpu-xeon", ""): {
        "model": "Qwen/Qwen3.6-35B-A3B",
        "tensor_parallel_size": 2,
        "max_model_len": 65536,
        "max_num_seqs": 4,
        "dtype": "bfloat16",
        # Four sessions of 64K on each of the two nodes.
        "kv_cache_memory_bytes": 3019898880,
        "gpu_memory_utilization": None,
        "tool_call_parser": "qwen3_coder",
        "reasoning_parser": "qwen3",
        "default_chat_template_kwargs": {"enable_thinking": False},
        # One core of each processor is left to the system and the gateway.
        "VLLM_CPU_OMP_THREADS_BIND": "1-13|15-27",
    },
    ("wsl2", "card_32gb"): {
        "model": "RedHatAI/Qwen3.8-27B-INT4",
        "tensor_parallel_size": 1,
        "max_model_len": 131072,
        "max_num_seqs": 6,
        "gpu_memory_utilization": 0.85,
        "kv_cache_dtype": "fp8",
        "tool_call_parser": "qwen3_coder",
        "reasoning_parser": "qwen3",
    },
    ("wsl2", "card_24gb"): {
        "model": "openai/gpt-oss-20b",
        "tensor_parallel_size": 1,
        "max_model_len": 131072,
        "max_num_seqs": 8,
        "gpu_memory_utilization": 0.85,
        "kv_cache_dtype": None,
        "tool_call_parser": "openai",
        "reasoning_parser": "openai_gptoss",
        "TIKTOKEN_ENCODINGS_BASE": (
            "/var/lib/modelhost/models/openai/gpt-oss-20b/6cee5e81ee83917806bbde320786a8fb61efebee/tiktoken"
        ),
    },
}

each_case = pytest.mark.parametrize(("name", "setting"), CASES, ids=["-".join(filter(None, case)) for case in CASES])
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


def probe(found: Any) -> dict[str, Any]:
    """What host_probe would return of the described machine: it, in a sound host of another make."""
    described = copy.deepcopy(found.facts)
    free = 900 * GIB if found.name != "wsl2" else 400 * GIB
    facts = {**copy.deepcopy(WELL), **described}
    facts.update(
        distribution="ubuntu",
        distribution_version="24.04",
        distribution_name="Ubuntu 24.04.3 LTS",
        glibc="2.39",
        systemd="255",
        pythons=["3.12"],
        disk={path: {**space, "free": free} for path, space in WELL["disk"].items()},
        accounts=["root", plain(found.hostvars[found.host].get("claude_code_users", [{"name": "root"}]))[0]["name"]],
        nvidia_driver="580.95.05" if described["gpus"] else "",
        nvidia_devices=len(described["gpus"]),
        wsl=found.name == "wsl2",
    )
    for gpu in facts["gpus"]:
        gpu.update(uuid=f"GPU-{gpu['index']}", pci="", ecc_errors=0, pcie_width=16, pcie_width_max=16, mig=False)
        gpu.update(driver="580.95.05", memory_engines=0)
        if facts["wsl"]:
            # Windows' desktop, a browser and an editor.
            gpu["memory_free"] = gpu["memory_total"] - 3 * GIB
    return facts


@functools.cache
def role(name: str, part: str) -> dict[str, Any]:
    """A role's defaults or internal variables, unresolved."""
    path = ROOT / "roles" / name / part / "main.yml"
    return DataLoader().load_from_file(str(path), trusted_as_template=True) if path.exists() else {}


def templar(found: Any, name: str, **more: Any) -> Any:
    """What the tasks of a role see on this host after preflight, by Ansible's own precedence."""
    facts = probe(found)
    found.manager.set_nonpersistent_facts(found.host, {"host_preflight_probe": facts})
    (host,) = [host for host in found.manager._inventory.get_hosts() if host.name == found.host]
    variables = {**role(name, "defaults"), **found.manager.get_vars(host=host), **role(name, "vars")}
    variables.update(
        ansible_managed="Ansible managed",
        role_path=str(ROOT / "roles" / name),
        hostvars=found.hostvars,
        # What tasks set or register before.
        __vllm_variant="cuda" if facts["gpus"] else "cpu",
        __vllm_container_image={"id": f"sha256:{'0' * 64}"},
        __litellm_container_image={"id": f"sha256:{'0' * 64}"},
    )
    variables.update(more)
    templates = ROOT / "roles" / name / "templates"
    folders = [str(path) for path in sorted([templates, *templates.rglob("*")]) if path.is_dir()]
    return Templar(loader=DataLoader(), variables=variables).copy_with_new_env(
        searchpath=folders, available_variables=variables
    )


def rendered(found: Any, name: str, template: str, **more: Any) -> str:
    """A template of a role, found by its name, as ansible.builtin.template renders it."""
    (path,) = (ROOT / "roles" / name / "templates").rglob(template)
    engine = templar(found, name, **more)
    engine = engine.copy_with_new_env(
        searchpath=[str(path.parent), str(ROOT / "roles" / name / "templates")],
        available_variables=engine.available_variables,
    )
    text = trust_as_template(path.read_text(encoding="utf-8"))
    return str(engine.template(text, escape_backslashes=False, overrides={"trim_blocks": True}))


def effective(found: Any, **more: Any) -> list[dict[str, Any]]:
    """What the units of the host's engines are made from."""
    result: list[dict[str, Any]] = plain(
        templar(found, "vllm", **more).template(trust_as_template("{{ __vllm_effective }}"))
    )
    return result


# --- the inventories ---------------------------------------------------------------------------------------------


def test_every_worked_inventory_is_here() -> None:
    described = {path.parent.name for path in (ROOT / "inventories").glob("*/hosts.yml")} - {"demo", "local", "prod"}
    assert described == set(pages.NAMES)
    assert set(GOLDEN) == set(CASES)


def expect(said: list[dict[str, Any]], warnings: list[str]) -> None:
    """No error, and these warnings alone."""
    assert problems.report([item for item in said if item["level"] == "error"]) == ""
    assert len(said) == len(warnings), problems.report(said)
    for item, text in zip(said, warnings):
        assert text in item["problem"]


@each_case
def test_it_is_sound_as_it_stands(name: str, setting: str) -> None:
    found = pages.site(name, setting)
    expect(problems_of(found.hostvars, found.groups)[0], SOUND[name, setting])


@each_case
def test_its_machine_passes_preflight(name: str, setting: str) -> None:
    found = pages.site(name, setting)
    variables = {**found.variables, "claude_code_users": plain(found.hostvars[found.host].get("claude_code_users", []))}
    said = preflight.problems(found.host, probe(found), SETTINGS, variables, found.groups)
    expect(said, FITS.get((name, setting), []))


@each_case
def test_the_plan_says_that_it_fits(name: str, setting: str) -> None:
    host = pages.planned(pages.site(name, setting))
    assert host["problems"] == []
    assert host["assumed"] == [], "a described machine leaves nothing to be guessed"
    for instance in host["instances"]:
        expect(instance["problems"], SOUND[name, setting][:-1])
        assert instance["assessment"]["fits"], instance["assessment"]["why"]


def test_a_real_run_does_not_read_the_description() -> None:
    """Neither the playbooks of the site nor the roles that they name, nor the wiring."""
    names = re.findall(r"import_playbook: (\S+)", (ROOT / "site.yml").read_text(encoding="utf-8"))
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in [*names, "group_vars/all/wiring.yml"]}
    for role_name in set(re.findall(r"modelhost\.serving\.(\w+)$", "\n".join(texts.values()), re.M)):
        for path in (ROOT / "roles" / role_name).rglob("*.yml"):
            texts[str(path)] = path.read_text(encoding="utf-8")
    assert len(texts) > 50
    for where, text in texts.items():
        assert "capacity_plan_hardware" not in text, where


@pytest.mark.parametrize("name", pages.NAMES)
def test_only_the_address_must_be_edited(name: str) -> None:
    """The address stands in one place, and everything else follows it."""
    folder = ROOT / "inventories" / name
    address = pages.site(name).hostvars[pages.site(name).host]["ansible_host"]
    texts = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.yml")}
    assert sum(text.count(address) for text in texts.values()) == 1
    assert re.match(r"10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.", address), "a private address"
    for path, text in texts.items():
        assert not re.search(r"\bsk-\w|\bhf_[A-Za-z]{12}|password: ", text), path


@pytest.mark.parametrize("name", pages.NAMES)
def test_lines_to_uncomment_are_sound(name: str) -> None:
    """What is offered in a comment is a variable, and its value is one that it takes."""
    offered = {}
    for path in (ROOT / "inventories" / name / "group_vars").glob("*.yml"):
        for line in re.findall(r"(?m)^# ([a-z]+_[a-z0-9_]+: \S.*)$", path.read_text(encoding="utf-8")):
            offered.update(yaml.safe_load(line))
    assert offered
    assert set(offered) <= set(inventory_validation.options())
    assert problems.report(inventory_validation.spec_problems(name, offered)) == ""


def test_the_figures_in_comments_hold() -> None:
    """Comments of the inventories, and sentences of their pages, name a few figures."""
    rows = {(name, setting): pages.planned(pages.site(name, setting))["instances"][0] for name, setting in CASES}
    wide, short = rows["gpu-235b", "context_128k"]["assessment"], rows["gpu-235b", "context_32k"]["assessment"]
    assert wide["sessions"][131072] == 2, "Two such sessions fit"
    assert wide["kv_cache_memory_bytes"] == short["kv_cache_memory_bytes"], "No memory is saved"
    fp8 = pages.planned(pages.site("gpu-235b", "context_128k"), changed={"kv_cache_dtype": "fp8"})["instances"][0]
    assert fp8["assessment"]["sessions"][65536] == 2 * wide["sessions"][65536], "Twice as many sessions"
    bf16, awq = rows["gpu-72b", "bf16_on_four"]["assessment"], rows["gpu-72b", "awq_on_two"]["assessment"]
    assert awq["decode"] > bf16["decode"], "one session gets faster"
    assert 0.4 < awq["prefill"] / bf16["prefill"] < 0.6, "at half the speed"
    xeon = rows["cpu-xeon", ""]["assessment"]
    assert 80 <= xeon["prefill"] <= 100, "some 90 tokens a second"
    assert 11 * 60 < 65536 / xeon["prefill"] < 19 * 60, "a quarter of an hour"
    assert 8 <= xeon["decode"] <= 12, "ten tokens a second: 1000 are two minutes"
    dense = {row["model"]: row for row in pages.planned(pages.site("cpu-xeon"))["models"]}["qwen2.5-coder-32b-instruct"]
    assert 0.5 < dense["decode"] < 1.5, "about one token a second"
    small = pages.planned(pages.site("wsl2"), "RTX 4080, 32 GB")["models"]
    assert {row["model"] for row in small if row["fits"]} == {"qwen3.5-4b"}, "Cards with 16 GB hold qwen3.5-4b only"


# --- what becomes of them ----------------------------------------------------------------------------------------


@each_case
@each_runtime
def test_the_engine_gets_the_flags_that_are_expected(name: str, setting: str, runtime: str) -> None:
    (item,) = effective(pages.site(name, setting), vllm_runtime=runtime)
    golden = dict(GOLDEN[name, setting])
    assert f"/{golden.pop('model')}/" in item["model_path"] + "/"
    seen = {**item["flags"], **item["environment"]}
    assert {key: seen.get(key) for key in golden} == golden
    assert item["flags"]["enable_auto_tool_choice"] is True
    assert item["flags"]["enable_prefix_caching"] is True
    assert item["flags"]["host"] == "127.0.0.1"
    # What the plan prints is what the role does.
    host = pages.planned(pages.site(name, setting))
    told = {line["flag"]: line["value"] for line in host["instances"][0]["flags"]}
    assert told == item["flags"]


def units(found: Any, runtime: str) -> dict[str, str]:
    """Path → content of the units that a run would write."""
    more = {"vllm_runtime": runtime, "litellm_runtime": runtime}
    files = {"vllm@.service": rendered(found, "vllm", "vllm@.service.j2", **more)}
    for item in effective(found, **more):
        path = f"vllm@{item['name']}.service.d/instance.conf"
        files[path] = rendered(found, "vllm", "instance.conf.j2", item=item, **more)
    files["litellm@.service"] = rendered(found, "litellm", "etc/systemd/system/litellm@.service.j2", **more)
    return files


@each_case
@each_runtime
def test_its_units_are_read_by_systemd(name: str, setting: str, runtime: str, tmp_path: Path) -> None:
    files = units(pages.site(name, setting), runtime)
    instance = files["vllm@coder.service.d/instance.conf"]
    assert "{{" not in "".join(files.values())
    assert "--tool-call-parser" in instance
    assert ("/opt/modelhost/bin/run-container" in instance) == (runtime == "docker")
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here")
    root = tmp_path / "root"
    # Programs that the units start, and the units that they name.
    for program in set(re.findall(r"(?m)^Exec\w+=[-+!@:]*(/\S+)", "".join(files.values()))):
        path = root / program.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    folder = root / "etc/systemd/system"
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    for target in ("sysinit", "basic", "shutdown", "network-online", "multi-user"):
        (folder / f"{target}.target").write_text("[Unit]\nDescription=a stand-in\n")
    for file in ("vllm@.service", "litellm@.service"):
        shutil.copy(folder / file, folder / file.replace("@", "@coder" if "vllm" in file else "@main"))
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "--man=no", "vllm@coder.service", "litellm@main.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "vllm@" in line or "litellm@" in line or "/opt/" in line]
    assert said == [], done.stderr
    assert done.returncode == 0, done.stderr


@each_case
def test_an_engine_on_gpus_reaches_them(name: str, setting: str) -> None:
    found = pages.site(name, setting)
    lines = units(found, "venv")["vllm@coder.service.d/instance.conf"].splitlines()
    closed = [line for line in lines if re.match("ProtectClock=|PrivateDevices=|Device", line)]
    nodes = "ExecStartPre=+-/usr/bin/nvidia-modprobe -c 0 -u"
    on_gpus = bool(found.facts["gpus"])
    assert bool(closed) is not on_gpus, "any of these takes /dev/nvidia* away on some systemd"
    assert (nodes in lines) is (on_gpus and name != "wsl2")
    assert "NoNewPrivileges=yes" in lines
    order = [line for line in lines if line.startswith("Environment=") and "CUDA_DEVICE_ORDER" in line]
    assert order == ["Environment=CUDA_DEVICE_ORDER=PCI_BUS_ID"]


def test_engines_that_share_a_gpu_start_one_after_the_other() -> None:
    found = pages.site("gpu-72b", "awq_on_two")
    names = {"one": [0], "two": [1], "three": [0, 1]}
    instances = [{"name": name, "model": "loopback", "devices": devices} for name, devices in names.items()]
    items = effective(found, vllm_instances=instances)
    assert [item["after"] for item in items] == [[], [], ["vllm@one.service", "vllm@two.service"]]
    text = rendered(found, "vllm", "instance.conf.j2", item=items[2])
    assert "\nAfter=vllm@one.service vllm@two.service\n" in text
    common = rendered(found, "vllm", "vllm@.service.j2")
    assert "After=nvidia-persistenced.service nvidia-fabricmanager.service nvidia-cdi-refresh.service" in common


def test_units_that_protect_the_clock_need_no_devices() -> None:
    # Up to systemd 251 ProtectClock= shuts all devices out but those that every service gets.
    protecting = [path for path in ROOT.glob("roles/*/templates/**/*.j2") if "ProtectClock=" in path.read_text()]
    assert len(protecting) > 2
    for path in protecting:
        assert re.search(r"(?m)^PrivateDevices=yes$(?s:.*)^ProtectClock=yes$", path.read_text()), path


@each_case
def test_its_gateway_knows_the_engine(name: str, setting: str) -> None:
    found = pages.site(name, setting)
    text = rendered(found, "litellm", "etc/modelhost/litellm/config.yaml.j2")
    config = yaml.safe_load(text)
    names = {item["model_name"] for item in config["model_list"]}
    assert {"local-claude-coder", "claude-*", "opus", "sonnet", "haiku", "fable"} <= names
    (item,) = [item for item in config["model_list"] if item["model_name"] == "local-claude-coder"]
    assert item["litellm_params"]["model"] == f"hosted_vllm/{effective(found)[0]['served_model_name'][0]}"
    assert item["litellm_params"]["api_base"] == "http://127.0.0.1:8000/v1"
    assert item["model_info"]["max_input_tokens"] == GOLDEN[name, setting]["max_model_len"]
    assert "sk-" not in text
    address = plain(templar(found, "litellm").template(trust_as_template("{{ litellm_bind_address }}")))
    assert address == ("0.0.0.0" if name == "wsl2" else found.hostvars[found.host]["ansible_host"])


def test_the_command_line_plans_and_validates_without_any_host(tmp_path: Path) -> None:
    """Nobody answers at these addresses, and nobody is asked."""
    more = ["-i", "inventories/gpu-235b", "-e", f"capacity_plan_output={tmp_path}"]
    for playbook in ("validate", "plan"):
        done = subprocess.run(
            ["ansible-playbook", f"playbooks/{playbook}.yml", *more],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "unreachable=0" in done.stdout
    saved = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    (instance,) = saved["hosts"][0]["instances"]
    assert instance["assessment"]["fits"]
    assert instance["assessment"]["sessions"]["131072"] == 2


# --- their pages -------------------------------------------------------------------------------------------------

DOCS = ROOT / "docs" / "inventories"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_says_what_the_plan_says_today(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages.page(path), "run: python tools/inventory_pages.py"
