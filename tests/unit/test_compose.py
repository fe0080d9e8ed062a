"""The Compose export: what is in a project, that it is sound, and that exporting again changes nothing."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.action.compose_project import kind_of, values_of
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import catalog, compose, hardware, vllm_flags
from store_world import REPO, World

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"engine": "docker.io/example/engine:1@sha256:" + "a" * 64, "gateway": "docker.io/example/gateway:1"}

#: The five models that the project was asked for, on hardware that has room for them.
MODELS = {
    "qwen3-235b-a22b-instruct-2507-fp8": "4× H20, 1 TB",
    "qwen2.5-coder-32b-instruct": "2× A100 80 GB, 512 GB",
    "qwen2.5-72b-instruct": "4× A100 80 GB, 512 GB",
    "qwen2.5-14b-instruct": "A100 80 GB, 256 GB",
    "deepseek-coder-v2-lite-instruct": "A100 80 GB, 256 GB",
}
CPU = {
    "qwen2.5-coder-32b-instruct": "dual Xeon 6430, 512 GB",
    "qwen2.5-14b-instruct": "dual Xeon 6430, 512 GB",
    "loopback": "8 cores AVX2, 24 GB",
}
CASES = [(model, text) for machines in (MODELS, CPU) for model, text in machines.items()]
WITH_OLLAMA = [(model, text) for model, text in CASES if model != "loopback"]


def inputs(text: str, instances: list[dict[str, Any]], runs: str = "vllm", **more: Any) -> compose.Inputs:
    """What the action plugin would make of a described machine."""
    facts = hardware.describe(text) if text else {}
    source = {
        "vllm_instances": instances,
        "litellm_users": more.pop("users", [{"name": "alice"}]),
        **more.pop("values", {}),
    }
    values = values_of(source)
    kind = kind_of("box", values, facts, [])
    return compose.Inputs(
        host="box",
        engine=values,
        gateway=values,
        url="http://127.0.0.1:4000",
        address="127.0.0.1",
        kind=kind,
        machine=hardware.machine(facts, kind) if facts else None,
        facts=facts,
        hardware=text,
        images=IMAGES,
        version=str(pin(f"vllm.{kind}.version")),
        runs=runs,
        **more,
    )


def exported(model: str, text: str, runs: str = "vllm", **more: Any) -> compose.Project:
    made = compose.project(inputs(text, [{"name": "coder", "model": model}], runs, **more))
    assert not made.problems, made.problems
    return made


@functools.cache
def schema() -> Any:
    text = (ROOT / "tests/compose/compose-spec.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


#: Capabilities that services may name, by the first word of their names.
ALLOWED: dict[str, list[list[str]]] = {
    "engine": [[], ["SYS_NICE"]],
    "weights": [["DAC_OVERRIDE"]],
    "prepare": [["CHOWN", "DAC_READ_SEARCH"]],
}


def sound(made: compose.Project) -> None:
    """What holds for every project."""
    document = yaml.safe_load(made.files["docker-compose.yml"])
    assert document == json.loads(json.dumps(made.document)), "the file says what was worked out"
    wrong = [f"{list(error.absolute_path)}: {error.message}" for error in schema().iter_errors(document)]
    assert not wrong, wrong
    assert document["networks"]["engines"] == {"internal": True}
    named = set(re.findall(r"\$\{(\w+):\?", made.files["docker-compose.yml"]))
    assert named == set(made.secret_names)
    for name, service in document["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("cap_add", []) in ALLOWED.get(name.split("-")[0], [[]])
        # Only what runs once is root.
        assert service["user"] == ("0:0" if name.split("-")[0] in ("prepare", "weights") else "65532:65532")
        assert (service["restart"] == "no") == (name.split("-")[0] in ("prepare", "weights", "pull"))
        assert service["logging"]["options"]["max-size"]
        assert ("ports" in service) == (name == "gateway")
        if name.startswith("engine-"):
            assert service["networks"] == ["engines"], "an engine has no way out"
            assert all(part["read_only"] for part in service["volumes"] if part["type"] == "bind")
        if name.startswith(("engine-", "gateway")):
            assert service["healthcheck"]["start_period"]
            assert service["restart"] == "unless-stopped"
            assert int(service["stop_grace_period"].rstrip("s")) >= 60
        for part in service["volumes"]:
            assert part["type"] in ("volume", "tmpfs") or part["bind"] == {"create_host_path": False}
    gateway = document["services"]["gateway"]
    assert gateway["ports"] == ["127.0.0.1:4000:4000"]
    assert all(how == {"condition": "service_healthy"} for how in gateway["depends_on"].values())
    config = yaml.safe_load(made.files["litellm/config/config.yaml"])
    for item in config["model_list"]:
        where = re.fullmatch(r"http://([\w-]+):\d+/v1", item["litellm_params"]["api_base"])
        assert where
        assert where.group(1) in gateway["depends_on"]
        assert item["litellm_params"]["api_key"].removeprefix("os.environ/") in gateway["environment"]
    for name, text in made.files.items():
        assert not re.search(r"sk-[\w-]{20,}", text), f"{name} holds a key"


@pytest.mark.parametrize(("model", "text"), CASES)
def test_a_project_with_vllm_is_sound_and_says_what_the_unit_says(model: str, text: str) -> None:
    made = exported(model, text)
    sound(made)
    given = inputs(text, [{"name": "coder", "model": model}])
    entries = catalog.entries()
    (unit,) = vllm_flags.effective_instances(
        given.engine["vllm_instances"],
        entries,
        given.version,
        accelerator_flags=compose.plan.accelerator_flags()[given.kind],
        machine=given.machine,
        environment=compose.engine_environment(),
        # The unit of a container, which has its kernels: a virtual environment's start takes longer.
        runtimes={"coder": "docker"},
    )
    service = made.document["services"]["engine-coder"]
    argv = [argument.replace("$$", "$") for argument in service["command"]]
    assert argv[argv.index("--host") + 1] == "0.0.0.0"
    argv[argv.index("--host") + 1] = "127.0.0.1"
    assert argv == unit["argv"]
    # The guard stands before the engine and finds what it needs.
    assert argv[argv.index("--middleware") + 1] == "modelhost_engine_guard.EngineGuard"
    assert service["environment"]["PYTHONPATH"] == "/opt/modelhost/vllm/share/guard"
    assert "share/guard/modelhost_engine_guard.py" in made.files
    # Volumes are the account's before it starts.
    own = [part["target"] for part in service["volumes"] if part["type"] == "volume"]
    assert made.document["services"]["prepare"]["command"] == own
    assert service["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    environment = {name: value for name, value in unit["environment"].items() if name != "CUDA_VISIBLE_DEVICES"}
    assert {name: service["environment"][name] for name in environment} == environment
    known = vllm_flags.engine_description(given.version)["flags"]
    for argument in argv[1:]:
        if argument.startswith("--"):
            flag = argument[2:].split("=")[0].replace("-", "_")
            assert flag in known or flag.removeprefix("no_") in known, argument
    # What flags name is mounted, and what this project ships lies in the project.
    targets = [part["target"] for part in service["volumes"]]
    for argument in argv:
        if argument.startswith("/"):
            assert any(argument == target or argument.startswith(f"{target}/") for target in targets), argument
        if argument.startswith(vllm_flags.SHARE):
            assert "share" + argument[len(vllm_flags.SHARE) :] in made.files
    start = int(service["healthcheck"]["start_period"].rstrip("s"))
    assert start == vllm_flags.start_timeout(entries[model])


@pytest.mark.parametrize(("model", "text"), WITH_OLLAMA)
def test_a_project_with_ollama_is_sound(model: str, text: str) -> None:
    made = exported(model, text, "ollama")
    sound(made)
    own = catalog.entries()[model]["ollama"]
    service = made.document["services"]["engine-coder"]
    context = int(service["environment"]["OLLAMA_CONTEXT_LENGTH"])
    assert 0 < context <= own["context"]
    assert int(service["environment"]["OLLAMA_NUM_PARALLEL"]) >= 1
    assert service["environment"]["OLLAMA_KEEP_ALIVE"] == "-1"
    pull = made.document["services"]["pull-coder"]
    assert pull["command"] == [own["model"]]
    assert pull["networks"] == ["outside"]
    assert pull["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    assert service["depends_on"] == {"pull-coder": {"condition": "service_completed_successfully"}}
    config = yaml.safe_load(made.files["litellm/config/config.yaml"])
    assert {item["litellm_params"]["model"] for item in config["model_list"]} == {f"hosted_vllm/{own['model']}"}
    assert {item["model_info"]["max_input_tokens"] for item in config["model_list"]} == {context}
    assert any("4-bit" in note for note in made.notes)
    if context < 65536:
        assert any("too few for Claude Code" in note for note in made.notes)


def test_ollama_gets_no_more_context_than_its_file_has() -> None:
    made = exported("qwen2.5-72b-instruct", "4× A100 80 GB, 512 GB", "ollama")
    assert made.document["services"]["engine-coder"]["environment"]["OLLAMA_CONTEXT_LENGTH"] == "32768"
    long = exported("qwen3-235b-a22b-instruct-2507", "4× H20, 1 TB", "ollama")
    assert long.document["services"]["engine-coder"]["environment"]["OLLAMA_CONTEXT_LENGTH"] == "131072"


def test_ollama_models_in_a_folder_are_not_pulled() -> None:
    made = exported("qwen2.5-14b-instruct", "A100 80 GB", "ollama", ollama_models="/srv/ollama")
    sound(made)
    assert set(made.document["services"]) == {"engine-coder", "gateway"}
    (part,) = made.document["services"]["engine-coder"]["volumes"]
    assert (part["source"], part["target"], part["read_only"]) == ("/srv/ollama", "/models", True)


def test_a_model_that_does_not_fit_is_refused_with_what_would() -> None:
    made = compose.project(inputs("RTX 4090, 64 GB", [{"name": "coder", "model": "qwen2.5-72b-instruct"}]))
    (found,) = made.problems
    assert found["variable"] == "vllm_instances[0].model"
    assert "GiB weights" in found["problem"]
    assert found["fix"].startswith("set ")
    again = compose.project(inputs("RTX 4090, 64 GB", [{"name": "coder", "model": "qwen2.5-72b-instruct"}], "ollama"))
    assert again.problems, "44 GiB in 24"


def test_a_model_that_ollama_does_not_have_is_refused() -> None:
    made = compose.project(inputs("A100 80 GB", [{"name": "coder", "model": "gpt-oss-20b"}], "ollama"))
    (found,) = made.problems
    assert "qwen2.5-coder-32b-instruct" in found["fix"]
    assert not made.files


def test_without_hardware_the_catalogue_decides() -> None:
    made = exported("qwen2.5-72b-instruct", "")
    sound(made)
    command = made.document["services"]["engine-coder"]["command"]
    assert command[command.index("--max-model-len") + 1] == "131072"
    notes: list[str] = []
    values = values_of({"vllm_instances": [{"name": "coder", "model": "qwen2.5-72b-instruct"}]})
    assert kind_of("box", values, {}, notes) == "cuda"
    assert "compose_hardware" in notes[0]
    values = values_of({"vllm_instances": [{"name": "coder", "model": "loopback"}]})
    assert kind_of("box", values, {}, notes) == "cpu"


# --- GPUs --------------------------------------------------------------------------------------------------------


def devices(made: compose.Project) -> Any:
    service = made.document["services"]["engine-coder"]
    assert "CUDA_VISIBLE_DEVICES" not in service["environment"], "inside, GPUs are numbered from 0"
    if "devices" in service:
        return service["devices"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    return device.get("device_ids") or device["count"]


def test_an_engine_gets_the_gpus_that_it_needs() -> None:
    assert devices(exported("qwen2.5-14b-instruct", "4× A100 80 GB")) == ["0", "1"]
    assert devices(exported("qwen2.5-14b-instruct", "A100 80 GB")) == "all"
    assert devices(exported("qwen2.5-14b-instruct", "4× A100 80 GB", gpu="cdi"))[0] == "nvidia.com/gpu=0"
    assert devices(exported("qwen2.5-14b-instruct", "", gpu="cdi")) == ["nvidia.com/gpu=all"]
    # Ollama takes as many of them as it needs.
    assert devices(exported("qwen2.5-14b-instruct", "4× A100 80 GB", "ollama")) == "all"
    chosen = {"name": "coder", "model": "qwen2.5-14b-instruct", "devices": [2, 3]}
    for runs in ("vllm", "ollama"):
        assert devices(compose.project(inputs("4× A100 80 GB", [chosen], runs))) == ["2", "3"]


def test_in_wsl_all_gpus_are_one() -> None:
    given = inputs("4× A100 80 GB", [{"name": "coder", "model": "qwen2.5-14b-instruct"}])
    given.facts["wsl"] = True
    assert devices(compose.project(given)) == "all"


def test_two_instances_have_services_keys_and_gpus_of_their_own() -> None:
    instances = [
        {"name": "coder", "model": "qwen2.5-14b-instruct", "port": 8000},
        {"name": "small", "model": "qwen2.5-14b-instruct-awq", "port": 8001},
    ]
    made = compose.project(inputs("4× A100 80 GB", instances, values={"litellm_default_instance": "coder"}))
    assert not made.problems
    sound(made)
    assert len(made.secret_names) == 3
    got = [
        service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name, service in made.document["services"].items()
        if name.startswith("engine-")
    ]
    assert len(got) == 2
    assert got[0] != got[1]


# --- details -----------------------------------------------------------------------------------------------------


def test_values_reach_the_engine_unchanged() -> None:
    instance = {
        "name": "coder",
        "model": "loopback",
        "environment": {"OWN": "a$b${c}"},
        "flags": {"chat_template": "/srv/$x.jinja", "override_generation_config": {"stop": "$"}},
    }
    made = compose.project(inputs("8 cores AVX2, 24 GB", [instance]))
    sound(made)
    service = made.document["services"]["engine-coder"]
    assert service["environment"]["OWN"] == "a$$b$${c}"
    assert '{"stop":"$$"}' in service["command"]
    assert "/srv/$$x.jinja" in [part.get("source") for part in service["volumes"]]


def test_weights_may_lie_elsewhere() -> None:
    made = exported("qwen2.5-14b-instruct", "A100 80 GB", values={"vllm_models_dir": "/data/models"})
    part = made.document["services"]["engine-coder"]["volumes"][0]
    assert part["source"].startswith("${MODELS_DIR:-/data/models}/Qwen/Qwen2.5-14B-Instruct/")
    assert part["target"].startswith("/data/models/Qwen/")
    own = {"id": "mine", "source": {"path": "/srv/mine"}, "max_model_len": 65536}
    made = compose.project(inputs("", [{"name": "coder", "model": own}]))
    sound(made)
    assert made.document["services"]["engine-coder"]["volumes"][0]["source"] == "/srv/mine"
    assert "weights-coder" not in made.document["services"]
    assert "/srv/mine" in made.files["README.md"]


def test_memory_limits_are_those_of_the_units() -> None:
    made = exported("loopback", "8 cores AVX2, 24 GB", values={"vllm_memory_max": "50%", "litellm_memory_max": "2G"})
    sound(made)
    assert made.document["services"]["engine-coder"]["mem_limit"] == 12 * 2**30
    assert made.document["services"]["gateway"]["mem_limit"] == 2 * 2**30


def test_users_of_other_hosts_are_left_out_and_said() -> None:
    users = [{"name": "alice", "models": ["coder", "other"]}, {"name": "carol", "models": ["other"]}]
    values = {"litellm_default_instance": "other", "litellm_aliases": {"mine": "coder", "theirs": "other"}}
    made = exported("loopback", "8 cores AVX2, 24 GB", users=users, values=values)
    sound(made)
    assert [user["name"] for user in made.access["users"]] == ["alice", "verify"]
    assert "mine" in made.access["models"]
    assert "theirs" not in made.access["models"]
    assert "claude-*" in made.access["models"]
    assert any("carol" in note for note in made.notes)
    assert any("litellm_default_instance" in note for note in made.notes)


def test_each_user_gets_settings_without_a_key() -> None:
    made = exported("loopback", "8 cores AVX2, 24 GB", users=[{"name": "alice"}, {"name": "bob", "key": "sk-own"}])
    settings = json.loads(made.files["clients/alice.json"])
    assert settings["apiKeyHelper"] == "cat ~/.modelhost.key"
    assert settings["env"]["ANTHROPIC_MODEL"] == "local-claude-coder"
    assert 'ANTHROPIC_AUTH_TOKEN="$(cat ~/.modelhost.key)"' in made.files["clients/bob.sh"]
    assert made.own_keys == {"bob": "sk-own"}
    assert "`clients/bob.json`" in made.files["README.md"]
    assert "clients/verify.json" not in made.files


def test_the_file_with_keys_is_only_added_to() -> None:
    first = compose.env_file("", ["KEY_A", "KEY_B"], {"COMPOSE_PROJECT_NAME": "modelhost-box"})
    keys = dict(line.split("=", 1) for line in first.splitlines() if not line.startswith("#"))
    assert all(len(keys[name]) > 40 for name in ("KEY_A", "KEY_B"))
    assert keys["KEY_A"] != keys["KEY_B"]
    assert compose.env_file(first, ["KEY_A", "KEY_B"], {"COMPOSE_PROJECT_NAME": "other"}) == first
    more = compose.env_file(first + "MODELS_DIR=/data\n", ["KEY_A", "KEY_C"], {})
    assert more.startswith(first + "MODELS_DIR=/data\nKEY_C=sk-")
    emptied = compose.env_file(first.replace(keys["KEY_A"], ""), ["KEY_A"], {})
    assert emptied.splitlines()[-1].startswith("KEY_A=sk-"), "the last line of a name counts"


def test_an_image_needs_a_digest() -> None:
    known = {"repository": "docker.io/a/b", "tag": "v1", "digest": "sha256:" + "1" * 64}
    assert compose.pinned(known, "", False) == ("docker.io/a/b:v1@sha256:" + "1" * 64, "")
    unknown = {**known, "digest": "unverified"}
    assert "no digest" in compose.pinned(unknown, "", False)[1]
    assert compose.pinned(unknown, "", True) == ("docker.io/a/b:v1", "")
    assert compose.pinned(unknown, "mirror/b@sha256:2", False) == ("mirror/b@sha256:2", "")


def test_the_same_inventory_gives_the_same_files() -> None:
    one, other = (exported("qwen2.5-coder-32b-instruct", "4× H20, 1 TB") for _time in range(2))
    assert one.files == other.files
    assert one.document == other.document


def test_docker_compose_takes_it(tmp_path: Path) -> None:
    """Docker's own reading of the file, where version 2 is here."""
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker Compose 2 here")
    for runs, cases in (("vllm", CASES), ("ollama", WITH_OLLAMA)):
        for model, text in cases:
            made = exported(model, text, runs)
            (tmp_path / "docker-compose.yml").write_text(made.files["docker-compose.yml"], encoding="utf-8")
            env = compose.env_file("", made.secret_names, made.environment)
            (tmp_path / ".env").write_text(env, encoding="utf-8")
            done = subprocess.run(
                ["docker", "compose", "--profile", "*", "config", "--quiet"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{model} with {runs}: {done.stderr}"


# --- by the playbook ---------------------------------------------------------------------------------------------


def image_id(word: str) -> str:
    return "sha256:" + hashlib.sha256(word.encode()).hexdigest()


INVENTORY: dict[str, Any] = {
    "engines": {
        "hosts": {
            "box": {
                # Nobody is there to be asked.
                "ansible_host": "192.0.2.1",
                "vllm_instances": [{"name": "coder", "model": "qwen2.5-coder-32b-instruct"}],
                "compose_hardware": "2× A100 80 GB, 512 GB",
                "vllm_image": image_id("vllm"),
                "litellm_image": image_id("litellm"),
            }
        }
    },
    "gateways": {"hosts": {"box": {"litellm_users": [{"name": "alice"}]}}},
}


def play(folder: Path, inventory: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    command = ["ansible-playbook", "playbooks/compose.yml", "-i", str(folder / "hosts.yml")]
    where = ["-e", f"compose_directory={folder}/out"]
    return subprocess.run(
        [*command, *where, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    )


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_export_by_the_playbook(tmp_path: Path) -> None:
    """Check mode, the first export, the second, a new user: modes, keys, what is shown."""
    checked = play(tmp_path, INVENTORY, "--check", "--diff")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not (tmp_path / "out").exists(), "check mode writes nothing"
    first = play(tmp_path, INVENTORY, "--diff")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "hardware: as described, 2× A100 80 GB, 512 GB" in first.stdout
    box = tmp_path / "out/box"
    assert box.stat().st_mode & 0o777 == 0o700
    files = tree(box)
    secret = {".env", "keys/alice", "keys/verify"}
    assert {name for name, (_text, mode) in files.items() if mode == 0o600} == secret
    assert {mode for name, (_text, mode) in files.items() if name not in secret} == {0o644}
    assert "share/templates/qwen2.5-coder.jinja" in files
    keys = re.findall(r"sk-[\w-]{20,}", "".join(files[name][0] for name in secret))
    assert len(set(keys)) == 4, "the engine's, LiteLLM's own, one for each user"
    shown = first.stdout + first.stderr
    rest = "".join(text for name, (text, _mode) in files.items() if name not in secret)
    hashes = [entry["sha256"] for entry in json.loads(files["litellm/config/key_hashes.json"][0])["users"]]
    assert hashes == [
        hashlib.sha256(files[f"keys/{name}"][0].strip().encode()).hexdigest() for name in ("alice", "verify")
    ]
    assert "enable-auto-tool-choice" in shown, "--diff shows the files"
    for key in keys:
        assert key not in shown
        assert key not in rest
    assert not any(digest in shown for digest in hashes)
    document = yaml.safe_load(files["docker-compose.yml"][0])
    assert document["services"]["engine-coder"]["image"] == image_id("vllm")

    second = play(tmp_path, INVENTORY)
    assert "changed=0" in second.stdout, second.stdout
    assert tree(box) == files

    more = copy.deepcopy(INVENTORY)
    more["gateways"]["hosts"]["box"]["litellm_users"].append({"name": "bob"})
    third = play(tmp_path, more)
    assert third.returncode == 0, third.stdout + third.stderr
    later = tree(box)
    assert {name: later[name] for name in secret} == {name: files[name] for name in secret}, "no key was made anew"
    assert "keys/bob" in later


def test_an_export_without_hardware_says_so(tmp_path: Path) -> None:
    """The host is asked, does not answer, and no plan has saved its facts. Its gateway is another host."""
    inventory = copy.deepcopy(INVENTORY)
    box = inventory["engines"]["hosts"]["box"]
    del box["compose_hardware"]
    box["vllm_bind_address"] = "192.0.2.1"
    box["compose_ollama_image"] = "registry.example/ollama:1"
    front = {"litellm_bind_address": "10.0.0.5", "litellm_users": [{"name": "alice"}], "litellm_image": image_id("b")}
    inventory["gateways"] = {"hosts": {"front": front}}
    facts = tmp_path / "facts.json"
    done = play(tmp_path, inventory, "-e", f"compose_saved_facts={facts}", "-e", "compose_engine=ollama")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hardware: not known" in done.stdout
    assert "taken for a host with NVIDIA GPUs" in done.stdout
    assert "registry.example/ollama:1 is taken by its tag alone" in done.stdout
    assert "10.0.0.5 is an address of front" in done.stdout
    document = yaml.safe_load((tmp_path / "out/box/docker-compose.yml").read_text(encoding="utf-8"))
    assert document["services"]["gateway"]["ports"] == ["127.0.0.1:4000:4000"]
    facts.write_text(json.dumps(hardware.describe("2× A100 80 GB, 512 GB")), encoding="utf-8")
    done = play(tmp_path, inventory, "-e", f"compose_saved_facts={facts}", "-e", "compose_engine=ollama")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"hardware: the facts in {facts}" in done.stdout


def test_a_broken_inventory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    inventory = copy.deepcopy(INVENTORY)
    inventory["engines"]["hosts"]["box"]["vllm_instances"][0]["model"] = "deepseek-coder-v2-lite-instruct"
    done = play(tmp_path, inventory)
    assert done.returncode != 0
    assert "allow_chat_only" in done.stdout + done.stderr
    wrong = play(tmp_path, INVENTORY, "-e", "compose_hardware='7× nonsense'")
    assert wrong.returncode != 0
    assert "compose_hardware" in wrong.stdout + wrong.stderr
    small = play(tmp_path, INVENTORY, "-e", "compose_hardware='RTX 4090'")
    assert small.returncode != 0
    assert "GiB weights" in small.stdout + small.stderr
    assert not (tmp_path / "out").exists()


def test_weights_come_with_the_files_that_no_hub_has(tmp_path: Path) -> None:
    """The program of the service `weights-<name>`, with the real client."""
    with World(tmp_path) as world:
        url = f"{world.hub.url}/{REPO}/resolve/{world.revision}/README.md"
        extra = {"path": "more/words.txt", "url": url, "size": 10, "sha256": "0" * 64}
        environment = {
            **os.environ,
            "HF_ENDPOINT": world.hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }

        def fetch() -> int:
            command = [sys.executable, "-c", compose.FETCH, REPO, world.revision, str(tmp_path / "model")]
            return subprocess.run([*command, json.dumps([extra])], env=environment, check=False).returncode

        assert fetch() != 0, "a file with another hash"
        assert not (tmp_path / "model").exists()
        extra["sha256"] = hashlib.sha256(world.content["README.md"]).hexdigest()
        assert fetch() == 0
        assert (tmp_path / "model/more/words.txt").read_bytes() == world.content["README.md"]
        assert (tmp_path / "model/config.json").read_bytes() == world.content["config.json"]
        world.hub.clear()
        assert fetch() == 0
        assert world.hub.requests == []
