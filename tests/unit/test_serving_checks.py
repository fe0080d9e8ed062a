"""serving_checks against a stand-in: every check passes on right answers and is seen failing on wrong ones."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import Any

import pytest
from patience import HANGS

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import serving_standin  # noqa: E402  # the stand-in lies beside this file, which is no package


def _load() -> Any:
    path = HERE.parents[1] / "plugins" / "modules" / "serving_checks.py"
    spec = importlib.util.spec_from_file_location("serving_checks", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serving_checks = _load()


def run(standin: serving_standin.Standin, **over: Any) -> dict[str, dict]:
    params = {
        "mode": "gateway",
        "models": [{"name": standin.model, "loopback": True, "replicas": 1, "capabilities": {}}],
        "backends": [{"name": "coder", "url": standin.url}],
        "checks": [],
        "deadline": HANGS,
        "total_deadline": HANGS,
        "first_token_limit": 0,
        "max_tokens": 64,
        "cache_prompt_words": 400,
    }
    params.update(over)
    client = serving_checks.Client(standin.url, serving_standin.KEY, params["deadline"])
    results = serving_checks.Checks(client, params).run()
    # One model and one backend: the name of a check is enough to find it.
    return {result["check"]: result for result in results}


def failed(results: dict[str, dict]) -> set[str]:
    return {name for name, result in results.items() if result["status"] == "failed"}


TOOLS = {"chat: tool call", "chat: tool call, streamed", "messages: tool call", "messages: tool call, streamed"}
PARALLEL = {"chat: parallel calls", "messages: parallel calls"}
PLAIN = {"chat", "messages"}
STREAMED = {"chat, streamed", "messages, streamed"}
TOOLS_STREAMED = {name for name in TOOLS if "streamed" in name}
UNKNOWN = {"unknown model: chat", "unknown model: messages"}
ENGINE_KEY = {"no key: engine", "wrong key: engine"}
WRONG_KEY = {"wrong key: chat", "wrong key: messages"} | ENGINE_KEY

# What is broken -> the checks that must fail, and no others.
MUTATIONS: dict[str, set[str]] = {
    "readiness_503": {"health: readiness"},
    "backend_503": {"health: engine"},
    "models_empty": {"models"},
    "models_not_json": {"models"},
    "wrong_key_accepted": WRONG_KEY,
    "wrong_key_400": WRONG_KEY,
    "engine_open": ENGINE_KEY,
    "no_x_api_key": {"x-api-key"},
    "unknown_model_accepted": UNKNOWN,
    "unknown_model_500": UNKNOWN,
    "unknown_model_unnamed": UNKNOWN,
    "unknown_model_leaks": UNKNOWN,
    "foreign_field_accepted": {"foreign field"},
    "foreign_field_unnamed": {"foreign field"},
    "garbled_utf8": PLAIN | STREAMED | TOOLS,
    "empty_answers": PLAIN | STREAMED | TOOLS | PARALLEL | {"prompt cache", "first token"},
    "usage_zero": PLAIN | STREAMED | {"prompt cache"},
    "count_404": {"count_tokens"},
    "count_zero": {"count_tokens"},
    "count_constant": {"count_tokens"},
    "tool_as_text": TOOLS | PARALLEL,
    "tool_wrong_name": TOOLS | PARALLEL,
    "tool_args_empty": TOOLS | PARALLEL,
    "tool_args_cut": TOOLS | PARALLEL,
    "tool_result_ignored": TOOLS | PARALLEL,
    "stop_reason_wrong": TOOLS | PARALLEL,
    "parallel_single": PARALLEL,
    "parallel_same": PARALLEL,
    "same_ids": PARALLEL,
    "stream_cut": STREAMED | TOOLS_STREAMED | {"first token"},
    "stream_error": STREAMED | TOOLS_STREAMED | {"first token"},
    "stream_no_block_stop": {"messages, streamed", "messages: tool call, streamed", "first token"},
    "no_cache": {"prompt cache"},
}


def test_right_answers_pass() -> None:
    with serving_standin.Standin() as standin:
        results = run(standin)
    assert {result["status"] for result in results.values()} == {"passed"}, results
    assert len(results) == 25


def test_right_answers_pass_without_script() -> None:
    with serving_standin.Standin() as standin:
        models = [{"name": standin.model, "loopback": False, "replicas": 1, "capabilities": {}}]
        results = run(standin, models=models)
    assert not failed(results), results


@pytest.mark.parametrize("mutation", sorted(MUTATIONS))
def test_a_wrong_answer_fails_its_checks_and_no_others(mutation: str) -> None:
    with serving_standin.Standin({mutation}) as standin:
        results = run(standin)
    assert failed(results) == MUTATIONS[mutation], {n: r["detail"] for n, r in results.items()}


def test_every_check_is_seen_failing() -> None:
    with serving_standin.Standin() as standin:
        names = set(run(standin))
    seen = set().union(*MUTATIONS.values())
    assert names - seen == {"health: liveliness"}, "that one has its own test: it stops the rest"


def test_a_dead_gateway_stops_the_rest() -> None:
    with serving_standin.Standin({"liveliness_500"}) as standin:
        results = run(standin)
    assert failed(results) == {"health: liveliness"}
    assert {r["status"] for n, r in results.items() if n != "health: liveliness"} == {"skipped"}


def test_nothing_listens() -> None:
    with serving_standin.Standin() as standin:
        pass
    results = run(standin)
    assert failed(results) == {"health: liveliness"}
    assert "refused" in results["health: liveliness"]["detail"]


def test_a_hang_ends_at_the_deadline() -> None:
    with serving_standin.Standin({"hang"}) as standin:
        results = run(standin, deadline=1, checks=["chat"])  # clock: the stand-in never answers
    assert "within 1 s" in results["chat"]["detail"]


def test_the_total_deadline_skips_what_is_left() -> None:
    with serving_standin.Standin({"hang"}) as standin:
        results = run(standin, total_deadline=2, checks=["chat", "messages"])
    assert results["chat"]["status"] == "failed"
    assert results["messages"]["status"] == "skipped"


def test_first_token_limit() -> None:
    with serving_standin.Standin({"slow_first_token"}) as standin:
        assert failed(run(standin, checks=["first token"], first_token_limit=1)) == {"first token"}
        assert not failed(run(standin, checks=["first token"], first_token_limit=HANGS))
        assert not failed(run(standin, checks=["first token"]))


def test_a_failed_body_is_shown_without_the_key() -> None:
    with serving_standin.Standin({"post_500"}) as standin:
        results = run(standin)
    assert "engine core is dead" in results["chat"]["body"]
    assert serving_standin.KEY not in repr(results)


def test_what_is_not_claimed_is_not_passed() -> None:
    capabilities = {"tool_calling": False, "prompt_cache": False}
    with serving_standin.Standin({"tool_as_text", "no_cache"}) as standin:
        models = [{"name": standin.model, "loopback": True, "replicas": 1, "capabilities": capabilities}]
        results = run(standin, models=models)
    not_claimed = {name for name, result in results.items() if result["status"] == "n/a"}
    assert not_claimed == TOOLS | PARALLEL | {"prompt cache"}
    assert not failed(results)


def test_an_engine_has_no_gateway_checks() -> None:
    with serving_standin.Standin({"readiness_503", "liveliness_500"}) as standin:
        results = run(standin, mode="engine", backends=[])
    assert not failed(results)
    assert "health" in results
    assert "health: liveliness" not in results


def test_replicas_without_affinity_are_told() -> None:
    with serving_standin.Standin({"no_cache"}) as standin:
        models = [{"name": standin.model, "loopback": True, "replicas": 3, "capabilities": {}}]
        run(standin, models=models, checks=["prompt cache"])
        turns = [r for r in standin.requests if r["path"] == "/v1/messages"]
    assert len(turns) == 4


def test_the_key_travels_in_headers_only() -> None:
    with serving_standin.Standin() as standin:
        run(standin)
        for request in standin.requests:
            assert serving_standin.KEY not in request["path"]
            assert serving_standin.KEY not in repr(request["body"])


def test_table_lines_up() -> None:
    with serving_standin.Standin({"models_empty"}) as standin:
        results = list(run(standin).values())
    lines = serving_checks.table(results)
    assert len(lines) == len(results) + 4
    at = lines[0].index("status")
    assert {line[at:].split()[0] for line in lines[2:-2]} == {"passed", "failed"}
    assert lines[-1] == "24 passed, 1 failed, 0 n/a, 0 skipped"
    assert serving_checks.failures(results) == [
        "FAILED models: not listed: local-claude-coder",
        "  response body:",
        '    {"object": "list", "data": []}',
    ]


@pytest.mark.parametrize("text", ["", "\n", "sk-one sk-two"])
def test_a_key_file_must_hold_one_word(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(ValueError, match="one word"):
        serving_checks.read_key(str(path))


def test_a_response_that_closes_its_socket_with_the_last_byte_is_whole() -> None:
    """As http.client does from Python 3.12.2 on (cpython gh-113199)."""

    class Socket:
        closed = False

        def settimeout(self, _seconds: float) -> None:
            if self.closed:
                raise OSError(9, "Bad file descriptor")

    class Response:
        def __init__(self, sock: Socket) -> None:
            self.sock, self.parts = sock, [b"al", b"ive"]

        def isclosed(self) -> bool:
            return self.sock.closed

        def read1(self, _most: int) -> bytes:
            part = self.parts.pop(0)
            self.sock.closed = not self.parts
            return part

    sock, seen = Socket(), bytearray()
    client = serving_checks.Client("http://127.0.0.1:1", "sk-key", 5)
    assert b"".join(client.chunks(sock, Response(sock), seen)) == bytes(seen) == b"alive"
