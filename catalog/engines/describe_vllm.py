"""Print what an installed vLLM accepts, as JSON: its flags, tool parsers and reasoning parsers.

Run with the engine's own Python:

    /opt/modelhost/vllm/current/bin/python describe_vllm.py > vllm-0.32.0.json

The result lies beside this file, so that flags can be judged before anything is installed. A
test on a host with the real engine holds it against what this prints there.
"""

from __future__ import annotations

import argparse
import json
import sys
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


def describe() -> dict[str, Any]:
    """Flags by their Python name, and the registered parsers."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = {}
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        for option in action.option_strings:
            if option.startswith("--") and not option.startswith("--no-") and option != "--help":
                flags[option[2:].replace("-", "_")] = kind(action)
    return {
        "flags": dict(sorted(flags.items())),
        "tool_parsers": sorted(ToolParserManager.list_registered()),
        "reasoning_parsers": sorted(ReasoningParserManager.list_registered()),
    }


if __name__ == "__main__":
    json.dump(describe(), sys.stdout, indent=1)
    sys.stdout.write("\n")
