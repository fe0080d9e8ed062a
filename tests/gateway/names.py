"""Run by the gateway's Python: every name that LiteLLM's own code takes from a request, as JSON."""

import inspect
import json
import re
from pathlib import Path

import litellm
from litellm.types import router, utils

NAME = r"[A-Za-z_][A-Za-z0-9_.-]{1,60}"
TAKEN = re.compile(
    r"(?:kwargs|params|data|body|request_data|request_body|metadata|optional_params|litellm_params)\w*"
    r"(?:\.(?:get|pop|setdefault)\(|\[)\s*[\"'](%s)[\"']" % NAME
)
HEADER = re.compile(r"[\"']((?:x|anthropic|openai|llm_provider)-%s)[\"']" % NAME, re.IGNORECASE)

fields, headers = set(utils.all_litellm_params), set()
fields |= set(router.GenericLiteLLMParams.model_fields) | set(router.LiteLLM_Params.model_fields)
fields |= set(litellm.OPENAI_CHAT_COMPLETION_PARAMS)
for function in (
    litellm.completion,
    litellm.embedding,
    litellm.text_completion,
    litellm.responses,
    litellm.Router.__init__,
):
    fields |= set(inspect.signature(function).parameters)
for source in Path(litellm.__file__).parent.rglob("*.py"):
    text = source.read_text(encoding="utf-8")
    fields |= set(TAKEN.findall(text))
    headers |= {name.lower() for name in HEADER.findall(text)}
print(json.dumps({"fields": sorted(fields - {"self"}), "headers": sorted(headers)}))
