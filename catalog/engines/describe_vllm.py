"""Print what an installed vLLM accepts, as JSON: its flags with their values, tool parsers and reasoning parsers.

Run with the engine's own Python:

    /opt/modelhost/vllm/current/bin/python describe_vllm.py > vllm-0.32.0.json

The result lies beside this file, so that flags can be judged before anything is installed. A
test on a host with the real engine holds it against what this prints there.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import pkgutil
import sys
import typing
from typing import Any


def kind(action: argparse.Action) -> str:
    """How an option is written: boolean (--x / --no-x), switch (--x only), list or value."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return "boolean"
    if action.nargs == 0:
        return "switch"
    if action.nargs in ("+", "*"):
        return "list"
    if "Append" in type(action).__name__:
        return "append"
    return "value"


def takes(convert: Any, text: str) -> bool:
    """Whether an option's own conversion accepts this text."""
    try:
        convert(text)
    except Exception:  # vLLM's conversions raise all kinds.
        return False
    return True


def value_type(convert: Any) -> str:
    """What an option's conversion reads, found by trying it: int, size (25.6k), float, json, str, or any of the two."""
    if convert is None or takes(convert, "a word"):
        return "any" if convert and convert("{}") == {} else "str"
    if takes(convert, "1.5") and not takes(convert, "{}"):
        return "float"
    if takes(convert, "2"):
        return "size" if takes(convert, "2k") else "int" if not takes(convert, "{}") else "json"
    return "json"


def plain(value: Any) -> Any:
    """A choice as JSON holds it."""
    return value if isinstance(value, (str, int, float)) else str(value)


def ranges(flags: dict[str, str]) -> dict[str, dict[str, float]]:
    """Limits of numbers, as vLLM's configuration classes state them for their fields."""
    import vllm.config

    found: dict[str, dict[str, float]] = {}
    for module in pkgutil.walk_packages(vllm.config.__path__, "vllm.config."):
        for name, cls in vars(importlib.import_module(module.name)).items():
            own = inspect.isclass(cls) and cls.__module__ == module.name and dataclasses.is_dataclass(cls)
            # A draft model's settings carry names that flags of the served model have too.
            if not own or name == "SpeculativeConfig":
                continue
            for field, info in getattr(cls, "__pydantic_fields__", {}).items():
                limits = {
                    key: getattr(limit, key)
                    for limit in info.metadata
                    for key in ("gt", "ge", "lt", "le")
                    if getattr(limit, key, None) is not None
                }
                if field in flags and limits:
                    found[field] = limits
    return found


def fields(types: dict[str, str]) -> dict[str, list[str]]:
    """Keys of the mappings that some flags take; another key is refused at the start."""
    from vllm.config import quantization
    from vllm.engine import arg_utils

    # Some classes are imported there for type checkers alone.
    names = {**vars(quantization), **vars(arg_utils)}
    found = {}
    for field in dataclasses.fields(arg_utils.AsyncEngineArgs):
        if types.get(field.name) != "json":
            continue
        hint = eval(field.type, names) if isinstance(field.type, str) else field.type
        for cls in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(cls):
                found[field.name] = sorted(item.name for item in dataclasses.fields(cls) if item.init)
    return found


def describe() -> dict[str, Any]:
    """Flags by their Python name with what they take, and the registered parsers."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags, types, short = {}, {}, {}
    # Registries that the argument parser does not know of.
    choices = {"quantization": sorted(QUANTIZATION_METHODS), "load_format": sorted(_LOAD_FORMAT_TO_MODEL_LOADER)}
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        if action.dest == "help":
            continue
        for option in action.option_strings:
            if not option.startswith("--"):
                short[option[1:]] = action.dest
            elif not option.startswith("--no-"):
                name = option[2:].replace("-", "_")
                flags[name] = kind(action)
                if flags[name] in ("value", "list", "append"):
                    types[name] = value_type(action.type)
                    if action.choices:
                        choices[name] = [plain(choice) for choice in action.choices if choice is not None]
    return {
        "flags": dict(sorted(flags.items())),
        "short": dict(sorted(short.items())),
        "types": dict(sorted(types.items())),
        "choices": dict(sorted(choices.items())),
        "fields": dict(sorted(fields(types).items())),
        "ranges": dict(sorted(ranges(flags).items())),
        "tool_parsers": sorted(ToolParserManager.list_registered()),
        "reasoning_parsers": sorted(ReasoningParserManager.list_registered()),
    }


if __name__ == "__main__":
    json.dump(describe(), sys.stdout, indent=1)
    sys.stdout.write("\n")
