"""Broken inventories: each stops before any host is contacted, with the message that is promised."""

from __future__ import annotations

import copy
import datetime
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.modelhost.serving.plugins.action.validate_inventory import problems_of, wiring
from ansible_collections.modelhost.serving.plugins.lookup.pin import pin
from ansible_collections.modelhost.serving.plugins.module_utils import (
    catalog,
    hardware,
    inventory_validation,
    litellm_config,
    problems,
    site_validation,
    vllm_backends,
    vllm_flags,
    vllm_model_validation,
    vllm_validation,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
VERSION = str(pin("vllm.cpu.version"))
VERSIONS = {
    "cpu": VERSION,
    "cuda": VERSION,
    "claude_code": str(pin("claude_code.version")),
    # As they stand before `./run pins` has filled them.
    "image_cpu": "docker.io/vllm/vllm-openai-cpu@unverified",
    "image_cuda": "docker.io/vllm/vllm-openai@unverified",
    "image_litellm": "ghcr.io/berriai/litellm@unverified",
}
ROWS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "broken_inventories.yml").read_text("utf-8"))

SOUND: dict[str, Any] = {
    "all": {
        "hosts": {
            "box": {
                # Nobody answers there: a run that connects would fail otherwise than promised.
                "ansible_host": "192.0.2.1",
                "vllm_instances": [{"name": "coder", "model": "loopback"}],
                "litellm_users": [{"name": "alice", "models": ["coder"]}],
            }
        },
        "children": {"engines": {"hosts": {"box": {}}}, "gateways": {"hosts": {"box": {}}}},
    }
}


def inventory_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table as a whole inventory."""
    if "inventory" in row:
        return copy.deepcopy(row["inventory"])
    inventory = copy.deepcopy(SOUND)
    inventory["all"]["hosts"]["box"].update(row["set"])
    if row.get("clients"):
        inventory["all"]["children"]["clients"] = {"hosts": {"box": {}}}
    return inventory


def check(inventory: dict[str, Any] | Path) -> list[dict[str, Any]]:
    """What the action finds, with Ansible's own inventory and variables, without starting ansible-playbook."""
    with tempfile.TemporaryDirectory() as folder:
        path = inventory if isinstance(inventory, Path) else Path(folder) / "hosts.yml"
        if not isinstance(inventory, Path):
            path.write_text(yaml.safe_dump(inventory, allow_unicode=True), encoding="utf-8")
        loader = DataLoader()
        # Where site.yml has its playbooks, so that the wiring is at work.
        loader.set_basedir(str(ROOT / "playbooks"))
        sources = InventoryManager(loader=loader, sources=[str(path)])
        manager = VariableManager(loader=loader, inventory=sources)
        return problems_of(HostVars(sources, manager, loader), sources.get_groups_dict())[0]


def playbook(tmp_path: Path, inventory: dict[str, Any], name: str, *options: str) -> tuple[int, str]:
    """ansible-playbook with this inventory, as a user runs it."""
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(path), name, *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "NO_COLOR": "1", "COLUMNS": "4000"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def words() -> dict[str, str]:
    """Lists that a report holds and that grow by themselves."""
    entries, known = catalog.entries(), vllm_flags.engine_description(VERSION)
    tools = (name for name, entry in entries.items() if vllm_model_validation.calls_tools(entry))
    return {
        "{models}": problems.some(entries, "catalog/models/"),
        "{tools}": problems.some(
            sorted(tools, key=lambda name: not entries[name].get("choice_for")), "catalog/models/", 6
        ),
        "{tool_parsers}": ", ".join(known["tool_parsers"]),
        "{reasoning_parsers}": ", ".join(known["reasoning_parsers"]),
        "{kv_cache_dtypes}": ", ".join(known["choices"]["kv_cache_dtype"]),
        "{entry_keys}": ", ".join(catalog.schema()["properties"]),
        "{templates}": ", ".join(sorted(path.name for path in (ROOT / "catalog/templates").glob("*.*"))),
        "{advice source}": catalog.advice(["source"]),
        "{advice id}": catalog.advice(["id"]),
        "{vllm}": VERSION,
        "{claude_code}": VERSIONS["claude_code"],
    }


def promised(row: dict[str, Any], level: str) -> str:
    text = str(row.get(level, "")).strip()
    for word, value in words().items():
        text = text.replace(word, value)
    return text


def said(found: list[dict[str, Any]], level: str) -> str:
    return problems.report([item for item in found if item["level"] == level])


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_table_is_long_enough() -> None:
    assert len({row["name"] for row in ROWS}) == len(ROWS) >= 60
    assert sum("errors" in row for row in ROWS) >= 60
    assert sum(bool(row.get("command_line")) for row in ROWS) >= 12


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_broken_inventories(row: dict[str, Any]) -> None:
    """The whole report is as promised: nothing is missing and nothing is said twice."""
    found = check(inventory_of(row))
    assert said(found, "error") == promised(row, "errors")
    assert said(found, "warning") == promised(row, "warnings")
    # Keys and passwords of the table begin so.
    assert "hunter2" not in problems.report(found)
    for item in found:
        assert item["variable"]
        assert item["problem"]
        assert item["fix"]


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("command_line")], ids=lambda row: str(row["name"]))
def test_broken_inventories_on_the_command_line(tmp_path: Path, row: dict[str, Any]) -> None:
    errors, warnings = promised(row, "errors"), promised(row, "warnings")
    code, out = playbook(tmp_path, inventory_of(row), "site.yml" if errors else "playbooks/validate.yml")
    assert "Traceback" not in out
    assert "hunter2" not in out
    lines = {line.strip() for line in out.splitlines()}
    for line in (errors + "\n" + warnings).splitlines():
        assert line.strip() in lines or f"[WARNING]: {line.strip()}" in lines, f"{line!r} is not in:\n{out}"
    if errors:
        assert code != 0, out
        assert "No host was contacted" in out
        assert "unreachable=0" in out
        # The first play is the check, and no other began.
        assert out.count("PLAY [") == 1
    else:
        assert code == 0, out


def test_all_hosts_in_one_report(tmp_path: Path) -> None:
    hosts = {
        "one": {"vllm_instances": [{"name": "coder", "model": "loopbak"}], "vllm_flags": {"swap_space": 4}},
        "two": {"vllm_instances": [{"name": "coder", "model": "loopback"}], "vllm_flags": {"swap_space": 4}},
        "front": {"litellm_users": [{"name": "alice", "key": "sk-12"}], "litellm_prt": 8080},
    }
    inventory: dict[str, Any] = {"all": {"hosts": hosts, "children": {}}}
    inventory["all"]["children"]["engines"] = {"hosts": {"one": {}, "two": {}}}
    inventory["all"]["children"]["gateways"] = {"hosts": {"front": {}}}
    code, out = playbook(tmp_path, inventory, "site.yml")
    assert code != 0
    for line in (
        "8 problem(s) in the inventory. No host was contacted.",
        "one, two: vllm_flags.swap_space = 4",
        "one: vllm_instances[0].model = 'loopbak'",
        "one, two: vllm_bind_address = '127.0.0.1'",
        "front: litellm_users[0].key",
        "front: litellm_prt",
    ):
        assert line in out, out


def test_limit_does_not_skip_the_check(tmp_path: Path) -> None:
    inventory = inventory_of({"set": {"vllm_variant": "gpu"}})
    code, out = playbook(tmp_path, inventory, "site.yml", "--limit", "box", "--tags", "deploy")
    assert code != 0
    assert "vllm_variant = 'gpu'" in out


def test_preflight_alone_judges_the_inventory_first(tmp_path: Path) -> None:
    inventory = inventory_of({"set": {"vllm_flags": {"swap_space": 4}}})
    inventory["all"]["hosts"]["box"] |= {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    code, out = playbook(tmp_path, inventory, "playbooks/preflight.yml")
    assert code != 0
    assert "1 problem(s) in the inventory. Nothing was changed." in out
    assert "vllm_flags.swap_space = 4" in out


VAULTED = """
all:
  hosts:
    box:
      vllm_instances: "{{ [{'name': 'coder', 'model': nobodys_model}] }}"
      ansible_host: "{{ nobodys_address }}"
      litellm_users:
        - name: alice
          key: !vault |
            $ANSIBLE_VAULT;1.1;AES256
            62313365396662343061393464336163383764373764613633653634306231386433626436623361
            6134333665353966363534333632666535333761666131620a663537646436643839616531643561
            63396265333963386166373373656663666262306336393337363033646666323330316664353063
            3334613264633462620a316261636663626339356466316561373366353466393334613335316233
            3233
  children: {engines: {hosts: {box: {}}}, gateways: {hosts: {box: {}}}}
"""


PLAIN_KEYS = """
all:
  hosts: {box: {}}
  vars:
    vault_key: %s
    plain_key: sk-hunter2-FzR8kq2mW9xTn4vLpH7s
    vllm_instances: [{name: coder, model: loopback}]
    litellm_users:
      - {name: literal, key: sk-hunter2-FzR8kq2mW9xTn4vLpH7t}
      - {name: by-name, key: "{{ vault_key }}"}
      - {name: plain-by-name, key: "{{ plain_key }}"}
      - {name: whole-file, key: "{{ of_a_vaulted_file }}"}
      - {name: elsewhere, key: "{{ lookup('file', '%s') }}"}
      - {name: none}
  children: {engines: {hosts: {box: {}}}, gateways: {hosts: {box: {}}}}
"""


def test_a_key_that_stands_in_the_inventory_is_refused_and_a_vaulted_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2")
    (tmp_path / "key").write_text("sk-hunter2-FzR8kq2mW9xTn4vLpH7u")
    (tmp_path / "group_vars").mkdir()
    whole = tmp_path / "group_vars/all.yml"
    whole.write_text("of_a_vaulted_file: sk-hunter2-FzR8kq2mW9xTn4vLpH7v\n")
    vault = ["ansible-vault", "--vault-password-file", str(tmp_path / "password")]
    subprocess.run([vault[0], "encrypt", *vault[1:], str(whole)], check=True, capture_output=True)
    secret = subprocess.run(
        [vault[0], "encrypt_string", *vault[1:], "sk-hunter2-FzR8kq2mW9xTn4vLpH7w"],
        capture_output=True, text=True, check=True,
    ).stdout.rstrip().replace("\n" + " " * 10, "\n" + " " * 8)  # fmt: skip
    path = tmp_path / "hosts.yml"
    path.write_text(PLAIN_KEYS % (secret, tmp_path / "key"))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(path), *vault[1:], "playbooks/validate.yml"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "4000"},
    )  # fmt: skip
    out = done.stdout + done.stderr
    assert done.returncode != 0
    assert "    box: litellm_users[0].key\n        the key stands as plain text in hosts.yml: whoever reads" in out
    assert "ansible-vault encrypt_string" in out
    assert "1 problem(s)" in out
    warned = "[WARNING]: box: litellm_users[2].key\n    the expression for it in hosts.yml does not lead to a vault"
    assert warned in out
    assert not re.search(r"litellm_users\[[1345]\]", out)
    assert "sk-hunter2" not in out


def test_values_that_cannot_be_worked_out(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(VAULTED)
    lines = problems.report(check(tmp_path / "hosts.yml")).splitlines()
    assert lines[:7] == [
        "box: vllm_instances",
        "    its value cannot be worked out: 'nobodys_model' is undefined",
        "    → mend the expression, or define what it uses",
        "box: ansible_host",
        "    its value cannot be worked out: 'nobodys_address' is undefined",
        "    → mend the expression, or define what it uses",
        "box: litellm_users",
    ]
    assert "undecryptable" in lines[7]
    assert lines[8:] == ["    → pass --ask-vault-pass or --vault-password-file"]


def test_the_command_line_does_not_part_roles_either(tmp_path: Path) -> None:
    code, out = playbook(tmp_path, SOUND, "site.yml", "-e", "vllm_models_dir=/x", "-e", "litellm_port=8080")
    assert code != 0
    assert "command line: vllm_models_dir = '/x'" in out
    assert "1 problem(s) in the inventory" in out


# --- what is sound -----------------------------------------------------------------------------------------------


def test_a_sound_inventory_passes(tmp_path: Path) -> None:
    assert check(SOUND) == []
    code, out = playbook(tmp_path, SOUND, "playbooks/validate.yml")
    assert code == 0, out


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "inventories").iterdir() if path.is_dir()))
def test_our_own_inventories_are_sound(name: str) -> None:
    assert said(check(ROOT / "inventories" / name / "hosts.yml"), "error") == ""


def test_every_catalogue_entry_may_be_asked_for() -> None:
    for name, entry in catalog.entries().items():
        variant = (entry.get("runs_on") or ["cpu"])[0]
        instance = {"name": "coder", "model": name, "allow_chat_only": True}
        found = check(inventory_of({"set": {"vllm_instances": [instance], "vllm_variant": variant}}))
        for item in found:
            # Some revisions are waited for; that is said in so many words.
            assert item["level"] == "warning" or "no verified revision" in item["problem"], item


def test_what_replaces_a_wired_variable_is_a_variable() -> None:
    assert set(wiring()) <= set(inventory_validation.WIRED)
    for fix in inventory_validation.WIRED.values():
        assert any(
            name in fix for name in (*inventory_validation.options(), "group gateways", "group mirrors", "remove it")
        ), fix


def test_flags_that_are_gone_are_gone_and_their_replacements_exist() -> None:
    known = vllm_flags.engine_description(VERSION)["flags"]
    assert not set(vllm_flags.REMOVED_FLAGS) & set(known)
    for flag, instead in vllm_flags.REMOVED_FLAGS.items():
        if not instead.startswith("nothing: "):
            assert instead.strip("`").split(":")[0].split("`")[0] in known, (flag, instead)


def test_an_inventory_beside_the_playbooks_reads_the_wiring_itself(tmp_path: Path) -> None:
    theirs = (ROOT / "group_vars/all/wiring.yml").read_text("utf-8")
    for folder, text in (("beside", theirs), ("own", "claude_code_base_url: http://elsewhere\n")):
        (tmp_path / folder / "group_vars/all").mkdir(parents=True)
        (tmp_path / folder / "group_vars/all/wiring.yml").write_text(text, "utf-8")
        (tmp_path / folder / "hosts.yml").write_text(yaml.safe_dump(SOUND), "utf-8")
    assert check(tmp_path / "beside/hosts.yml") == []
    assert "set litellm_public_url of the gateway" in problems.report(check(tmp_path / "own/hosts.yml"))


# --- anything at all ---------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 70000)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["coder", "loopback", "auto", "fp8", "hermes", "1", "-", "{{", "$HOME", "%i", "'", '"', "\\", "a b"]
    )
    | st.binary(max_size=3)
    | st.dates()
    | st.just(datetime.datetime(2026, 1, 1))
)
KEYS = st.text(max_size=12) | st.none() | st.booleans() | st.integers() | st.dates()
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
FLAGS = st.dictionaries(
    st.sampled_from([*vllm_flags.engine_description(VERSION)["flags"], "swap_space", "host", "-tp", "no_x"]) | KEYS,
    ANYTHING,
    max_size=5,
)
INSTANCE = st.fixed_dictionaries(
    {"name": st.sampled_from(["coder", "chat"]) | ANYTHING, "model": st.sampled_from(["loopback", "mine"]) | ANYTHING},
    optional={
        **{
            key: ANYTHING
            for key in inventory_validation.specs()["vllm"]["vllm_instances"]["options"]
            if key not in ("name", "model", "flags")
        },
        "flags": FLAGS | ANYTHING,
        "devices": st.lists(st.integers(0, 3), max_size=3) | ANYTHING,
        "tensor_parallel_size": st.integers(0, 9) | ANYTHING,
        "port": st.sampled_from([8000, 8001]) | ANYTHING,
        "--seed": ANYTHING,
    },
)
ENTRY = st.fixed_dictionaries(
    {"id": st.just("mine"), "source": st.just({"path": "/data/mine"}) | ANYTHING},
    optional={
        "flags": FLAGS,
        "environment": st.dictionaries(KEYS, ANYTHING, max_size=2),
        "config": st.dictionaries(
            st.sampled_from(["num_attention_heads", "num_key_value_heads", "hidden_size", "num_hidden_layers"]),
            st.integers(-1, 64) | ANYTHING,
        ),
        "capabilities": st.fixed_dictionaries(
            {"tool_calling": st.sampled_from(["native", "none", "prompted"]) | ANYTHING}
        ),
        "variants": st.lists(st.dictionaries(st.sampled_from(["id", "quantization"]), ANYTHING), max_size=2) | ANYTHING,
        "weights_gib": st.floats(0, 100) | ANYTHING,
        "max_model_len": st.integers(0, 10**6) | ANYTHING,
        "native_context": st.integers(0, 10**6) | ANYTHING,
        "quantization": st.sampled_from(["awq", "fp8", "none"]) | ANYTHING,
        "chat_template": ANYTHING,
    },
)
USER = st.fixed_dictionaries(
    {"name": st.sampled_from(["alice", "bob"]) | ANYTHING},
    optional={"models": st.just(["coder"]) | ANYTHING, "key": st.text() | ANYTHING, "mails": ANYTHING},
)
CLIENT = st.fixed_dictionaries(
    {"name": st.sampled_from(["dev", "ops"]) | ANYTHING, "litellm_user": st.just("alice") | ANYTHING},
    optional={"instance": st.just("coder") | ANYTHING, "profile": ANYTHING, "trusted_folders": ANYTHING},
)
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(inventory_validation.options(), ANYTHING),
    "vllm_instances": st.lists(INSTANCE | ANYTHING, max_size=3) | ANYTHING,
    "vllm_flags": FLAGS | ANYTHING,
    "vllm_models": st.lists(ENTRY | ANYTHING, max_size=2) | ANYTHING,
    "litellm_users": st.lists(USER | ANYTHING, max_size=3) | ANYTHING,
    "litellm_extra_config": st.dictionaries(
        st.sampled_from(["general_settings", "router_settings", "model_list", "x"]), ANYTHING, max_size=2
    ),
    "litellm_aliases": st.dictionaries(KEYS, st.just("coder") | ANYTHING, max_size=2),
    "litellm_environment": st.dictionaries(KEYS, ANYTHING, max_size=2),
    "vllm_environment": st.dictionaries(KEYS, ANYTHING, max_size=2),
    "claude_code_users": st.lists(CLIENT | ANYTHING, max_size=3) | ANYTHING,
    "vllm_variant": st.sampled_from(["cpu", "cuda", "auto"]) | ANYTHING,
    "nobodys_variable": ANYTHING,
}


@st.composite
def inventories(draw: st.DrawFn) -> dict[str, Any]:
    """A sound host, of which up to four variables are something else."""
    variables = copy.deepcopy(SOUND["all"]["hosts"]["box"])
    for name in draw(st.lists(st.sampled_from(sorted(STRATEGIES)), min_size=1, max_size=4, unique=True)):
        variables[name] = draw(STRATEGIES[name])
    return variables


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
GROUPS = {"all": ["box"], "engines": ["box"], "gateways": ["box"], "clients": ["box"]}
#: A machine, so that what follows from one is worked out as well.
FACTS = hardware.describe("dual E5-2680 v4, 363 GB")


def errors_of(variables: dict[Any, Any], groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    found = site_validation.check({"box": variables}, {"box": variables}, groups, VERSIONS)
    for item in found:
        assert item["problem"]
        assert item["fix"]
    problems.report(found)
    return [item for item in found if item["level"] == "error"]


def deploy(variables: dict[Any, Any]) -> None:
    """What roles make of sound variables: command lines, units, the gateway's configuration, keys' access."""
    instances, own = variables.get("vllm_instances") or [], variables.get("vllm_models") or []
    entries, flags = catalog.entries(own), variables.get("vllm_flags")
    for machine in (None, hardware.machine(FACTS, "cpu")):
        for engine in vllm_flags.effective_instances(
            instances, entries, VERSION, flags, machine, environment=variables.get("vllm_environment")
        ):
            for text in (*engine["argv"], *(f"{key}={value}" for key, value in engine["environment"].items())):
                quoted = vllm_flags.systemd_quote(text)
                assert "\n" not in quoted
                assert "\0" not in quoted
                quoted.encode()
    hostvars = {"box": variables}
    backends = vllm_backends.backends(GROUPS, hostvars, "box")
    config = litellm_config.config(
        backends,
        {
            "default_instance": variables.get("litellm_default_instance", ""),
            "aliases": variables.get("litellm_aliases"),
            "dated_names": variables.get("litellm_dated_names", []),
            "messages_route": variables.get("litellm_messages_route", "native"),
            "drop_params": True,
            "request_timeout": int(variables.get("litellm_request_timeout", 1800)),
            "stream_timeout": int(variables.get("litellm_stream_timeout", 1800)),
            "retries": int(variables.get("litellm_retries", -1)),
            "cooldown": int(variables.get("litellm_cooldown", -1)),
            "extra": variables.get("litellm_extra_config"),
        },
    )
    yaml.safe_dump(config)
    users = variables.get("litellm_users") or []
    litellm_config.access(
        users, backends, variables.get("litellm_default_instance", ""), variables.get("litellm_aliases")
    )
    spec = inventory_validation.validator_spec(inventory_validation.options())
    given_here = {name: value for name, value in variables.items() if name in spec}
    assert ArgumentSpecValidator(spec).validate(given_here).error_messages == []


@FUZZ
@given(inventories())
def test_nothing_that_yaml_can_hold_breaks_the_check(variables: dict[Any, Any]) -> None:
    """Any value of any variable: never a traceback; and what passes can be deployed."""
    if not errors_of(variables, GROUPS):
        deploy(variables)


@FUZZ
@given(st.lists(INSTANCE, min_size=1, max_size=2), FLAGS, st.lists(ENTRY, max_size=1))
def test_flags_names_and_models(instances: list[Any], flags: dict[Any, Any], own: list[Any]) -> None:
    variables = {"vllm_instances": instances, "vllm_flags": flags, "vllm_models": own}
    if not errors_of(variables, {"all": ["box"], "engines": ["box"]}):
        deploy({**variables, "litellm_default_instance": instances[0]["name"]})


TYPED = {
    "int": st.integers(-2, 1 << 40),
    "size": st.integers(-2, 1 << 45),
    "float": st.floats(-1, 100),
    "str": st.text(max_size=20),
    "any": st.text(max_size=20) | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    "json": st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
}


@st.composite
def plausible(draw: st.DrawFn) -> dict[str, Any]:
    """Flags that exist, with values of their type: most of them pass."""
    known = vllm_flags.engine_description(VERSION)
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(known["flags"])), max_size=6, unique=True)):
        kind, choices = known["flags"][name], known["choices"].get(name)
        if kind in ("boolean", "switch"):
            values: st.SearchStrategy[Any] = st.booleans()
        else:
            values = st.sampled_from(choices) if choices else TYPED[known["types"][name]]
        found[name] = draw(st.lists(values, min_size=1, max_size=3) if kind in ("list", "append") else values)
    return found


@FUZZ
@given(plausible(), plausible())
def test_flags_of_the_right_type_become_command_lines(common: dict[str, Any], own: dict[str, Any]) -> None:
    instance = {"name": "coder", "model": "loopback"}
    bad = {
        item["variable"].split(".")[-1]
        for item in errors_of(
            {"vllm_instances": [{**instance, "flags": {**common, **own}}]}, {"all": ["box"], "engines": ["box"]}
        )
    }
    # Without what was refused the rest must pass, and be deployed.
    common, own = ({name: value for name, value in flags.items() if name not in bad} for flags in (common, own))
    variables = {"vllm_instances": [{**instance, "flags": own}], "vllm_flags": common}
    if not errors_of(variables, {"all": ["box"], "engines": ["box"]}):
        deploy(variables)


@FUZZ
@given(st.dictionaries(st.text(max_size=10) | st.sampled_from(["engine", "gateway", "clients"]), st.just(["box"])))
def test_any_groups(groups: dict[str, list[str]]) -> None:
    errors_of({"vllm_instances": [{"name": "coder", "model": "loopback"}]}, {"all": ["box"], **groups})


YAMLISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(sorted(inventory_validation.options())), YAMLISH, max_size=4))
def test_through_ansibles_own_inventory(variables: dict[str, Any]) -> None:
    """Ansible reads the file, resolves expressions and tags values before the check sees them."""
    inventory = inventory_of({"set": variables})
    text = yaml.safe_dump(inventory, allow_unicode=False)
    # Braces would be expressions; those are a row of the table.
    if "{{" in text or "{%" in text or "{#" in text:
        return
    problems.report(check(inventory))


def test_an_instance_without_a_host_is_judged_alone() -> None:
    found = vllm_validation.problems({"box": {"vllm_instances": [None, 3, "x", {}]}}, {"engines": ["box"]}, VERSIONS)
    assert [item["variable"] for item in found][:3] == ["vllm_instances[0]", "vllm_instances[1]", "vllm_instances[2]"]
