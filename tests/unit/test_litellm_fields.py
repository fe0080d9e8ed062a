"""The gateway's lists of fields against the public definitions: the SDKs that people use."""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/litellm/files/opt/modelhost/litellm/lib"))

from modelhost_gateway import fields, shapes

#: Of the public definitions, and on no list. A new name in an SDK makes these tests fail, so that someone looks.
LEFT_OUT = {
    # A vendor's cloud: accounts, places, prices, stores, moderation. Engines do not know them.
    "messages": "betas billing_policy compaction container diagnostics fallback_credit_token inference_geo mcp_servers"
    " service_tier speed thread user_profile_id workspace_id fallbacks",
    "chat": "audio modalities moderation prediction prompt_cache_key prompt_cache_options prompt_cache_retention"
    " safety_identifier service_tier store web_search_options",
    "completions": "",
    # Nothing is kept between two requests here; `previous_response_id` and `conversation` are refused by name.
    "responses": "access_programs background context_management conversation image moderation previous_response_id"
    " prompt prompt_cache_options prompt_cache_retention safety_identifier",
    "embeddings": "",
    # What would be fetched, run or looked up on a vendor's side.
    "block": "file_id from server_name to tool_changes tools transformations trigger mcp_server_name",
    "anthropic tool": "caching configs default_config mcp_server_name model url_sources tools max_tokens",
    "response item": "acknowledged_safety_checks actions approval_request_id approve background container_id"
    " environment error output_format outputs pending_safety_checks quality queries reason reasoning results"
    " revised_prompt server_label size svg_usage",
    "response tool": "action allowed_tools authorization background complexity connector_id container display_height"
    " display_width environment frame_count frame_duration_ms headers input_fidelity input_image_mask max_num_results"
    " model moderation output_compression partial_images quality ranking_options require_approval server_description"
    " server_label server_url size svg tunnel_id vector_store_ids output_format",
    "chat message": "audio",
    "chat tool": "",
}


def members(annotation: Any) -> set[str]:
    """The fields of all dictionaries that a type may be."""
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return set().union(*(members(argument) for argument in typing.get_args(annotation)))
    return set(typing.get_type_hints(annotation)) if hasattr(annotation, "__total__") else set()


LISTS = {
    "messages": fields.MESSAGES,
    "chat": fields.CHAT,
    "completions": fields.COMPLETIONS,
    "responses": fields.RESPONSES,
    "embeddings": fields.EMBEDDINGS,
    "block": fields.BLOCK,
    "anthropic tool": fields.ANTHROPIC_TOOL,
    "chat message": fields.CHAT.names["messages"],
    "chat tool": fields.CHAT_TOOL,
    "response item": fields.RESPONSES.names["input"],
    "response tool": fields.RESPONSE_TOOL,
}


@pytest.fixture(scope="module")
def public() -> dict[str, Any]:
    """What the SDKs say. Each worker of the suite loads this file; loading both SDKs takes as long as all else."""
    import anthropic.types.beta as anthropic_types
    import openai.types.chat as chat_types
    from anthropic.types.beta import message_count_tokens_params, message_create_params
    from openai.types import completion_create_params, embedding_create_params
    from openai.types.chat import completion_create_params as chat_create_params
    from openai.types.responses import response_create_params, response_input_item_param, tool_param

    return {
        "messages": message_create_params.MessageCreateParams,
        "counting": message_count_tokens_params.MessageCountTokensParams,
        "chat": chat_create_params.CompletionCreateParams,
        "completions": completion_create_params.CompletionCreateParams,
        "responses": response_create_params.ResponseCreateParams,
        "embeddings": embedding_create_params.EmbeddingCreateParams,
        "block": anthropic_types.BetaContentBlockParam,
        "anthropic tool": anthropic_types.BetaToolUnionParam,
        "chat message": chat_types.ChatCompletionMessageParam,
        "chat tool": chat_types.ChatCompletionToolUnionParam,
        "response item": response_input_item_param.ResponseInputItemParam,
        "response tool": tool_param.ToolParam,
    }


@pytest.mark.parametrize("subject", list(LISTS))
def test_each_public_field_is_on_a_list_or_left_out_on_purpose(subject: str, public: dict[str, Any]) -> None:
    left_out = set(LEFT_OUT[subject].split())
    assert members(public[subject]) - set(LISTS[subject].names) == left_out


def test_counting_takes_what_messages_take(public: dict[str, Any]) -> None:
    counting = members(public["counting"])
    assert counting - set(fields.COUNT_TOKENS.names) <= set(LEFT_OUT["messages"].split())
    assert set(fields.COUNT_TOKENS.names) <= set(fields.MESSAGES.names)


@pytest.mark.parametrize("subject", list(LISTS))
def test_no_list_holds_what_is_refused(subject: str) -> None:
    for name in LISTS[subject].names:
        assert name not in shapes.REFUSED
        assert not shapes.REFUSED_PATTERN.fullmatch(name)
