"""The gateway's lists of fields against the public definitions: the SDKs that people use."""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any

import anthropic.types.beta as anthropic_types
import openai.types.chat as chat_types
import pytest
from anthropic.types.beta import message_count_tokens_params, message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params, response_input_item_param, tool_param

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


PAIRS = {
    "messages": (message_create_params.MessageCreateParams, fields.MESSAGES),
    "chat": (chat_create_params.CompletionCreateParams, fields.CHAT),
    "completions": (completion_create_params.CompletionCreateParams, fields.COMPLETIONS),
    "responses": (response_create_params.ResponseCreateParams, fields.RESPONSES),
    "embeddings": (embedding_create_params.EmbeddingCreateParams, fields.EMBEDDINGS),
    "block": (anthropic_types.BetaContentBlockParam, fields.BLOCK),
    "anthropic tool": (anthropic_types.BetaToolUnionParam, fields.ANTHROPIC_TOOL),
    "chat message": (chat_types.ChatCompletionMessageParam, fields.CHAT.names["messages"]),
    "chat tool": (chat_types.ChatCompletionToolUnionParam, fields.CHAT_TOOL),
    "response item": (response_input_item_param.ResponseInputItemParam, fields.RESPONSES.names["input"]),
    "response tool": (tool_param.ToolParam, fields.RESPONSE_TOOL),
}


@pytest.mark.parametrize("subject", list(PAIRS))
def test_each_public_field_is_on_a_list_or_left_out_on_purpose(subject: str) -> None:
    public, shape = members(PAIRS[subject][0]), set(PAIRS[subject][1].names)
    left_out = set(LEFT_OUT[subject].split())
    assert public - shape == left_out


def test_counting_takes_what_messages_take() -> None:
    public = members(message_count_tokens_params.MessageCountTokensParams)
    assert public - set(fields.COUNT_TOKENS.names) <= set(LEFT_OUT["messages"].split())
    assert set(fields.COUNT_TOKENS.names) <= set(fields.MESSAGES.names)


@pytest.mark.parametrize("subject", list(PAIRS))
def test_no_list_holds_what_is_refused(subject: str) -> None:
    for name in PAIRS[subject][1].names:
        assert name not in shapes.REFUSED
        assert not shapes.REFUSED_PATTERN.fullmatch(name)
