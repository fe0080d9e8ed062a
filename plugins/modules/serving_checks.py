#!/usr/bin/python
# MIT License (see LICENSE in the collection's root)
"""Checks of a running gateway or engine, with a real user key."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import gateway_usage

DOCUMENTATION = r"""
module: serving_checks
short_description: Check a running gateway or engine as a client would use it
description:
  - Sends the requests that a client sends (chat, messages, streams, tool calls, a wrong key, an unknown model) and
    says of each whether the answer is right.
  - Runs on the host that the gateway or the engine runs on, and reads the key from a file there. The key is never
    returned, and is cut out of every response body that is.
  - Changes nothing, so that it does the same work in check mode. There, a host without the key has nothing to check.
  - A failed check does not fail the module. Look at C(passed).
options:
  url:
    description: Address of the gateway or the engine, without C(/v1).
    type: str
    required: true
  key_file:
    description: File on the host that holds the key and nothing else.
    type: path
    required: true
  mode:
    description: What answers at O(url). An engine has no aliases and no C(/health/readiness).
    type: str
    choices: [gateway, engine]
    default: gateway
  models:
    description: Models to check, each with all checks of its capabilities.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Model name to ask for.
        type: str
        required: true
      loopback:
        description: Whether this is the loopback model. Then prompts carry its script lines and answers must be exact.
        type: bool
        default: false
      replicas:
        description: Number of engines that answer to this name.
        type: int
        default: 1
      capabilities:
        description:
          - What the model and its engine can do. A capability that is set to false makes its checks C(n/a).
          - Known are C(chat), C(messages), C(count_tokens), C(tool_calling), C(parallel_tool_calls) and
            C(prompt_cache). One that is not given counts as true.
        type: dict
        default: {}
  backends:
    description: Engines whose C(/health) to ask.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name to show.
        type: str
        required: true
      url:
        description: Address of the engine as seen from this host.
        type: str
        required: true
  checks:
    description: Names of the checks to run. Empty means all.
    type: list
    elements: str
    default: []
  deadline:
    description: Seconds that one check may take, all its requests together.
    type: int
    default: 300
  total_deadline:
    description: Seconds that all checks may take together. Those that had no turn by then are C(skipped).
    type: int
    default: 3600
  first_token_limit:
    description: Seconds within which the first token of a short prompt must arrive. 0 only measures it.
    type: float
    default: 0
  max_tokens:
    description: Upper limit of tokens for an answer. Models that think first need more.
    type: int
    default: 1024
  cache_prompt_words:
    description: Words of the long prompt for the prompt cache check. It must fill several blocks of the engine's cache.
    type: int
    default: 1500
  usage_file:
    description: The gateway's file of counters on this host, to be shown with the checks. It decides nothing.
    type: path
author:
  - modelhost contributors
"""

EXAMPLES = r"""
- name: Check the gateway
  modelhost.serving.serving_checks:
    url: http://127.0.0.1:4000
    key_file: /etc/modelhost/litellm/keys/verify
    models:
      - name: local-claude-coder
    backends:
      - {name: coder, url: "http://127.0.0.1:8000"}
  register: result
"""

RETURN = r"""
passed:
  description: Whether no check failed and none was skipped.
  type: bool
  returned: always
results:
  description: One entry for each check.
  type: list
  elements: dict
  returned: always
  contains:
    check: {description: Name of the check., type: str}
    model: {description: Model or backend that was asked; empty for neither., type: str}
    status: {description: "passed, failed, n/a or skipped.", type: str}
    seconds: {description: Time it took., type: float}
    detail: {description: What was seen., type: str}
    body: {description: Start of the response body of a failed check., type: str}
table:
  description: The results as lines to print.
  type: list
  elements: str
  returned: always
usage:
  description: What each user has used until now, as lines to print. Empty where nothing was counted.
  type: list
  elements: str
  returned: always
failures:
  description: The failed checks with their response bodies, as lines to print.
  type: list
  elements: str
  returned: always
"""


BODY_LIMIT = 2000

CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city, in English"}},
    "required": ["city"],
}
WEATHER = "get_weather"
WEATHER_DESCRIPTION = "Get the current weather of one city."
OPENAI_TOOLS = [
    {
        "type": "function",
        "function": {"name": WEATHER, "description": WEATHER_DESCRIPTION, "parameters": CITY_SCHEMA},
    }
]
ANTHROPIC_TOOLS = [{"name": WEATHER, "description": WEATHER_DESCRIPTION, "input_schema": CITY_SCHEMA}]

CHAT_PROMPT = "Greet the city of Beijing in Chinese, in one short sentence. Answer with the sentence only."
CHAT_ANSWER = "\u4f60\u597d\uff0c\u5317\u4eac\uff01"
TOOL_PROMPT = "What is the weather in Beijing right now? Call the tool get_weather, then answer in one sentence."
TOOL_RESULT = "21 degrees Celsius, sunny, light wind from the north"
TOOL_ANSWER = "\u5317\u4eac 21 degrees, sunny"
PARALLEL_PROMPT = (
    "Get the current weather of Beijing and of Shanghai. Call the tool get_weather twice in the same turn, "
    "once for each city, before you answer."
)


class CheckFailed(Exception):
    """The answer is not right. `detail` says why and `body` is what came."""

    def __init__(self, detail, body=""):
        super().__init__(detail)
        self.detail = detail
        self.body = body


class NotApplicable(Exception):
    """This engine or model does not claim to do this."""


class TimedOut(CheckFailed):
    """Nothing came in time."""


class Answer:
    """Status, headers and body of one response."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    def json(self):
        try:
            data = json.loads(self.text)
        except ValueError:
            raise CheckFailed("the answer (HTTP %d) is not JSON" % self.status, self.text) from None
        if not isinstance(data, dict):
            raise CheckFailed("the answer (HTTP %d) is not a JSON object" % self.status, self.text)
        return data


class Client:
    """HTTP with one deadline for everything between start() and the end of the check.

    http.client's own timeout restarts with each packet, so that a server which sends a byte now and then would hold
    a check for ever.
    """

    def __init__(self, url, key, deadline):
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.host = parts.hostname
        self.port = parts.port
        self.prefix = parts.path.rstrip("/")
        self.key = key
        self.deadline = deadline
        self.ends = 0.0
        self.start()

    def start(self):
        self.ends = time.monotonic() + self.deadline

    def left(self, seen=""):
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimedOut("no complete answer within %g s" % self.deadline, seen)
        return left

    def open(self, method, path, body=None, auth="bearer", key=None):
        headers = {"Accept": "application/json", "Connection": "close", "User-Agent": "modelhost-serving-checks"}
        key = self.key if key is None else key
        if auth == "bearer":
            headers["Authorization"] = "Bearer " + key
        elif auth == "x-api-key":
            headers["x-api-key"] = key
        if path.startswith("/v1/messages"):
            headers["anthropic-version"] = "2023-06-01"
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8")
            headers["Content-Type"] = "application/json"
        connection: http.client.HTTPConnection
        if self.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=self.left(), context=context)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=self.left())
        try:
            connection.connect()
            # getresponse() lets go of the socket, and its timeout has to be set again before each read.
            sock = connection.sock
            connection.request(method, self.prefix + path, body=data, headers=headers)
            sock.settimeout(self.left())
            return connection, sock, connection.getresponse()
        except OSError as error:
            connection.close()
            self.left()
            raise CheckFailed("%s %s: %s" % (method, path, error)) from error
        except http.client.HTTPException as error:
            connection.close()
            raise CheckFailed("%s %s: broken answer (%s)" % (method, path, error.__class__.__name__)) from error

    def chunks(self, sock, response, seen):
        """Yield the body as it comes, appending to `seen`."""
        # With its last byte a response closes itself, and from Python 3.12.2 on the socket with it.
        while not response.isclosed():
            sock.settimeout(self.left(bytes(seen).decode("utf-8", "replace")))
            try:
                data = response.read1(65536)
            except (OSError, http.client.HTTPException) as error:
                text = bytes(seen).decode("utf-8", "replace")
                self.left(text)
                raise CheckFailed(
                    "the answer broke off (%s)" % (str(error) or error.__class__.__name__), text
                ) from error
            if not data:
                return
            seen.extend(data)
            yield data

    def ask(self, method, path, body=None, auth="bearer", key=None):
        connection, sock, response = self.open(method, path, body, auth, key)
        seen = bytearray()
        try:
            for _unused in self.chunks(sock, response, seen):
                pass
        finally:
            connection.close()
        return Answer(response.status, response.headers, bytes(seen))

    def good(self, method, path, body=None, auth="bearer"):
        answer = self.ask(method, path, body, auth)
        if answer.status != 200:
            raise CheckFailed("%s %s answered HTTP %d" % (method, path, answer.status), answer.text)
        return answer

    def stream(self, path, body):
        """Return (events, raw text); each event is (seconds since the request, data)."""
        began = time.monotonic()
        connection, sock, response = self.open("POST", path, dict(body, stream=True))
        seen = bytearray()
        events = []
        pending = b""
        try:
            for data in self.chunks(sock, response, seen):
                now = time.monotonic() - began
                pending += data
                # Cut at line ends before decoding: a packet may end inside a character.
                while b"\n" in pending:
                    line, pending = pending.split(b"\n", 1)
                    if line.startswith(b"data:"):
                        events.append((now, line[5:].strip().decode("utf-8", "replace")))
        finally:
            connection.close()
        raw = bytes(seen).decode("utf-8", "replace")
        if response.status != 200:
            raise CheckFailed("POST %s (streamed) answered HTTP %d" % (path, response.status), raw)
        if "text/event-stream" not in (response.getheader("Content-Type") or ""):
            raise CheckFailed("a stream was asked for, but the answer is none", raw)
        if not events:
            raise CheckFailed("the stream held no events", raw)
        return events, raw


# --- Reading answers: both APIs, streamed or not, become one Turn.


class Turn:
    """One answer of the model."""

    def __init__(self, text, calls, stop, message, raw, first=None, prompt_tokens=None, cached=None):
        self.text = text
        self.calls = calls  # [(id, name, arguments as dict)]
        self.stop = stop
        self.message = message  # to send back in the next request
        self.raw = raw
        self.first = first
        self.prompt_tokens = prompt_tokens
        self.cached = cached


def parse_arguments(text, raw):
    try:
        arguments = json.loads(text)
    except (ValueError, TypeError):
        raise CheckFailed("the tool call's arguments are not JSON: %r" % (text,), raw) from None
    if not isinstance(arguments, dict):
        raise CheckFailed("the tool call's arguments are not a JSON object: %r" % (text,), raw)
    return arguments


def openai_message(message, raw):
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        calls.append((call.get("id"), function.get("name"), parse_arguments(function.get("arguments"), raw)))
    return message.get("content") or "", calls


def read_openai(answer):
    data = answer.json()
    try:
        choice = data["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        raise CheckFailed("the answer has no choices[0].message", answer.text) from None
    text, calls = openai_message(message, answer.text)
    tokens = (data.get("usage") or {}).get("prompt_tokens")
    return Turn(text, calls, choice.get("finish_reason"), message, answer.text, prompt_tokens=tokens)


def read_openai_stream(events, raw):
    if events[-1][1] != "[DONE]":
        raise CheckFailed("the stream ended without [DONE]", raw)
    text, stop, first = "", None, None
    calls: dict[int, Any] = {}
    tokens = None
    for seconds, data in events[:-1]:
        try:
            chunk = json.loads(data)
        except ValueError:
            raise CheckFailed("an event of the stream is not JSON: %r" % data, raw) from None
        if "error" in chunk:
            raise CheckFailed("the stream carries an error", raw)
        tokens = (chunk.get("usage") or {}).get("prompt_tokens", tokens)
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            stop = choice.get("finish_reason") or stop
            if first is None and (delta.get("content") or delta.get("tool_calls") or delta.get("reasoning_content")
                                  or delta.get("reasoning")):  # fmt: skip
                first = seconds
            text += delta.get("content") or ""
            for part in delta.get("tool_calls") or []:
                call = calls.setdefault(part.get("index", 0), {"id": None, "name": "", "arguments": ""})
                function = part.get("function") or {}
                call["id"] = part.get("id") or call["id"]
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
    ordered = [calls[index] for index in sorted(calls)]
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if ordered:
        message["tool_calls"] = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in ordered
        ]
    parsed = [(c["id"], c["name"], parse_arguments(c["arguments"], raw)) for c in ordered]
    if stop is None:
        raise CheckFailed("the stream gives no finish_reason", raw)
    return Turn(text, parsed, stop, message, raw, first, prompt_tokens=tokens)


def anthropic_turn(content, stop, usage, raw, first=None):
    text, calls = "", []
    for block in content:
        if block.get("type") == "text":
            text += block.get("text") or ""
        elif block.get("type") == "tool_use":
            if not isinstance(block.get("input"), dict):
                raise CheckFailed("the tool call's input is not a JSON object: %r" % (block.get("input"),), raw)
            calls.append((block.get("id"), block.get("name"), block["input"]))
    cached = usage.get("cache_read_input_tokens") or 0
    tokens = (usage.get("input_tokens") or 0) + cached + (usage.get("cache_creation_input_tokens") or 0)
    # Thinking goes back to no engine that did not sign it.
    back = [block for block in content if block.get("type") in ("text", "tool_use")]
    return Turn(text, calls, stop, {"role": "assistant", "content": back}, raw, first, tokens, cached)


def read_anthropic(answer):
    data = answer.json()
    if not isinstance(data.get("content"), list):
        raise CheckFailed("the answer has no list `content`", answer.text)
    return anthropic_turn(data["content"], data.get("stop_reason"), data.get("usage") or {}, answer.text)


def read_anthropic_stream(events, raw):
    blocks: dict[int, Any] = {}
    usage: dict[str, Any] = {}
    open_blocks = set()
    stop, first, kinds = None, None, []
    for seconds, data in events:
        if data == "[DONE]":
            continue
        try:
            event = json.loads(data)
        except ValueError:
            raise CheckFailed("an event of the stream is not JSON: %r" % data, raw) from None
        kind = event.get("type")
        kinds.append(kind)
        if kind == "error" or "error" in event:
            raise CheckFailed("the stream carries an error", raw)
        if kind == "message_start":
            usage.update((event.get("message") or {}).get("usage") or {})
        elif kind == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"], _json="")
            open_blocks.add(event["index"])
        elif kind == "content_block_delta":
            delta = event.get("delta") or {}
            if event.get("index") not in open_blocks:
                raise CheckFailed("the stream fills a block that is not open", raw)
            block = blocks[event["index"]]
            if first is None and delta.get("type") in ("text_delta", "input_json_delta", "thinking_delta"):
                first = seconds
            if delta.get("type") == "text_delta":
                block["text"] = (block.get("text") or "") + delta["text"]
            elif delta.get("type") == "input_json_delta":
                block["_json"] += delta["partial_json"]
        elif kind == "content_block_stop":
            open_blocks.discard(event["index"])
        elif kind == "message_delta":
            stop = (event.get("delta") or {}).get("stop_reason") or stop
            # Nulls in the last event must not wipe what the first one said.
            usage.update({k: v for k, v in (event.get("usage") or {}).items() if v is not None})
    if not kinds or kinds[0] != "message_start":
        raise CheckFailed("the stream does not begin with message_start", raw)
    if kinds[-1] != "message_stop":
        raise CheckFailed("the stream ended without message_stop", raw)
    if open_blocks:
        raise CheckFailed("the stream leaves a block open", raw)
    content = []
    for index in sorted(blocks):
        block = blocks[index]
        text = block.pop("_json")
        if block.get("type") == "tool_use" and (text or not isinstance(block.get("input"), dict)):
            block["input"] = parse_arguments(text, raw)
        content.append(block)
    return anthropic_turn(content, stop, usage, raw, first)


class OpenAI:
    """Chat completions."""

    label = "chat"
    capability = "chat"
    call_stop = ("tool_calls",)
    end_stop = ("stop",)

    def __init__(self, client, max_tokens):
        self.client = client
        self.max_tokens = max_tokens

    def body(self, model, messages, tools, system):
        if system:
            messages = [{"role": "system", "content": system}] + messages
        body = {"model": model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0}
        if tools:
            body["tools"] = OPENAI_TOOLS
        return body

    def ask(self, model, messages, tools=False, stream=False, system=None):
        body = self.body(model, messages, tools, system)
        if stream:
            body["stream_options"] = {"include_usage": True}
            return read_openai_stream(*self.client.stream("/v1/chat/completions", body))
        return read_openai(self.client.good("POST", "/v1/chat/completions", body))

    @staticmethod
    def results(turn, text):
        return [{"role": "tool", "tool_call_id": call[0], "content": text} for call in turn.calls]


class Anthropic:
    """Messages."""

    label = "messages"
    capability = "messages"
    call_stop = ("tool_use",)
    end_stop = ("end_turn", "stop_sequence")

    def __init__(self, client, max_tokens):
        self.client = client
        self.max_tokens = max_tokens

    def ask(self, model, messages, tools=False, stream=False, system=None):
        body = {"model": model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0}
        if system:
            body["system"] = system
        if tools:
            body["tools"] = ANTHROPIC_TOOLS
        if stream:
            return read_anthropic_stream(*self.client.stream("/v1/messages", body))
        return read_anthropic(self.client.good("POST", "/v1/messages", body))

    @staticmethod
    def results(turn, text):
        parts = [{"type": "tool_result", "tool_use_id": call[0], "content": text} for call in turn.calls]
        return [{"role": "user", "content": parts}]


# --- The checks


def user(text):
    return [{"role": "user", "content": text}]


def prompt(text, model, script):
    """Add the loopback model's script lines, so that its answers can be held against exact ones."""
    return text + "\n" + script if model["loopback"] else text


def expect_end(api, turn):
    if turn.calls:
        raise CheckFailed("a tool call came where text was expected", turn.raw)
    if not turn.text.strip():
        why = "; max_tokens is used up" if turn.stop in ("length", "max_tokens") else ""
        raise CheckFailed("the answer holds no text%s" % why, turn.raw)
    if turn.stop not in api.end_stop + ("length", "max_tokens"):
        raise CheckFailed("the answer stops with %r instead of %s" % (turn.stop, " or ".join(api.end_stop)), turn.raw)


def expect_calls(api, turn):
    if not turn.calls:
        looks = " (the text looks like one: wrong tool parser?)" if WEATHER in turn.text else ""
        raise CheckFailed("no tool call came%s" % looks, turn.raw)
    ids = [call[0] for call in turn.calls]
    if not all(ids) or len(set(ids)) != len(ids):
        raise CheckFailed("the tool calls' ids are missing or not unique: %r" % (ids,), turn.raw)
    for _unused, name, arguments in turn.calls:
        if name != WEATHER:
            raise CheckFailed("the tool %r was called instead of %r" % (name, WEATHER), turn.raw)
        if not isinstance(arguments.get("city"), str) or not arguments["city"].strip():
            raise CheckFailed("the tool call lacks its required argument `city`: %r" % (arguments,), turn.raw)
    if turn.stop not in api.call_stop:
        raise CheckFailed("a tool call stops with %r instead of %s" % (turn.stop, api.call_stop[0]), turn.raw)


def expect_exact(turn, text, model):
    if model["loopback"] and turn.text.strip() != text:
        raise CheckFailed("the answer is not the one that the script asks for (%s)" % text, turn.raw)


#: Of an engine: what its own check of keys covers, and what only our guard does.
ENGINE_ROUTES = (
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/invocations"),
    ("POST", "/tokenize"),
    ("GET", "/version"),
)


class Checks:
    """All checks; each returns the detail to show, or raises."""

    def __init__(self, client, params):
        self.client = client
        self.params = params
        self.gateway = params["mode"] == "gateway"
        self.openai = OpenAI(client, params["max_tokens"])
        self.anthropic = Anthropic(client, params["max_tokens"])

    def health(self, path):
        self.client.ends = min(self.client.ends, time.monotonic() + 30)
        answer = self.client.ask("GET", path, auth=None)
        if answer.status != 200:
            raise CheckFailed("GET %s answered HTTP %d" % (path, answer.status), answer.text)
        return "HTTP 200"

    def backend(self, backend):
        other = Client(backend["url"], "", min(30, self.params["deadline"]))
        answer = other.ask("GET", "/health", auth=None)
        if answer.status != 200:
            raise CheckFailed("%s/health answered HTTP %d" % (backend["url"], answer.status), answer.text)
        return "HTTP 200 from %s" % backend["url"]

    def guarded(self, backend, key):
        """An engine's own port, with a wrong key or with none."""
        other = Client(backend["url"], key, min(30, self.params["deadline"]))
        for method, path in ENGINE_ROUTES:
            answer = other.ask(method, path, {} if method == "POST" else None, auth="bearer" if key else None)
            if answer.status != 401:
                why = "%s%s answered HTTP %d instead of 401" % (backend["url"], path, answer.status)
                raise CheckFailed(why, answer.text)
        return "HTTP 401 from %d routes" % len(ENGINE_ROUTES)

    def models(self):
        answer = self.client.good("GET", "/v1/models")
        data = answer.json().get("data")
        if not isinstance(data, list):
            raise CheckFailed("the answer has no list `data`", answer.text)
        names = [entry.get("id") for entry in data if isinstance(entry, dict)]
        missing = [model["name"] for model in self.params["models"] if model["name"] not in names]
        if missing:
            raise CheckFailed("not listed: %s" % ", ".join(missing), answer.text)
        return "%d listed" % len(names)

    def wrong_key(self, path, auth):
        wrong = "sk-" + uuid.uuid4().hex + uuid.uuid4().hex
        name = self.params["models"][0]["name"]
        body = {"model": name, "max_tokens": 8, "messages": user("hello")}
        for label, key, how in (("a wrong key", wrong, auth), ("no key", "", None)):
            answer = self.client.ask("POST", path, body, auth=how, key=key)
            if answer.status != 401:
                raise CheckFailed("%s was answered with HTTP %d instead of 401" % (label, answer.status), answer.text)
            if wrong in answer.text:
                raise CheckFailed("the answer repeats the key that was sent", answer.text.replace(wrong, "(key)"))
        return "HTTP 401"

    def x_api_key(self):
        name = self.params["models"][0]["name"]
        body = {"model": name, "max_tokens": self.params["max_tokens"], "messages": user("hello")}
        if not self.params["models"][0]["capabilities"].get("messages", True):
            raise NotApplicable("no Messages API")
        answer = self.client.good("POST", "/v1/messages", body, auth="x-api-key")
        read_anthropic(answer)
        return "HTTP 200"

    def unknown_model(self, path):
        name = "no-such-model-" + uuid.uuid4().hex[:8]
        body = {"model": name, "max_tokens": 8, "messages": user("hello")}
        answer = self.client.ask("POST", path, body)
        if answer.status not in (400, 403, 404, 422):
            raise CheckFailed("HTTP %d instead of 400, 403, 404 or 422" % answer.status, answer.text)
        if name not in answer.text:
            raise CheckFailed("the message does not name the model that was asked for", answer.text)
        for backend in self.params["backends"]:
            if urlsplit(backend["url"]).netloc in answer.text:
                raise CheckFailed("the message gives a backend's address away", answer.text)
        return "HTTP %d, names the model" % answer.status

    def foreign_field(self):
        if not self.gateway:
            raise NotApplicable("the gateway looks at fields, an engine does not")
        name = self.params["models"][0]["name"]
        # Port 9 of the host itself: were it used after all, nobody else would be asked.
        body = {"model": name, "max_tokens": 8, "messages": user("hello"), "api_base": "http://127.0.0.1:9"}
        answer = self.client.ask("POST", "/v1/chat/completions", body)
        if answer.status != 400:
            raise CheckFailed("a field that names another server got HTTP %d, not 400" % answer.status, answer.text)
        if "api_base" not in answer.text:
            raise CheckFailed("the message does not name the field", answer.text)
        return "HTTP 400, names the field"

    def plain(self, api, model, stream):
        turn = api.ask(model["name"], user(prompt(CHAT_PROMPT, model, "@say " + CHAT_ANSWER)), stream=stream)
        expect_end(api, turn)
        expect_exact(turn, CHAT_ANSWER, model)
        if turn.prompt_tokens is not None and turn.prompt_tokens <= 0:
            raise CheckFailed("the usage counts no prompt tokens", turn.raw)
        return "%d characters" % len(turn.text.strip())

    def count_tokens(self, model):
        counts = []
        for text in ("hello", "hello " * 400):
            answer = self.client.good(
                "POST", "/v1/messages/count_tokens", {"model": model["name"], "messages": user(text)}
            )
            count = answer.json().get("input_tokens")
            if not isinstance(count, int) or count <= 0:
                raise CheckFailed("input_tokens is %r" % (count,), answer.text)
            counts.append(count)
        if counts[1] < counts[0] + 200:
            raise CheckFailed("400 more words count as %d more tokens" % (counts[1] - counts[0]), answer.text)
        return "%d and %d tokens" % tuple(counts)

    def tools(self, api, model, stream):
        script = '@call %s {"city": "Beijing"}\n@say %s' % (WEATHER, TOOL_ANSWER)
        messages = user(prompt(TOOL_PROMPT, model, script))
        turn = api.ask(model["name"], messages, tools=True, stream=stream)
        expect_calls(api, turn)
        if model["loopback"] and [call[2] for call in turn.calls] != [{"city": "Beijing"}]:
            raise CheckFailed("the call is not the one that the script asks for", turn.raw)
        messages = messages + [turn.message] + api.results(turn, TOOL_RESULT)
        answer = api.ask(model["name"], messages, tools=True, stream=stream)
        expect_end(api, answer)
        expect_exact(answer, TOOL_ANSWER, model)
        quoted = "" if "21" in answer.text else "; the answer does not quote the result"
        return "%s(%s)%s" % (WEATHER, json.dumps(turn.calls[0][2], ensure_ascii=False), quoted)

    def parallel(self, api, model):
        script = '@call %s {"city": "Beijing"}\n@also %s {"city": "Shanghai"}\n@say %s' % (
            WEATHER,
            WEATHER,
            TOOL_ANSWER,
        )
        messages = user(prompt(PARALLEL_PROMPT, model, script))
        turn = api.ask(model["name"], messages, tools=True)
        expect_calls(api, turn)
        cities = [call[2]["city"].strip().lower() for call in turn.calls]
        if len(set(cities)) < 2:
            raise CheckFailed("two calls were asked for in one turn; came: %s" % ", ".join(cities), turn.raw)
        answer = api.ask(model["name"], messages + [turn.message] + api.results(turn, TOOL_RESULT), tools=True)
        expect_end(api, answer)
        return "%d calls in one turn" % len(cities)

    def prompt_cache(self, model):
        # A new number at the head, or a run before this one would have filled the cache.
        head = "Session %s. Remember this list.\n" % uuid.uuid4().hex
        words = ["line %d" % number for number in range(self.params["cache_prompt_words"] // 2)]
        system = head + "\n".join(words)
        messages = user(prompt("Say ready.", model, "@say ready"))
        first = self.anthropic.ask(model["name"], messages, system=system)
        expect_end(self.anthropic, first)
        messages = messages + [first.message] + user(prompt("Say it again.", model, "@say ready"))
        turn = first
        for attempt in range(max(1, model["replicas"])):
            turn = self.anthropic.ask(model["name"], messages, system=system)
            if turn.cached:
                share = 100.0 * turn.cached / max(1, turn.prompt_tokens)
                which = "" if attempt == 0 else " (at try %d: replicas without affinity)" % (attempt + 1)
                return "%d of %d prompt tokens (%.0f %%)%s" % (turn.cached, turn.prompt_tokens, share, which)
        raise CheckFailed(
            "cache_read_input_tokens is 0 on the second turn of %s prompt tokens: no prefix caching, or the engine "
            "does not report it" % turn.prompt_tokens,
            turn.raw,
        )

    def first_token(self, model):
        api = self.anthropic if model["capabilities"].get("messages", True) else self.openai
        turn = api.ask(model["name"], user(prompt("Say ready.", model, "@say ready")), stream=True)
        if turn.first is None:
            raise CheckFailed("the stream held no token", turn.raw)
        limit = self.params["first_token_limit"]
        if limit and turn.first > limit:
            raise CheckFailed("the first token came after %.2f s; the limit is %g s" % (turn.first, limit), turn.raw)
        return "after %.2f s" % turn.first

    def plan(self):
        """Yield (check, subject, needed capabilities, capabilities, function)."""
        plan: list[Any] = []
        if self.gateway:
            plan.append(("health: liveliness", "", (), {}, lambda: self.health("/health/liveliness")))
            plan.append(("health: readiness", "", (), {}, lambda: self.health("/health/readiness")))
        else:
            plan.append(("health", "", (), {}, lambda: self.health("/health")))
        for backend in self.params["backends"]:
            plan.append(("health: engine", backend["name"], (), {}, lambda b=backend: self.backend(b)))
            plan.append(("no key: engine", backend["name"], (), {}, lambda b=backend: self.guarded(b, "")))
            plan.append(("wrong key: engine", backend["name"], (), {},
                         lambda b=backend: self.guarded(b, "sk-" + uuid.uuid4().hex)))  # fmt: skip
        plan.append(("models", "", (), {}, self.models))
        first = self.params["models"][0]["capabilities"]
        plan.append(("wrong key: chat", "", (), {}, lambda: self.wrong_key("/v1/chat/completions", "bearer")))
        plan.append(("wrong key: messages", "", ("messages",), first,
                     lambda: self.wrong_key("/v1/messages", "x-api-key")))  # fmt: skip
        plan.append(("x-api-key", "", (), {}, self.x_api_key))
        plan.append(("unknown model: chat", "", (), {}, lambda: self.unknown_model("/v1/chat/completions")))
        plan.append(("unknown model: messages", "", ("messages",), first,
                     lambda: self.unknown_model("/v1/messages")))  # fmt: skip
        plan.append(("foreign field", "", (), {}, self.foreign_field))
        for model in self.params["models"]:
            name, can = model["name"], model["capabilities"]
            for api in (self.openai, self.anthropic):
                for stream, suffix in ((False, ""), (True, ", streamed")):
                    plan.append((api.label + suffix, name, (api.capability,), can,
                                 lambda a=api, m=model, s=stream: self.plain(a, m, s)))  # fmt: skip
            plan.append(("count_tokens", name, ("messages", "count_tokens"), can,
                         lambda m=model: self.count_tokens(m)))  # fmt: skip
            for api in (self.openai, self.anthropic):
                for stream, suffix in ((False, ""), (True, ", streamed")):
                    plan.append((api.label + ": tool call" + suffix, name, (api.capability, "tool_calling"), can,
                                 lambda a=api, m=model, s=stream: self.tools(a, m, s)))  # fmt: skip
                plan.append((api.label + ": parallel calls", name,
                             (api.capability, "tool_calling", "parallel_tool_calls"), can,
                             lambda a=api, m=model: self.parallel(a, m)))  # fmt: skip
            plan.append(("prompt cache", name, ("messages", "prompt_cache"), can,
                         lambda m=model: self.prompt_cache(m)))  # fmt: skip
            plan.append(("first token", name, (), can, lambda m=model: self.first_token(m)))
        return plan

    def clean(self, text):
        """Cut the key out of what goes back to the controller, and the text to a readable length."""
        text = str(text)
        if self.client.key:
            text = text.replace(self.client.key, "(key)")
        return text if len(text) <= BODY_LIMIT else text[:BODY_LIMIT] + " ... (%d more)" % (len(text) - BODY_LIMIT)

    def run(self):
        results = []
        ends = time.monotonic() + self.params["total_deadline"]
        blocked = ""
        wanted = self.params["checks"]
        for check, subject, needs, can, function in self.plan():
            if wanted and check not in wanted:
                continue
            lacks = [need for need in needs if not can.get(need, True)]
            began = time.monotonic()
            body = ""
            if lacks:
                status, detail = "n/a", "not claimed: " + ", ".join(lacks)
            elif blocked:
                status, detail = "skipped", blocked
            elif began >= ends:
                status, detail = "skipped", "total_deadline of %d s is over" % self.params["total_deadline"]
            else:
                self.client.start()
                self.client.ends = min(self.client.ends, ends)
                try:
                    status, detail = "passed", function()
                except NotApplicable as reason:
                    status, detail = "n/a", str(reason)
                except CheckFailed as failure:
                    status, detail, body = "failed", failure.detail, failure.body
                except Exception as error:  # An answer of an unforeseen shape is a failed check, not a crash.
                    status, detail = "failed", "unexpected answer (%s: %s)" % (error.__class__.__name__, error)
                if status == "failed" and check in ("health", "health: liveliness"):
                    blocked = "not tried: %s failed" % check
            results.append({
                "check": check,
                "model": subject,
                "status": status,
                "seconds": round(time.monotonic() - began, 2),
                "detail": self.clean(detail),
                "body": self.clean(body),
            })  # fmt: skip
        return results


def table(results):
    """Lay the results out in columns."""
    heads = ("check", "model", "status", "seconds")
    rows = [(r["check"], r["model"] or "-", r["status"], "%.2f" % r["seconds"]) for r in results]
    widths = [max(len(row[i]) for row in [heads] + rows) for i in range(4)]

    def line(cells, detail):
        left = "  ".join(cell.ljust(width) for cell, width in zip(cells[:3], widths))
        return ("%s  %s  %s" % (left, cells[3].rjust(widths[3]), detail)).rstrip()

    lines = [line(heads, "detail"), "  ".join("-" * width for width in widths) + "  ------"]
    lines += [line(row, result["detail"]) for row, result in zip(rows, results)]
    counts = ["%d %s" % (sum(r["status"] == s for r in results), s) for s in ("passed", "failed", "n/a", "skipped")]
    return lines + ["", ", ".join(counts)]


def failures(results):
    lines = []
    for result in results:
        if result["status"] != "failed":
            continue
        subject = " (%s)" % result["model"] if result["model"] else ""
        lines.append("FAILED %s%s: %s" % (result["check"], subject, result["detail"]))
        if result["body"]:
            lines.append("  response body:")
            lines += ["    " + line for line in result["body"].splitlines() if line.strip()]
    return lines


def read_key(path):
    with open(path, encoding="utf-8") as handle:
        key = handle.read().strip()
    if not key or len(key.split()) != 1:
        raise ValueError("it does not hold exactly one word")
    return key


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "key_file": {"type": "path", "required": True, "no_log": False},
            "mode": {"type": "str", "choices": ["gateway", "engine"], "default": "gateway"},
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "loopback": {"type": "bool", "default": False},
                    "replicas": {"type": "int", "default": 1},
                    "capabilities": {"type": "dict", "default": {}},
                },
            },
            "backends": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "url": {"type": "str", "required": True}},
            },
            "checks": {"type": "list", "elements": "str", "default": []},
            "deadline": {"type": "int", "default": 300},
            "total_deadline": {"type": "int", "default": 3600},
            "first_token_limit": {"type": "float", "default": 0},
            "max_tokens": {"type": "int", "default": 1024, "no_log": False},
            "cache_prompt_words": {"type": "int", "default": 1500},
            "usage_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["models"]:
        module.fail_json(msg="models is empty: there is nothing to check.")
    if urlsplit(params["url"]).scheme not in ("http", "https"):
        module.fail_json(msg="url is %r. It must begin with http:// or https://." % params["url"])
    if not os.path.exists(params["key_file"]):
        if module.check_mode:
            said = "Nothing is deployed here yet (%s is not there): nothing to check." % params["key_file"]
            module.exit_json(changed=False, passed=True, results=[], table=[said], failures=[], usage=[])
        module.fail_json(msg="key_file %s is not there. Deploy the gateway or the engine first." % params["key_file"])
    try:
        key = read_key(params["key_file"])
    except (OSError, ValueError) as error:
        module.fail_json(msg="Cannot read the key from %s: %s" % (params["key_file"], error))
    # Whatever is returned, Ansible masks this value in it.
    module.no_log_values.add(key)
    checks = Checks(Client(params["url"], key, params["deadline"]), params)
    known = {entry[0] for entry in checks.plan()}
    unknown = sorted(set(params["checks"]) - known)
    if unknown:
        module.fail_json(msg="Unknown checks: %s. Known are: %s." % (", ".join(unknown), ", ".join(sorted(known))))
    results = checks.run()
    passed = all(result["status"] in ("passed", "n/a") for result in results)
    usage = gateway_usage.lines(params["usage_file"]) if params["usage_file"] else []
    module.exit_json(
        changed=False, passed=passed, results=results, table=table(results), failures=failures(results), usage=usage
    )


if __name__ == "__main__":
    main()
