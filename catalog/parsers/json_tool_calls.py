"""Tool calls that a model writes as JSON, with or without the marks that it was asked for.

A tool parser plugin for vLLM 0.32 (``--tool-parser-plugin``), under two names for ``--tool-call-parser``:

* ``qwen2_5_coder``: Qwen2.5-Coder writes its calls as bare JSON, in a Markdown fence, within ``<tools>`` or within
  ``<tool_call>``. vLLM's own ``hermes`` knows only the last form.
* ``prompted_tools``: models that were never taught to call tools, and are told how by one of our templates.

A call is an object with ``name`` and ``arguments`` (or ``parameters``) that begins a line, or follows a fence, a
bracket or one of the tags below. Within a tag that says "call" any name will do: the client then tells the model that
there is no such tool. Elsewhere it must be one of the request's tools, so that an answer which is JSON stays an answer.

``CallReader`` takes the text in whatever pieces it comes, and says what is certain by then. An answer that is not
streamed goes through it in one piece, so that both come out the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import regex  # Unlike `re`, it can tell that a text may yet become a match.
from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers import ToolParser, ToolParserManager
from vllm.tool_parsers.utils import get_function_tools

#: Tags that say "call", and others that Qwen2.5-Coder puts around one (https://github.com/ggml-org/llama.cpp/pull/12034).
CALL_TAGS = "tool_call|tools|function_call"
TAGS = f"{CALL_TAGS}|response|json|JSON|xml"

#: Nothing is unlimited here: a model that repeats itself must not make us search ever longer texts.
WS = r"\s{0,100}"
PLAIN_OPENING = rf"(?:(?:```[\w-]{{0,20}}|<(?:response|json|JSON|xml)>|\[){WS}){{0,4}}"
ANY_OPENING = rf"(?:(?:```[\w-]{{0,20}}|<(?:{TAGS})>|\[){WS}){{0,4}}"
CALL_OPENING = rf"{PLAIN_OPENING}<(?:{CALL_TAGS})>{WS}{ANY_OPENING}"
ANY_NAME = r'[^"\\]{1,200}'
ANY_OBJECT = rf'(?P<brace>\{{){WS}"'

#: The first character of every opening. All but a tag must come first on their line.
BEGINNING = regex.compile(r"[<`\[{]")
CALL_TAG = regex.compile(f"<(?:{CALL_TAGS})>")
JSON_OBJECT = regex.compile(ANY_OPENING + ANY_OBJECT)
#: What follows the arguments: the end of the call's object, or more keys.
AFTER_ARGUMENTS = regex.compile(rf'{WS}(?:(?P<end>\}})|,{WS}")')
BETWEEN_CALLS = regex.compile(r"[\s,;}\]]*")
CLOSING = regex.compile(rf"```|</(?P<tag>{TAGS})>")
ESCAPE = regex.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')

Form = tuple["regex.Pattern[str]", "regex.Pattern[str]"]
Event = tuple[str, str]


def form(opening: str, name: str, other: str) -> Form:
    """A call up to the brace of its arguments, which can be passed on as they come; and the beginning of an object that
    must be complete to be judged."""
    arguments = rf'"{WS},{WS}"(?:arguments|parameters)"{WS}:{WS}(?P<brace>\{{)'
    return (
        regex.compile(rf'{opening}\{{{WS}"name"{WS}:{WS}"(?P<name>{name}){arguments}'),
        regex.compile(opening + other),
    )


TAGGED = form(CALL_OPENING, ANY_NAME, ANY_OBJECT)
IN_TAG = form(ANY_OPENING, ANY_NAME, ANY_OBJECT)


class Json:
    """Follows one JSON object through a text that comes in pieces, and mends what models get wrong in strings."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.in_string = False

    def read(self, text: str, final: bool) -> tuple[str, int, bool]:
        """The object's part at the start of the text as valid JSON, that part's length, and whether the object ended.

        Line breaks and other control characters are escaped, and so are backslashes that escape nothing. An escape that
        is cut off is left to the next piece.
        """
        out = []
        at = 0
        while at < len(text):
            char = text[at]
            length = 1
            if self.in_string:
                if char == "\\":
                    escape = ESCAPE.match(text, at, partial=not final)
                    if escape and escape.partial:
                        break
                    char = escape.group() if escape else "\\\\"
                    length = len(char) if escape else 1
                elif char == '"':
                    self.in_string = False
                elif char < " ":
                    char = json.dumps(char)[1:-1]
            elif char == '"':
                self.in_string = True
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
            out.append(char)
            at += length
            if self.depth == 0:
                return "".join(out), at, True
        return "".join(out), at, False


def as_call(text: str, tagged: bool) -> Event | None:
    """Name and arguments of a complete object that is a call written in another way than the usual one."""
    try:
        call = json.loads(text)
        call = call["function"] if isinstance(call.get("function"), dict) else call
        name = call["name"]
        written = [call[key] for key in ("arguments", "parameters") if key in call]
        arguments = written[0] if written else {}
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        arguments = {} if arguments is None else arguments
        # What has a description is a tool, not a call of it.
        if "description" in call or not (written or tagged):
            return None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


class CallReader:
    """Tells calls from text while the text is coming in."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        known = "|".join(regex.escape(name) for name in sorted(names))
        keys = rf'(?:"name"{WS}:{WS}"(?:{known})"|"type"{WS}:{WS}"function"|"function"{WS}:{WS}\{{)'
        self.known = form(PLAIN_OPENING, known, rf"(?P<brace>\{{){WS}{keys}")

        self.events: list[Event] = []
        self.rest = ""  # came in and is not decided yet
        self.step = self.read_text
        self.json = Json()

        self.line_is_blank = True  # what was passed on of the present line
        self.blanks = ""  # at the end of the text so far: dropped if a call follows
        self.spoke = self.called = self.just_called = False
        self.tagged = self.fenced = False  # what the present group of calls stands in
        # Of the object that is read: what stands before it, how far it was read, and what it is so far.
        self.opening, self.read_to, self.object = "", 0, ""

    def feed(self, text: str, final: bool = False) -> list[Event]:
        """What has become certain: ("text", …), ("call", name) and ("arguments", piece)."""
        if not self.names:
            return [("text", text)] if text else []
        self.events = []
        self.rest += text
        while self.step(final):
            pass
        if final and not self.called and self.blanks:
            self.events.append(("text", self.blanks))
        return self.events

    @property
    def unfinished(self) -> bool:
        """The text ended within a call's arguments."""
        return self.step == self.read_arguments

    def say(self, length: int) -> None:
        """Pass on the first `length` characters of the rest as text."""
        text, self.rest = self.rest[:length], self.rest[length:]
        words = text.rstrip()
        if words:
            before = self.blanks
            if self.just_called:
                words = words.lstrip()
                before = "\n\n" if self.spoke else ""
            self.events.append(("text", before + words))
            self.spoke, self.just_called, self.blanks = True, False, ""
        self.blanks += text[len(text.rstrip()) :]
        _, line_break, line = text.rpartition("\n")
        self.line_is_blank = not line.strip() and (bool(line_break) or self.line_is_blank)

    # --- steps: each returns whether another may follow at once

    def read_text(self, final: bool) -> bool:
        for beginning in BEGINNING.finditer(self.rest):
            at = beginning.start()
            line = self.rest.rfind("\n", 0, at) + 1
            first = not self.rest[line:at].strip() and (line > 0 or self.line_is_blank)
            if first or beginning.group() == "<":
                found = self.find(at, final)
                if found:
                    self.say(at)
                    return self.begin(*found)
        self.say(len(self.rest))
        return False

    def find(self, at: int, final: bool) -> tuple[str, int, str] | None:
        """What begins at `at`, the distance from there to the brace that matters, and the name of the call."""
        for usual, other in [IN_TAG] if self.tagged else [TAGGED, self.known]:
            call = usual.match(self.rest, at, partial=not final)
            thing = other.match(self.rest, at, partial=not final)
            if (call and call.partial) or (thing and thing.partial and not call):
                return "unclear", 0, ""
            if call:
                return "call", call.start("brace") - at, call.group("name")
            if thing:
                return "object", thing.start("brace") - at, ""
        plain = JSON_OBJECT.match(self.rest, at)
        return ("plain", plain.start("brace") - at, "") if plain else None

    def begin(self, what: str, brace: int, name: str) -> bool:
        if what == "unclear":
            return False
        self.opening = self.rest.partition("{")[0]
        self.json, self.object, self.read_to = Json(), "", brace
        if what == "plain":
            self.say(brace)
            self.step = self.read_plain
        elif what == "object":
            self.step = self.read_object
        else:
            self.call(name, brace)
            self.step = self.read_arguments
        return True

    def call(self, name: str, length: int) -> None:
        """A call has begun; it took the first `length` characters of the rest."""
        self.rest = self.rest[length:]
        self.tagged = self.tagged or bool(CALL_TAG.search(self.opening))
        self.fenced = self.fenced != (self.opening.count("```") % 2 == 1)
        self.called = self.just_called = True
        self.events.append(("call", name))

    def read_arguments(self, final: bool) -> bool:
        piece, length, ended = self.json.read(self.rest, final)
        self.rest = self.rest[length:]
        if piece:
            self.events.append(("arguments", piece))
        if ended:
            self.step = self.read_after_arguments
        return ended

    def read_after_arguments(self, final: bool) -> bool:
        match = AFTER_ARGUMENTS.match(self.rest, partial=not final)
        if match and match.partial:
            return False
        # Without a match the brace was forgotten.
        self.step = self.read_between_calls
        if match and match.group("end"):
            self.rest = self.rest[match.end() :]
        elif match:
            self.json, self.step = Json(depth=1), self.read_rest_of_call
        return True

    def read_rest_of_call(self, final: bool) -> bool:
        _, length, ended = self.json.read(self.rest, final)
        self.rest = self.rest[length:]
        if ended:
            self.step = self.read_between_calls
        return ended

    def read_object(self, final: bool) -> bool:
        piece, length, ended = self.json.read(self.rest[self.read_to :], final)
        self.object += piece
        self.read_to += length
        if not ended and not final:
            return False
        tagged = self.tagged or bool(CALL_TAG.search(self.opening))
        call = as_call(self.object, tagged) if ended else None
        if call and (tagged or call[0] in self.names):
            self.call(call[0], self.read_to)
            self.events.append(("arguments", call[1]))
            self.step = self.read_between_calls
        else:
            self.say(self.read_to)
            self.step = self.read_text
        return True

    def read_plain(self, final: bool) -> bool:
        _, length, ended = self.json.read(self.rest, final)
        self.say(length)
        if ended:
            self.step = self.read_text
        return ended

    def read_between_calls(self, final: bool) -> bool:
        self.rest = self.rest[BETWEEN_CALLS.match(self.rest).end() :]
        if not self.rest:
            return False
        found = self.find(0, final) if BEGINNING.match(self.rest) else None
        if found and found[0] != "plain":
            return self.begin(*found)
        closing = CLOSING.match(self.rest, partial=not final)
        if closing and closing.partial:
            return False
        if closing and (closing.group("tag") or self.fenced):
            self.rest = self.rest[closing.end() :]
            if closing.group("tag"):
                self.tagged = False
            else:
                self.fenced = False
            return True
        self.step, self.line_is_blank, self.tagged, self.fenced = self.read_text, True, False, False
        return True


class JsonToolParser(ToolParser):
    """`CallReader` as vLLM wants it."""

    # Only parsers that say so are told that the answer is over, and so can pass on text that was held back because it
    # looked like a call. It also means that each piece of the answer comes alone, without what came before, which is
    # why vLLM's own way of forcing a call (`tool_choice`) would find nothing in a stream.
    engine_based_streaming = True
    supports_required_and_named = False
    # Forced calls are made to look like `<tool_call>{"name": …, "arguments": …}</tool_call>` while they are written.
    structural_tag_model = "hermes"

    def __init__(self, tokenizer: Any, tools: list[Any] | None = None) -> None:
        super().__init__(tokenizer, tools)
        self.reader: CallReader | None = None

    @staticmethod
    def names(request: Any) -> set[str]:
        """The tools that may be called now. What has none is passed on untouched."""
        if not request.tools or request.tool_choice == "none":
            return set()
        return {getattr(tool, "function", tool).name for tool in get_function_tools(request.tools)}

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        reader = CallReader(self.names(request))
        text, calls = "", []
        for kind, value in reader.feed(model_output, final=True):
            if kind == "text":
                text += value
            elif kind == "call":
                calls.append(FunctionCall(name=value, arguments=""))
            else:
                calls[-1].arguments += value
        if not calls or reader.unfinished or not all(is_json(call.arguments) for call in calls):
            # As vLLM's own parsers do: half a call is no call.
            return ExtractedToolCallInformation(tools_called=False, tool_calls=[], content=model_output)
        return ExtractedToolCallInformation(
            tools_called=True, tool_calls=[ToolCall(function=call) for call in calls], content=text or None
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        if self.reader is None:
            self.reader = CallReader(self.names(request))
        return self.delta(self.reader.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        return self.delta(self.reader.feed("", final=True)) if self.reader else None

    def delta(self, events: list[Event]) -> DeltaMessage | None:
        """The events as one message of the stream."""
        calls: list[DeltaToolCall] = []
        for kind, value in events:
            if kind == "call":
                self.current_tool_id += 1
                function = DeltaFunctionCall(name=value, arguments="")
                calls.append(
                    DeltaToolCall(
                        index=self.current_tool_id, id=make_tool_call_id(), type="function", function=function
                    )
                )
            elif kind == "arguments" and calls:
                calls[-1].function.arguments += value
            elif kind == "arguments":
                calls.append(DeltaToolCall(index=self.current_tool_id, function=DeltaFunctionCall(arguments=value)))
        text = "".join(value for kind, value in events if kind == "text")
        # Fields that are not set are not sent.
        fields = {**({"content": text} if text else {}), **({"tool_calls": calls} if calls else {})}
        return DeltaMessage(**fields) if fields else None


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (RecursionError, ValueError):
        return False
    return True


ToolParserManager.register_module(["qwen2_5_coder", "prompted_tools"], module=JsonToolParser)
