"""What is refused before any host is touched, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.filter.litellm import own_problems
from ansible_collections.modelhost.serving.plugins.module_utils import litellm_validation
from ansible_collections.modelhost.serving.plugins.module_utils.problems import report

DEFAULTS = Path(__file__).resolve().parents[2] / "roles/litellm/defaults/main.yml"
GROUPS = {"engines": ["box"], "gateways": ["box"]}
KEY = "sk-FzR8kq2mW9xTn4vLpH7s"


def problems(instances: Any = ("coder",), **variables: Any) -> list[dict[str, Any]]:
    engines = [{"name": name, "port": 8000 + index} for index, name in enumerate(instances)]
    return litellm_validation.problems({"box": {"vllm_instances": engines, **variables}}, GROUPS)


def only(found: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(found) == 1, found
    return found[0]


def test_nothing_is_wrong_with_the_least() -> None:
    assert problems() == []


def test_a_sound_gateway_passes() -> None:
    assert (
        problems(
            ("coder", "chat"),
            litellm_default_instance="coder",
            litellm_aliases={"gpt-*": "chat"},
            litellm_users=[{"name": "alice"}, {"name": "b.o-b_1", "models": ["chat"], "key": KEY}],
            litellm_extra_config={"litellm_settings": {"modify_params": True}},
        )
        == []
    )


@pytest.mark.parametrize(
    "key",
    ["abcde", "sk-1234", "", "x" * 30, "sk-" + "1234" * 8, "a b" * 10, 12345, "password-password-password", KEY + "\n"],
)
def test_a_weak_key_is_refused_and_not_shown(key: Any) -> None:
    item = only(problems(litellm_users=[{"name": "alice", "key": key}]))
    assert item["variable"] == "litellm_users[0].key"
    assert item["value"] is None
    assert "leave `key` out" in item["fix"]
    assert not (key and str(key) in report([item]))


def test_a_key_of_five_letters_is_told_its_length() -> None:
    assert "has 5 characters; at least 20" in only(problems(litellm_users=[{"name": "a", "key": "abcde"}]))["problem"]


@pytest.mark.parametrize("name", ["Alice", "", "../x", "a b", None, 3, "-a", "a" * 64])
def test_names_that_cannot_be_files(name: Any) -> None:
    assert only(problems(litellm_users=[{"name": name}]))["variable"] == "litellm_users[0].name"


def test_the_checks_user_is_reserved() -> None:
    assert "checks' own user" in only(problems(litellm_users=[{"name": "verify"}]))["problem"]


def test_the_same_user_twice() -> None:
    item = only(problems(litellm_users=[{"name": "a"}, {"name": "b"}, {"name": "a"}]))
    assert item["variable"] == "litellm_users[2].name"
    assert "litellm_users[0]" in item["problem"]


def test_the_same_key_twice() -> None:
    item = only(problems(litellm_users=[{"name": "a", "key": KEY}, {"name": "b", "key": KEY}]))
    assert item["variable"] == "litellm_users[1].key"
    assert KEY not in report([item])


def test_an_unknown_instance_of_a_user() -> None:
    item = only(problems(litellm_users=[{"name": "a", "models": ["codr"]}]))
    assert item["value"] == "codr"
    assert "did you mean coder?" in item["fix"]


def test_a_misspelt_setting_of_a_user_shows_no_value() -> None:
    item = only(problems(litellm_users=[{"name": "a", "kee": "hunter2hunter2"}]))
    assert item["variable"] == "litellm_users[0].kee"
    assert "hunter2" not in report([item])


def test_several_instances_need_a_default() -> None:
    item = only(problems(("coder", "chat")))
    assert item["variable"] == "litellm_default_instance"
    assert "coder, chat" in item["fix"]


def test_replicas_need_none() -> None:
    hosts = {name: {"vllm_instances": [{"name": "coder"}]} for name in ("e1", "e2")}
    assert litellm_validation.problems({**hosts, "g": {}}, {"engines": ["e1", "e2"], "gateways": ["g"]}) == []


def test_an_unknown_default() -> None:
    item = only(problems(litellm_default_instance="kode"))
    assert item["variable"] == "litellm_default_instance"
    assert "coder" in item["fix"]


@pytest.mark.parametrize("section", ["general_settings", "router_settings"])
def test_drop_params_in_the_wrong_place(section: str) -> None:
    item = only(problems(litellm_extra_config={section: {"drop_params": True}}))
    assert item["variable"] == f"litellm_extra_config.{section}.drop_params"
    assert "no effect" in item["problem"]
    assert "litellm_drop_params" in item["fix"]


@pytest.mark.parametrize(
    ("section", "name", "instead"),
    [
        ("general_settings", "master_key", "users' keys come from litellm_users"),
        ("general_settings", "custom_auth", "litellm_users"),
        ("litellm_settings", "drop_params", "litellm_drop_params"),
        ("router_settings", "timeout", "litellm_request_timeout"),
        ("router_settings", "num_retries", "litellm_retries"),
    ],
)
def test_settings_that_the_role_writes(section: str, name: str, instead: str) -> None:
    item = only(problems(litellm_extra_config={section: {name: "x"}}))
    assert instead in item["fix"]
    assert item["value"] is None


@pytest.mark.parametrize("section", ["model_list", "environment_variables", "general_setting"])
def test_sections_that_are_not_for_users(section: str) -> None:
    assert only(problems(litellm_extra_config={section: {}}))["variable"] == f"litellm_extra_config.{section}"


@pytest.mark.parametrize("port", [0, 80, 70000, "http", True])
def test_ports(port: Any) -> None:
    assert only(problems(litellm_port=port))["variable"] == "litellm_port"


def test_numbers_of_the_command_line_are_text() -> None:
    assert problems(litellm_port="8080", litellm_request_timeout="600") == []
    assert only(problems(litellm_port="8000"))["variable"] == "litellm_port"


def test_the_port_of_an_engine() -> None:
    item = only(problems(litellm_port=8000))
    assert "vllm_instances[0] (coder)" in item["problem"]
    assert "4000" in item["fix"]


def test_an_address_that_others_reach_is_a_warning() -> None:
    assert only(problems(litellm_bind_address="0.0.0.0"))["level"] == "warning"


def test_aliases() -> None:
    assert only(problems(litellm_aliases={"fast": "nobody"}))["variable"] == "litellm_aliases.fast"
    assert only(problems(litellm_aliases={"local-claude-x": "coder"}))["variable"] == "litellm_aliases.local-claude-x"
    assert only(problems(litellm_aliases={"a/b": "coder"}))["variable"] == "litellm_aliases.a/b"


def test_a_gateway_that_goes_away_is_not_judged() -> None:
    assert problems(litellm_state="absent", litellm_port=1) == []


def test_the_role_alone_refuses_too() -> None:
    assert own_problems({"litellm_users": []}, ["coder"], "gw") == ""
    text = own_problems({"litellm_users": [{"name": "a", "key": "abcde"}]}, ["coder"], "gw")
    assert text.startswith("gw: litellm_users[0].key")
    assert "abcde" not in text


def test_defaults_are_the_roles() -> None:
    defaults = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    assert defaults["litellm_port"] == litellm_validation.PORT
    assert defaults["litellm_bind_address"] == litellm_validation.BIND_ADDRESS
