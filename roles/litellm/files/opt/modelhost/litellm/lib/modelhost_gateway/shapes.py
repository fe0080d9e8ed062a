"""The walk through a request: what is on a route's list stays, what is not is taken out or refused."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Union

from .errors import Refused, bad_request

LOG = logging.getLogger("modelhost.gateway")

#: How many different names are counted and logged; a client that invents names fills neither memory nor journal.
MAX_NAMES = 500


class Whole:
    """Stays as it is: neither LiteLLM nor the engine looks for orders in it."""


class Scalars:
    """Texts, numbers, truth values, and lists of them."""


class Address:
    """Where a picture, a film or a sound is. Only `data:`: nothing is fetched for a user."""


@dataclass(frozen=True)
class Any_:
    """An object with names of its own, but values of one kind."""

    never: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Fields:
    """An object with these fields, or a list of such objects."""

    names: dict[str, Any]
    #: A `type` that does not fit takes the whole object out.
    types: re.Pattern[str] | None = None
    #: What stands in place of the object if it is written as a text.
    text: Address | None = None


Shape = Union[Whole, Scalars, Address, Any_, Fields]
WHOLE, SCALARS, ADDRESS = Whole(), Scalars(), Address()

#: By these, wherever they stand, LiteLLM or an engine would use another server, another key or another model, load
#: something, or run something. They are refused and not only taken out, so that nobody believes that they worked.
REFUSED = frozenset(
    {
        "api_base",
        "api_key",
        "api_version",
        "base_url",
        "chat_template",
        "content_policy_fallbacks",
        "context_window_fallbacks",
        "custom_llm_provider",
        "default_headers",
        "extra_body",
        "extra_headers",
        "extra_query",
        "fallbacks",
        "http_client",
        "model_list",
        "provider_specific_header",
        "router_settings_override",
        "ssl_certificate",
        "ssl_key",
        "ssl_verify",
        "user_config",
    }
)
#: The same at the top of a request; further down these words have other meanings.
REFUSED_AT_TOP = frozenset(
    {
        "allowed_fails",
        "api_type",
        "cache",
        "caching",
        "client",
        "conversation",
        "cooldown_time",
        "credentials",
        "deployment_id",
        "documents_url",
        "guardrails",
        "headers",
        "hf_model_name",
        "input_cost_per_token",
        "logger_fn",
        "max_retries",
        "mcp_servers",
        "mock_response",
        "mock_timeout",
        "mock_tool_calls",
        "num_retries",
        "organization",
        "output_cost_per_token",
        "previous_response_id",
        "prompt_embeds",
        "prompt_id",
        "region_name",
        "request_timeout",
        "retry_policy",
        "routing_strategy",
        "s3_bucket_name",
        "stream_timeout",
        "timeout",
        "token",
        "ttl",
        "vector_store_ids",
    }
)
REFUSED_PATTERN = re.compile(
    r"(aws|azure|bedrock|gigachat|huggingface|litellm|oci|sagemaker|vertex|watsonx)_\w+|\w+_auth_url|\w+_api_(base|key)"
)


def all_names(shape: Shape, known: set[int] | None = None) -> set[str]:
    """Every name that stands on a list or below it."""
    known = set() if known is None else known
    if not isinstance(shape, Fields) or id(shape) in known:
        return set()
    known.add(id(shape))
    return set(shape.names).union(*(all_names(below, known) for below in shape.names.values()))


class Seen:
    """What was taken out, by route and name: counted, and logged once."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, where: str, name: str) -> None:
        entry = "%s %s" % (where, name)
        if entry not in self.counts:
            if len(self.counts) >= MAX_NAMES:
                entry = "others"
            else:
                LOG.warning("a field on no list is taken out of requests, now and from here on: %s", ascii(entry))
        self.counts[entry] += 1


class Walk:
    """One request's walk."""

    def __init__(self, route: str, seen: Seen) -> None:
        self.route = route
        self.seen = seen

    def out(self, path: str) -> None:
        self.seen.add(self.route, path[:120])

    def top(self, body: dict[str, Any], fields: Fields) -> dict[str, Any]:
        """The request that goes on."""
        for name, value in body.items():
            if name not in fields.names and name in REFUSED_AT_TOP and value is not None:
                raise refused(name)
        return self.fields(body, fields, "")

    def fields(self, value: dict[str, Any], shape: Fields, path: str) -> dict[str, Any]:
        kept = {}
        for name, child in value.items():
            below = shape.names.get(name)
            if below is not None:
                stays, result = self.value(child, below, path + name)
                if stays:
                    kept[name] = result
            elif child is not None and (name in REFUSED or REFUSED_PATTERN.fullmatch(name)):
                raise refused(path + name)
            else:
                self.out(path + name[:60])
        return kept

    def value(self, value: Any, shape: Shape, path: str) -> tuple[bool, Any]:
        """Whether this stays, and as what."""
        if value is None or isinstance(shape, Whole):
            return True, value
        if isinstance(value, list):
            walked = [self.value(item, shape, path + "[]") for item in value]
            return True, [item for stays, item in walked if stays]
        if isinstance(shape, Address):
            if isinstance(value, str) and value.lstrip()[:5].lower() == "data:":
                return True, value
            raise bad_request(
                "`%s` is no data: address. This gateway fetches nothing: send the content itself, as"
                " data:<type>;base64,<content>." % path,
                path,
            )
        if not isinstance(value, dict):
            if isinstance(shape, Fields) and shape.text:
                return self.value(value, shape.text, path)
            return True, value
        if isinstance(shape, Any_):
            return True, self.free(value, shape, path)
        if isinstance(shape, Fields):
            if shape.types and not shape.types.fullmatch(str(value.get("type") or "")):
                self.out("%s of type %s" % (path, str(value.get("type"))[:60]))
                return False, None
            return True, self.fields(value, shape, path + ".")
        self.out(path + " (an object)")
        return False, None

    def free(self, value: dict[str, Any], shape: Any_, path: str) -> dict[str, Any]:
        kept = {}
        for name, child in value.items():
            if name in shape.never:
                raise refused("%s.%s" % (path, name[:60]))
            if isinstance(child, (dict, list)):
                self.out("%s.%s" % (path, name[:60]))
            else:
                kept[name] = child
        return kept


def refused(name: str) -> Refused:
    return bad_request(
        "The field '%s' is not accepted here; take it out of the request. Which engine answers, and how it is reached,"
        " is the gateway's own business." % name[:120],
        name[:120],
    )
