"""What fits: the plan, its report, and the playbook on real and unreachable hosts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import capacity, hardware, plan, plan_report

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {"cpu": "0.32.0", "cuda": "0.32.0"}
MACHINES = ("dual E5-2680 v4, 363 GB of which 238 GB are free", "4× H20", "4× A100 80 GB", "32 GB laptop")


def planned(text: Any, variables: dict[str, Any] | None = None, host: str = "box") -> dict[str, Any]:
    """The plan of one host."""
    return plan.host_plan(host, plan.facts_of(text), variables or {}, 4, VERSIONS)


def lines(*hosts: dict[str, Any]) -> str:
    """The report for a terminal."""
    return "\n".join(plan_report.text(plan.plan(list(hosts), 4)))


def rows(host: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The table by model."""
    return {row["model"]: row for row in host["models"]}


# --- the machines of the issue -----------------------------------------------------------------------------------


def test_dual_xeon() -> None:
    """Memory for much, bandwidth and arithmetic for little: a mixture of experts with few active parameters."""
    host = planned(MACHINES[0])
    table = rows(host)
    assert host["kind"] == "cpu"
    assert "238.0 GiB free, in 2 NUMA nodes" in lines(host)
    assert table["qwen2.5-72b-instruct"]["fits"]
    assert table["qwen2.5-72b-instruct"]["tensor_parallel_size"] == 2
    assert table["qwen2.5-72b-instruct"]["decode"] < plan.USABLE_DECODE
    fp8 = table["qwen3-235b-a22b-instruct-2507-fp8"]
    assert not fp8["fits"]
    assert "vLLM does not run this checkpoint (fp8) on CPU" in fp8["why"][0]
    assert table[host["recommended"]["model"]]["decode"] > plan.USABLE_DECODE


def test_four_h20() -> None:
    """The FP8 checkpoint of the large model, and not its BF16 one."""
    host = planned(MACHINES[1])
    table = rows(host)
    large = table["qwen3-235b-a22b-instruct-2507-fp8"]
    assert large["fits"]
    assert large["tensor_parallel_size"] == 4
    assert large["sessions"][65536] >= 2
    assert not any("no native" in note for note in large["notes"])
    assert not table["qwen3-235b-a22b-instruct-2507"]["fits"]
    report = lines(host)
    assert "→ qwen3-235b-a22b-instruct-2507-fp8" in report
    assert "4 × NVIDIA H20" in report


def test_a100_has_no_native_fp8() -> None:
    host = planned(MACHINES[2])
    (note,) = {note for row in host["models"] for note in row["notes"] if "no native FP8" in note}
    assert note in " ".join(lines(host).split())
    h20 = rows(planned(MACHINES[1]))
    for name, row in rows(host).items():
        if name.startswith("qwen3") and row["quantization"] == "fp8":
            assert note in row["notes"], name
            # Computed in BF16: prompts gain nothing from it.
            same = h20[name]["prefill"] / h20[name]["tensor_parallel_size"] / (296 / 312)
            assert row["prefill"] / row["tensor_parallel_size"] < 1.1 * same


def test_laptop() -> None:
    """What does not fit says by how much, and which smaller one does."""
    host = planned(MACHINES[3])
    large = rows(host)["qwen2.5-72b-instruct"]
    assert not large["fits"]
    assert "135.4 GiB weights" in large["why"][0]
    way = large["why"][-1]
    assert way.startswith("→ qwen")
    assert rows(host)[way.split()[1]]["fits"]
    assert way in " ".join(lines(host).split())


@pytest.mark.parametrize("machine", MACHINES)
def test_recommendation_can_work_with_claude_code(machine: str) -> None:
    host = planned(machine)
    chosen = rows(host)[host["recommended"]["model"]]
    assert chosen["fits"]
    assert chosen["tool_calling"] in ("native", "adapted")
    assert not chosen["chat_only"]
    assert chosen["sessions"][capacity.MIN_CONTEXT] >= 1
    assert host["recommended"]["instance"] == {"name": "coder", "model": chosen["model"]}
    assert f"    model: {chosen['model']}" in lines(host)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_recommended_gets_what_the_table_promises(machine: str) -> None:
    """The lines for vllm_instances, put into an inventory, lead to the same flags, on a host that nobody else uses."""
    facts = plan.facts_of(machine)
    facts["memory"]["available"] = facts["memory"]["total"]
    for node in facts["numa"]:
        node["memory_free"] = node["memory_total"]
    chosen = plan.host_plan("box", facts, {}, 4, VERSIONS)
    again = plan.host_plan("box", facts, {"vllm_instances": [chosen["recommended"]["instance"]]}, 4, VERSIONS)
    (instance,) = again["instances"]
    row = rows(chosen)[instance["model"]]
    flags = {item["flag"]: item["value"] for item in instance["flags"]}
    assert instance["assessment"]["fits"]
    assert flags["max_model_len"] == row["max_model_len"]
    assert flags["tensor_parallel_size"] == row["tensor_parallel_size"]
    assert instance["assessment"]["sessions"][65536] >= row["sessions"][65536]
    assert not [item for item in instance["problems"] if item["variable"] == "memory"]


@pytest.mark.parametrize("machine", MACHINES)
def test_report_is_no_wider_than_a_terminal(machine: str) -> None:
    report = lines(planned(machine, {"vllm_instances": [{"name": "coder", "model": "qwen2.5-72b-instruct"}]}))
    assert max(map(len, report.splitlines())) <= plan_report.WIDTH
    assert report.count("estimates, not measurements") == 1


def test_old_cpu_and_chat_only_are_told() -> None:
    old = planned({"cpu": "E5-2680 v2", "sockets": 2, "memory_gib": 128, "isa": ["avx"]})
    assert old["recommended"] is None
    assert all("AVX2" in row["why"][0] for row in old["models"])
    assert "Recommended: nothing" in lines(old)
    host = planned(MACHINES[1])
    for row in host["models"]:
        if row["tool_calling"] in ("prompted", "none"):
            assert any("tool calls" in note for note in row["notes"]), row["model"]


def test_too_little_disk_is_a_note() -> None:
    host = planned({"gpus": [{"name": "H20", "count": 4}], "disk_free_gib": 100})
    row = rows(host)["qwen3-235b-a22b-instruct-2507-fp8"]
    assert any("too little disk" in note for note in row["notes"])


def test_gpus_that_cannot_be_used_are_told() -> None:
    facts = {**plan.facts_of("32 GB laptop"), "nvidia_devices": 2}
    assert "2 NVIDIA devices without a loaded driver" in lines(plan.host_plan("box", facts, {}, 4, VERSIONS))
    facts["nvidia_driver"] = "580.95.05"
    host = plan.host_plan("box", facts, {}, 4, VERSIONS)
    assert "no GPU could be listed" in lines(host)
    assert host["models"] == []
    plan_report.page(plan.plan([host], 4))


# --- what the inventory asks -------------------------------------------------------------------------------------


def test_each_flag_has_an_origin() -> None:
    variables = {
        "vllm_instances": [
            {"name": "coder", "model": "qwen3-coder-30b-a3b-instruct", "max_model_len": 98304, "flags": {"seed": 7}}
        ],
        "vllm_flags": {"max_num_batched_tokens": 4096},
    }
    host = planned("H20", variables)
    (instance,) = host["instances"]
    origins = {item["flag"]: (item["value"], item["origin"]) for item in instance["flags"]}
    assert origins["max_model_len"] == (98304, "instance coder")
    assert origins["seed"] == (7, "instance coder")
    assert origins["max_num_batched_tokens"] == (4096, "vllm_flags")
    assert origins["tool_call_parser"] == ("qwen3_coder", "catalogue qwen3-coder-30b-a3b-instruct")
    assert origins["enable_prefix_caching"][1] == "engine default"
    assert origins["max_num_seqs"][1] == "capacity of this host"
    report = lines(host)
    assert "GiB weights + " in report
    (line,) = [line for line in report.splitlines() if "--max-model-len" in line]
    assert line.split() == ["--max-model-len", "98304", "instance", "coder"]


def test_cpu_engines_get_what_the_role_gives_them() -> None:
    host = planned(MACHINES[0], {"vllm_instances": [{"name": "coder", "model": "qwen3-coder-30b-a3b-instruct"}]})
    (instance,) = host["instances"]
    flags = {item["flag"]: (item["value"], item["origin"]) for item in instance["flags"]}
    assert flags["dtype"] == ("bfloat16", "accelerator")
    assert "|" in instance["environment"]["VLLM_CPU_OMP_THREADS_BIND"]


BROKEN: list[Any] = [
    "coder",
    ["coder"],
    [{}],
    [{"name": "coder"}],
    [{"name": "coder", "model": "no-such-model"}],
    [{"name": "coder", "model": {"id": 1}}],
    [{"name": "coder", "model": "qwen3-coder-30b-a3b-instruct", "max_model_len": "long"}],
    [{"name": "coder", "model": "qwen3-coder-30b-a3b-instruct", "flags": ["--x"]}],
    [{"name": "coder", "model": "qwen3-coder-30b-a3b-instruct", "devices": "0"}],
    [{"name": ["x"], "model": ["y"], "flags": {1: {2: [None]}}, "environment": 3}],
]


@pytest.mark.parametrize("instances", BROKEN, ids=repr)
def test_broken_inventory_gets_its_problems_and_the_table(instances: Any) -> None:
    host = planned("H20", {"vllm_instances": instances})
    found = [*host["problems"], *(item for instance in host["instances"] for item in instance["problems"])]
    assert found
    report = " ".join(lines(host).split())
    assert " → " in report
    assert "qwen3-coder-30b-a3b-instruct" in report
    plan_report.page(plan.plan([host], 4))


def test_unset_instances_are_no_problem() -> None:
    facts = {**plan.facts_of("H20"), "described": False}
    host = plan.host_plan("box", facts, {}, 4, VERSIONS)
    assert host["problems"] == []
    assert "vllm_instances is not set" in lines(host)


def test_own_models_are_planned_and_broken_ones_named() -> None:
    own = copy.deepcopy(plan.vllm_validation.catalog.entries()["qwen2.5-14b-instruct"])
    own.update(id="mine", title="<script>alert(1)</script>", source={"path": "/data/mine"})
    host = planned("H20", {"vllm_models": [own, {"id": "half"}]})
    assert rows(host)["mine"]["fits"]
    assert any(item["variable"].startswith("vllm_models[1]") for item in host["problems"])


def test_memory_in_use_by_others_is_told() -> None:
    facts = plan.facts_of("dual E5-2680 v4, 363 GB of which 50 GB are free")
    variables = {"vllm_instances": [{"name": "coder", "model": "qwen3-coder-30b-a3b-instruct"}]}
    host = plan.host_plan("box", facts, variables, 4, VERSIONS)
    assert "are left by what runs there now" in " ".join(lines(host).split())


def test_secrets_stay_out() -> None:
    variables = {
        "vllm_instances": [
            {
                "name": "coder",
                "model": "qwen3-coder-30b-a3b-instruct",
                "flags": {"api_key": "swordfish", "hf_token": "swordfish"},
                "environment": {"HF_TOKEN": "swordfish", "OMP_NUM_THREADS": 8},
            }
        ],
        "vllm_environment": {"AWS_SECRET_ACCESS_KEY": "swordfish"},
    }
    found = plan.plan([planned("H20", variables)], 4)
    whole = json.dumps(found) + plan_report.page(found) + "\n".join(plan_report.text(found))
    assert "OMP_NUM_THREADS" in whole
    assert "swordfish" not in whole


# --- facts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_saved_facts_give_the_same_plan(machine: str, tmp_path: Path) -> None:
    facts = plan.saved(plan.facts_of(machine))
    (tmp_path / "box.json").write_text(json.dumps(facts), encoding="utf-8")
    first = plan.host_plan("box", facts, {}, 4, VERSIONS)
    for wish in (str(tmp_path / "box.json"), json.loads(json.dumps(facts))):
        assert plan.host_plan("box", plan.facts_of(wish), {}, 4, VERSIONS) == first
    json.dumps(first)


def test_saved_facts_hold_no_accounts_or_addresses() -> None:
    facts = {
        **plan.facts_of("H20"),
        "accounts": ["alice"],
        "listeners": {"22": [{"address": "10.0.0.1", "process": "sshd"}]},
        "active_units": ["vllm@coder.service"],
    }
    facts["gpus"][0]["uuid"] = "GPU-1234"
    text = json.dumps(plan.saved(facts))
    for word in ("alice", "sshd", "10.0.0.1", "vllm@", "GPU-1234"):
        assert word not in text


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "{}", '{"memory": 3}', '{"memory": {"total": "x"}, "numa": [1]}', '{"cpu": {"a": 1}}']
)
def test_files_that_hold_no_facts_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "box.json").write_text(content, encoding="utf-8")
    with pytest.raises(hardware.DescriptionError):
        plan.facts_of(str(tmp_path / "box.json"))


# --- the page ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags in order; fails on one that is closed without having been opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else() -> None:
    variables = {"vllm_instances": [{"name": "coder", "model": "qwen2.5-72b-instruct"}, {"name": "x", "model": "y"}]}
    hosts = [planned(machine, variables, host=f"box{at}") for at, machine in enumerate(MACHINES)]
    text = plan_report.page(plan.plan([*hosts, {"host": "ghost", "error": "it could not be reached"}], 4))
    page = Page(text)
    assert page.open == []
    assert page.tags.count("h2") == len(hosts) + 2
    assert not page.addresses
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    for host in hosts:
        assert host["recommended"]["model"] in text


def test_page_escapes_what_others_wrote() -> None:
    evil = "<script>alert('x')</script>\"&\x1b[31m"
    own = copy.deepcopy(plan.vllm_validation.catalog.entries()["qwen2.5-14b-instruct"])
    own.update(id="mine", title=evil, source={"path": "/data/mine"}, agentic_coding=None)
    own["agentic_coding"] = {"score": 100, "benchmark": evil, "source": "https://example.org"}
    own["faults"] = []
    host = planned("H20", {"vllm_models": [own], "vllm_instances": [{"name": evil, "model": evil}]}, host=evil)
    host["described"] = evil
    host["notes"] = [evil]
    assert evil in [row["title"] for row in host["models"]]
    found = plan.plan([host, {"host": evil, "error": evil}], 4)
    assert "script" not in Page(plan_report.page(found)).tags
    assert "\x1b" not in "\n".join(plan_report.text(found))


# --- the playbook and the command --------------------------------------------------------------------------------


def playbook(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ansible-playbook", "playbooks/plan.yml", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_SSH_RETRIES": "0", **more},
    )


def test_playbook_plans_for_described_unreachable_and_real_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        """
engines:
  hosts:
    wished:
      capacity_plan_hardware: 4× H20
      vllm_instances:
        - {name: coder, model: qwen3-235b-a22b-instruct-2507-fp8}
        - {name: other, model: qwen3-235b-a22b-instrct-2507-fp8, port: 8001}
    ghost:
      ansible_host: 192.0.2.1
    here:
      ansible_connection: local
      ansible_python_interpreter: "{{ ansible_playbook_python }}"
      vllm_instances: "{{ nobody_defined_this }}"
      vllm_variant: gpu
      # Whoever may not become root can plan all the same.
      ansible_become: true
      ansible_become_user: nobody
      ansible_become_exe: /nonexistent/sudo
""",
        encoding="utf-8",
    )
    done = playbook("-i", str(tmp_path / "hosts.yml"), "-e", f"capacity_plan_output={tmp_path}/plan")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert "ghost Not planned for: Failed to connect" in text
    assert "its value cannot be worked out: 'nobody_defined_this' is undefined" in text
    assert "vllm_variant = 'gpu'" in text
    assert "did you mean `qwen3-235b-a22b-instruct-2507-fp8`?" in text
    found = json.loads((tmp_path / "plan/plan.json").read_text(encoding="utf-8"))
    wished, ghost, here = found["hosts"]
    assert ghost.keys() == {"host", "error"}
    assert wished["instances"][0]["command"][:2] == ["vllm", "serve"]
    assert here["kind"] == "cpu" or here["hardware"]
    assert sorted(path.name for path in (tmp_path / "plan/facts").iterdir()) == ["here.json", "wished.json"]
    again = plan.host_plan("here", plan.facts_of(str(tmp_path / "plan/facts/here.json")), {}, 4, VERSIONS)
    assert json.loads(json.dumps(again["models"])) == here["models"]
    Page((tmp_path / "plan/plan.html").read_text(encoding="utf-8"))


def test_playbook_names_a_description_that_nobody_understands(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        "engines: {hosts: {box: {capacity_plan_hardware: 3 crystal balls}}}\n", encoding="utf-8"
    )
    done = playbook("-i", str(tmp_path / "hosts.yml"), "-e", f"capacity_plan_output={tmp_path}/plan", "--check")
    assert done.returncode != 0
    assert "'3 crystal balls' is not understood" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "plan").exists()


def inventory_tool(target: Path, *descriptions: str) -> subprocess.CompletedProcess[str]:
    command = ["python", "tools/plan_inventory.py", str(target), *descriptions]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command_names_hosts_after_their_descriptions(tmp_path: Path) -> None:
    facts = tmp_path / "box.json"
    facts.write_text(json.dumps(plan.facts_of("H20")), encoding="utf-8")
    target = tmp_path / "hosts.yml"
    done = inventory_tool(target, "4× H20", "4x h20", str(facts), *MACHINES[:1])
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        ["ansible-inventory", "-i", str(target), "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    hosts = json.loads(listed.stdout)["engines"]["hosts"]
    assert hosts == ["4x-h20", "4x-h20-2", "box", "dual-e5-2680-v4-363-gb-of-which-238-gb"]


@pytest.mark.parametrize("text", ["{{ lookup('pipe', 'touch pwned') }}", "a toaster", "", "/nowhere/box.json"])
def test_command_refuses_in_one_message(text: str, tmp_path: Path) -> None:
    done = inventory_tool(tmp_path / "hosts.yml", text)
    assert done.returncode == 1
    assert done.stderr.startswith("plan: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "hosts.yml").exists()


CLASSES = {
    "laptop-cpu": "32 GB laptop",
    "dual-xeon": "dual E5-2680 v4, 363 GB of which 238 GB are free",
    "gpu-24": "RTX 4090, 64 GB",
    "gpu-80": "H100 80 GB",
    "gpu-4x80": "4× H100 80 GB",
    "gpu-8x141": "8× H200, 2 TB",
}


@pytest.mark.parametrize(("name", "machine"), CLASSES.items())
def test_the_catalogue_recommends_what_the_plan_does(name: str, machine: str) -> None:
    entries = plan.catalog.shipped()
    chosen = planned(machine)["recommended"]["model"]
    assert name in entries[chosen]["choice_for"], chosen
    # Whatever the catalogue names for such a machine fits there, or on the older one of that size.
    older = {"gpu-4x80": "4× A100 80 GB"}.get(name, machine)
    fitting = {row["model"] for text in (machine, older) for row in planned(text)["models"] if row["fits"]}
    assert {key for key, entry in entries.items() if name in (entry.get("choice_for") or [])} <= fitting


def test_nothing_is_recommended_that_the_disk_cannot_hold() -> None:
    host = planned("H100 80 GB, 256 GB, 25 GB disk")
    table = {row["model"]: row for row in host["models"]}
    assert "too little disk" in table["qwen3.8-27b-fp8"]["notes"][-1]
    assert table[host["recommended"]["model"]]["disk_gib"] < 25


def test_every_model_of_the_catalogue_has_its_place() -> None:
    places = plan.catalog.preference()
    assert {name for name in plan.catalog.shipped() if name not in places} == {"loopback"}
