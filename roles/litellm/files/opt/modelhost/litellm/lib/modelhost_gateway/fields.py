"""What a request of each route may hold.

Made from the public definitions (the SDKs `anthropic` and `openai`) and vLLM's own request classes. Fields of the
public definitions that are on no list here belong to a vendor's cloud, or would have the engine load or repeat
things; a test holds these lists against the definitions and names what is left out.
"""

from __future__ import annotations

import re

from .shapes import ADDRESS, SCALARS, WHOLE, Any_, Fields, Shape


def scalars(names: str) -> dict[str, Shape]:
    """Fields with plain values."""
    return dict.fromkeys(names.split(), SCALARS)


def whole(names: str) -> dict[str, Shape]:
    """Fields that nobody looks into: schemas, arguments, results."""
    return dict.fromkeys(names.split(), WHOLE)


#: Choices (`n`, `best_of`) times prompts of one request: each costs as much as a request of its own.
MAX_CHOICES = 4
#: What the engine looks through at each token of an answer, and the entries that each of them may have.
REPEATED = ("allowed_token_ids", "bad_words", "logit_bias", "stop", "stop_sequences", "stop_token_ids")
MAX_REPEATED = 1024
#: Texts of one request for embeddings: what the public definition allows.
MAX_INPUTS = 2048

CACHE_CONTROL = Fields(scalars("type ttl scope"))
#: LiteLLM keeps its own things in `metadata`; of a client's it needs the user's session.
METADATA = Fields(scalars("user_id"))
TEMPLATE_ARGUMENTS = Any_(never=frozenset({"chat_template", "tokenizer"}))

# --- Anthropic ---

_CALLER = Fields(scalars("type tool_id"))
ANTHROPIC_TOOL_TYPES = re.compile(
    r"|custom|function|(bash|text_editor|memory|computer|web_search|web_fetch|tool_search_tool_\w+?)_\d{8}"
)
ANTHROPIC_TOOL = Fields(
    {
        **scalars(
            "name description type strict defer_loading eager_input_streaming allowed_callers max_uses max_characters"
            " allowed_domains blocked_domains max_content_tokens display_height_px display_width_px display_number"
            " enable_zoom use_cache response_inclusion"
        ),
        **whole("input_schema input_examples user_location"),
        "cache_control": CACHE_CONTROL,
        "citations": Fields(scalars("enabled")),
    },
    ANTHROPIC_TOOL_TYPES,
)
BLOCK = Fields(
    {
        **scalars(
            "type text thinking signature data id name tool_use_id is_error tool_name toolset_name title context"
            " encrypted_content"
        ),
        **whole("input citations"),
        "cache_control": CACHE_CONTROL,
        "caller": _CALLER,
    }
)
BLOCK.names["content"] = BLOCK  # a tool's result holds blocks
BLOCK.names["source"] = Fields({**scalars("type media_type data"), "url": ADDRESS, "content": BLOCK})
BLOCK.names["tool"] = Fields({**scalars("type name"), "definition": ANTHROPIC_TOOL})

_EDIT_AMOUNT = Fields(scalars("type value"))
COUNT_TOKENS = Fields(
    {
        **scalars("model"),
        "messages": Fields({**scalars("role id"), "content": BLOCK, "cache_control": CACHE_CONTROL}),
        "system": BLOCK,
        "tools": ANTHROPIC_TOOL,
        "tool_choice": Fields(scalars("type name disable_parallel_tool_use")),
        "thinking": Fields(scalars("type budget_tokens display")),
        "output_config": Fields(
            {
                **scalars("effort"),
                "format": Fields({**scalars("type"), **whole("schema")}),
                "task_budget": Fields(scalars("type total remaining")),
            }
        ),
        "context_management": Fields(
            {
                "edits": Fields(
                    {
                        **scalars("type exclude_tools clear_tool_inputs pause_after_compaction instructions"),
                        "trigger": _EDIT_AMOUNT,
                        "keep": _EDIT_AMOUNT,
                        "clear_at_least": _EDIT_AMOUNT,
                    }
                )
            }
        ),
        "cache_control": CACHE_CONTROL,
        "chat_template_kwargs": TEMPLATE_ARGUMENTS,
    }
)
MESSAGES = Fields(
    {
        **COUNT_TOKENS.names,
        **scalars("max_tokens temperature top_k top_p stream stop_sequences cache_salt"),
        "metadata": METADATA,
    }
)

# --- OpenAI ---

#: What both completions and responses take, vLLM's own among it.
_SAMPLING = {
    **scalars(
        "model stream temperature top_p top_k min_p seed stop stop_token_ids presence_penalty frequency_penalty"
        " repetition_penalty user cache_salt ignore_eos skip_special_tokens include_stop_str_in_output"
    ),
    "logit_bias": Any_(),
    "structured_outputs": Fields(
        {
            **scalars("regex choice grammar json_object disable_any_whitespace disable_additional_properties"),
            **scalars("whitespace_pattern structural_tag"),
            **whole("json"),
        }
    ),
    "stream_options": Fields(scalars("include_usage include_obfuscation continuous_usage_stats")),
    "metadata": METADATA,
}
_COMPLETING = scalars(
    "max_tokens n logprobs min_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side"
    " allowed_token_ids bad_words echo add_special_tokens thinking_token_budget return_token_ids"
    " return_tokens_as_token_ids"
)
#: Pictures, films, sounds and files of a message. OpenAI writes `image_url: {url: …}`, its responses `image_url: …`.
_MEDIA: dict[str, Shape] = dict.fromkeys(
    ("image_url", "video_url", "audio_url", "file_url", "file_data"),
    Fields({**scalars("detail uuid format"), "url": ADDRESS}, text=ADDRESS),
)
PART = Fields(
    {
        **_MEDIA,
        **scalars("type text refusal detail filename uuid thinking signature stdout stderr"),
        **whole("annotations logprobs outcome"),
        "cache_control": CACHE_CONTROL,
        "input_audio": Fields(scalars("data format")),
        "file": Fields({**scalars("filename"), "file_data": ADDRESS}),
    }
)
_FUNCTION = Fields({**scalars("name description strict defer_loading"), **whole("parameters")})
_CALL = Fields({**scalars("name"), **whole("arguments")})
CHAT_TOOL = Fields(
    {
        **scalars("type defer_loading"),
        "function": _FUNCTION,
        "custom": Fields({**scalars("name description"), **whole("format")}),
        "cache_control": CACHE_CONTROL,
    },
    re.compile(r"|function|custom"),
)
_RESPONSE_FORMAT = Fields(
    {
        **scalars("type"),
        "json_schema": Fields({**scalars("name description strict"), **whole("schema")}),
        **whole("structures triggers format"),
    }
)
_NAMED = Fields(scalars("name"))
_TOOL_CHOICE = Fields(
    {
        **scalars("type mode name"),
        **whole("tools"),
        "function": _NAMED,
        "custom": _NAMED,
        "allowed_tools": Fields({**scalars("mode"), **whole("tools")}),
    }
)
CHAT = Fields(
    {
        **_SAMPLING,
        **_COMPLETING,
        **scalars(
            "max_completion_tokens top_logprobs parallel_tool_calls reasoning_effort include_reasoning verbosity"
            " add_generation_prompt continue_final_message"
        ),
        "messages": Fields(
            {
                **scalars("role name tool_call_id refusal reasoning reasoning_content"),
                "content": PART,
                "tool_calls": Fields(
                    {
                        **scalars("id type index"),
                        "function": _CALL,
                        "custom": Fields({**scalars("name"), **whole("input")}),
                    }
                ),
                "function_call": _CALL,
                "cache_control": CACHE_CONTROL,
            }
        ),
        "tools": CHAT_TOOL,
        "tool_choice": _TOOL_CHOICE,
        "functions": _FUNCTION,
        "function_call": _NAMED,
        "response_format": _RESPONSE_FORMAT,
        "thinking": Fields(scalars("type budget_tokens")),
        "chat_template_kwargs": TEMPLATE_ARGUMENTS,
        # Texts that the model's template puts into the prompt.
        "documents": Any_(),
    }
)
COMPLETIONS = Fields({**_SAMPLING, **_COMPLETING, **scalars("prompt suffix best_of")})
RESPONSE_TOOL = Fields(
    {
        **scalars(
            "type name description strict defer_loading async allowed_callers execution external_web_access"
            " search_context_size search_content_types"
        ),
        **whole("parameters output_schema format filters user_location"),
        "function": _FUNCTION,
    },
    re.compile(
        r"|function|custom|namespace|tool_search|local_shell|shell|apply_patch|web_search(_preview)?(_\d{4}_\d\d_\d\d)?"
    ),
)
RESPONSE_TOOL.names["tools"] = RESPONSE_TOOL  # of a namespace
_ITEM = Fields(
    {
        **PART.names,
        **scalars("role id status phase call_id name namespace encrypted_content execution async"),
        **scalars("max_output_length code fingerprint result"),
        **whole("arguments action operation"),
        "content": PART,
        "summary": PART,
        "output": PART,
        # The input of a call to a tool that takes plain text.
        "input": SCALARS,
        "caller": Fields(scalars("type caller_id tool_id")),
        "tools": RESPONSE_TOOL,
    }
)
RESPONSES = Fields(
    {
        **_SAMPLING,
        **scalars(
            "instructions max_output_tokens max_tool_calls parallel_tool_calls top_logprobs truncation store include"
            " include_reasoning prompt_cache_key service_tier"
        ),
        "input": _ITEM,
        "tools": RESPONSE_TOOL,
        "tool_choice": _TOOL_CHOICE,
        "text": Fields(
            {
                **scalars("verbosity"),
                "format": Fields({**scalars("type name description strict"), **whole("schema")}),
            }
        ),
        "reasoning": Fields(scalars("effort summary generate_summary")),
        "chat_template_kwargs": TEMPLATE_ARGUMENTS,
    }
)
EMBEDDINGS = Fields(scalars("model input dimensions encoding_format user truncate_prompt_tokens add_special_tokens"))
