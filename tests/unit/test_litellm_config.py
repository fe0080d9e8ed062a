"""LiteLLM's configuration, users' models and the file of hashes."""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import litellm_config
from ansible_collections.modelhost.serving.plugins.modules import litellm_key_hashes

SETTINGS = {"messages_route": "native", "drop_params": True, "request_timeout": 1800, "stream_timeout": 900}


def backend(host: str, instance: str, model: str = "qwen", **more: Any) -> dict[str, Any]:
    return {
        "host": host,
        "instance": instance,
        "model": model,
        "served_model_name": model,
        "url": f"http://{host}:8000",
        "max_model_len": 65536,
        "key_file": f"/k/{instance}",
        **more,
    }


def config(backends: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return litellm_config.config(backends, {**SETTINGS, **settings})


def deployments(rendered: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [item for item in rendered["model_list"] if item["model_name"] == name]


def test_one_instance_answers_to_every_name() -> None:
    rendered = config([backend("h1", "coder")], dated_names=["claude-3-5-sonnet-20240620"])
    assert [item["model_name"] for item in rendered["model_list"]] == [
        "local-claude-coder",
        "qwen",
        "default",
        "opus",
        "sonnet",
        "haiku",
        "fable",
        "claude-3-5-sonnet-20240620",
        "claude-*",
    ]


def test_messages_go_to_the_engines_own_endpoint() -> None:
    (item,) = deployments(config([backend("h1", "coder")]), "local-claude-coder")
    assert item["litellm_params"]["model"] == "hosted_vllm/qwen"
    assert item["litellm_params"]["api_base"] == "http://h1:8000/v1"
    assert item["model_info"]["supported_endpoints"] == ["/v1/chat/completions", "/v1/messages"]
    assert item["model_info"]["max_input_tokens"] == 65536
    assert item["litellm_params"]["stream_timeout"] == 900


def test_the_translated_route_is_a_switch() -> None:
    (item,) = deployments(config([backend("h1", "coder")], messages_route="translated"), "local-claude-coder")
    assert "supported_endpoints" not in item["model_info"]


def test_drop_params_is_where_it_is_read() -> None:
    rendered = config([backend("h1", "coder")])
    assert rendered["litellm_settings"]["drop_params"] is True
    assert "drop_params" not in rendered["general_settings"]


def test_models_of_users_are_enforced_by_litellm_too() -> None:
    rendered = config([backend("h1", "coder")])
    assert rendered["litellm_settings"]["enable_post_custom_auth_checks"] is True
    assert rendered["general_settings"]["custom_auth_run_common_checks"] is True


def test_no_key_stands_in_it() -> None:
    text = yaml.safe_dump(config([backend("h1", "coder"), backend("h2", "coder")]))
    assert "sk-" not in text
    assert "os.environ/BACKEND_KEY_H1_CODER_" in text


def test_the_same_instance_on_two_hosts_makes_replicas() -> None:
    rendered = config([backend("h1", "coder"), backend("h2", "coder")])
    assert [item["litellm_params"]["api_base"] for item in deployments(rendered, "opus")] == [
        "http://h1:8000/v1",
        "http://h2:8000/v1",
    ]
    assert rendered["router_settings"]["num_retries"] == 2
    assert {item["model_info"]["modelhost_cooldown"] for item in rendered["model_list"]} == {5}
    # LiteLLM's own would count what clients cause, and could leave a model without any engine.
    assert rendered["router_settings"]["disable_cooldowns"] is True


def test_a_lone_engine_is_not_tried_again_nor_put_aside() -> None:
    rendered = config([backend("h1", "coder")])
    assert rendered["router_settings"]["num_retries"] == 0
    assert rendered["router_settings"]["disable_cooldowns"] is True
    assert not any("modelhost_cooldown" in item["model_info"] for item in rendered["model_list"])


def test_ids_of_deployments_differ() -> None:
    rendered = config(
        [backend("h1", "coder"), backend("h2", "coder"), backend("h1", "chat", "other")], default_instance="coder"
    )
    ids = [item["model_info"]["id"] for item in rendered["model_list"]]
    assert len(ids) == len(set(ids))


def test_two_instances_of_one_model() -> None:
    """The catalogue's id is answered by the default instance alone, or users' models would mix."""
    names = litellm_config.public_names([backend("h1", "a"), backend("h1", "b")], "b")
    assert names["qwen"] == "b"
    assert names["claude-*"] == "b"


def test_without_a_default_nobody_answers_to_other_names() -> None:
    names = litellm_config.public_names([backend("h1", "a"), backend("h1", "b", "other")], "")
    assert set(names) == {"local-claude-a", "local-claude-b", "qwen", "other"}


def test_environment_names_do_not_meet() -> None:
    one = litellm_config.environment_name(backend("gpu-1", "coder"))
    other = litellm_config.environment_name(backend("gpu_1", "coder"))
    assert one != other
    assert one.startswith("BACKEND_KEY_GPU_1_CODER_")


def test_extra_settings_are_merged() -> None:
    rendered = config([backend("h1", "coder")], extra={"litellm_settings": {"modify_params": True}})
    assert rendered["litellm_settings"]["modify_params"] is True
    assert rendered["litellm_settings"]["drop_params"] is True


def test_users_get_the_aliases_of_their_instances() -> None:
    backends = [backend("h1", "a", "one"), backend("h1", "b", "two")]
    found = litellm_config.access(
        [{"name": "all"}, {"name": "bob", "models": ["b"]}, {"name": "al", "models": ["a"]}],
        backends,
        "a",
        {"fast": "b"},
        ["claude-x-20260101"],
    )
    models = {user["name"]: user["models"] for user in found["users"]}
    assert models["bob"] == ["local-claude-b", "two", "fast"]
    assert "claude-*" in models["al"]
    assert "claude-x-20260101" in models["al"]
    assert models["all"] == found["models"]


def test_limits_of_a_user_go_over_the_defaults() -> None:
    defaults = {"requests_per_minute": "600", "tokens_per_minute": 0, "max_parallel_requests": 16}
    users = [
        {"name": "alice"},
        {"name": "bob", "requests_per_minute": 60, "tokens_per_minute": 10**6, "max_parallel_requests": None},
        {"name": "carol", "requests_per_minute": 0, "max_parallel_requests": 0},
        # The checks would tell nothing if they were refused.
        {"name": "verify"},
    ]
    found = litellm_config.access(users, [backend("h", "a", "one")], "a", None, None, defaults)["users"]
    assert [user["limits"] for user in found] == [
        {"requests_per_minute": 600, "max_parallel_requests": 16},
        {"requests_per_minute": 60, "tokens_per_minute": 10**6, "max_parallel_requests": 16},
        {},
        {},
    ]


def test_the_last_day_is_written_as_a_date() -> None:
    users = [{"name": "a", "expires": date(2027, 6, 30)}, {"name": "b", "expires": "2027-06-30"}, {"name": "c"}]
    found = litellm_config.access(users, [backend("h", "a", "one")], "a")["users"]
    assert [user["expires"] for user in found] == ["2027-06-30", "2027-06-30", None]


@pytest.mark.parametrize("value", ["20270630", "2027-W26-3", "2027-6-3", "soon", 20270630, "", datetime(2027, 6, 30)])
def test_what_is_no_date_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match="is no date"):
        litellm_config.last_day(value)


@pytest.mark.parametrize(("text", "quoted"), [("sk-a", '"sk-a"'), ('a"b\\c$d', '"a\\"b\\\\c$d"')])
def test_values_for_systemd(text: str, quoted: str) -> None:
    assert litellm_config.environment_value(text) == quoted


def test_hashes_hold_no_key() -> None:
    text = litellm_key_hashes.content(["m"], [{"name": "alice", "models": ["m"]}], lambda _name: "sk-secret\n")
    entry = json.loads(text)["users"][0]
    assert "sk-secret" not in text
    assert entry["sha256"] == litellm_key_hashes.hashed("sk-secret")
    assert entry["models"] == ["m"]


def test_other_limits_leave_the_key_alone() -> None:
    def written(**more: Any) -> dict[str, Any]:
        users = [{"name": "alice", "models": ["m"], **more}]
        entry: dict[str, Any] = json.loads(litellm_key_hashes.content(["m"], users, lambda _name: "sk-secret"))[
            "users"
        ][0]
        return entry

    limited = written(limits={"requests_per_minute": 5}, expires="2027-06-30")
    assert limited["limits"] == {"requests_per_minute": 5}
    assert limited["expires"] == "2027-06-30"
    assert written() == {**limited, "limits": {}, "expires": None}


def test_two_users_with_one_key_are_refused() -> None:
    users = [{"name": "a", "models": []}, {"name": "b", "models": []}]
    with pytest.raises(ValueError, match="a and b have the same key") as caught:
        litellm_key_hashes.content([], users, lambda _name: "sk-same")
    assert "sk-same" not in str(caught.value)


def test_an_empty_key_file_is_refused() -> None:
    with pytest.raises(ValueError, match="user a is empty"):
        litellm_key_hashes.content([], [{"name": "a", "models": []}], lambda _name: "\n")
