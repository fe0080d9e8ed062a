# MIT licence (see LICENSE)
"""What can be wrong with catalogue entries, and with a model for what an instance asks of it.

Pure; runs on the controller. An `asked` is an instance that is sound by itself: where it stands, its catalogue entry,
and its flags in effect with where each was written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import capacity, catalog, vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.problems import hint, problem, some
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_flag_validation import (
    environment_problems,
    flag_problems,
)

#: Below this Claude Code compacts all the time: it keeps max_output (8–16K) and 13K free.
CLAUDE_CODE_CONTEXT = 65536
#: Folders that the engine's unit does not see (ProtectHome=, PrivateTmp=).
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
#: Names of `--quantization` that read the same checkpoints.
READS = {
    "awq": ("awq", "awq_marlin", "auto_awq"),
    "gptq": ("gptq", "gptq_marlin", "auto_gptq"),
    "fp8": ("fp8", "compressed-tensors", "fbgemm_fp8", "modelopt", "quark"),
    "mxfp4": ("mxfp4", "gpt_oss_mxfp4", "quark"),
    "nvfp4": ("modelopt_fp4", "compressed-tensors"),
}


@dataclass(frozen=True)
class Asked:
    """A sound instance, with what it asks of its model."""

    host: str
    where: str
    instance: dict[str, Any]
    entry: dict[str, Any]
    flags: dict[str, Any]
    places: dict[str, str]

    def place(self, flag: str) -> str:
        """Where somebody wrote a flag, or would write it."""
        return self.places.get(flag, f"{self.where}.flags.{flag}")


@dataclass(frozen=True)
class Site:
    """What an instance is judged by beside itself."""

    variant: str
    version: str
    entries: dict[str, Any]
    claude_code: bool


def entry_problems(host: str, where: str, entry: Any, version: str) -> list[dict[str, Any]]:
    """A catalogue entry that a user wrote."""
    found = [
        problem(host, f"{where}.{path}".rstrip("."), value, why, fix)
        for path, value, why, fix in catalog.schema_problems(entry)
    ]
    if found:
        return found
    for at, flat in enumerate(catalog.expand(entry)):
        place = f"{where}.variants[{at - 1}]" if at else where
        found += flag_problems(host, f"{place}.flags", flat.get("flags") or {}, version)
        # What a catalogue entry sets is never a secret and never owned by a role.
        found += environment_problems(host, f"{place}.environment", flat.get("environment") or {}, {})
        path = flat["source"].get("path", "")
        if any(f"{path}/".startswith(f"{folder}/") for folder in HIDDEN):
            why = "the engine runs sandboxed and under its own account, and does not see this folder"
            found.append(problem(host, f"{place}.source.path", path, why, "move the weights, for example to /data"))
        for key, folder in (("chat_template", "templates"), ("tool_parser_plugin", "parsers")):
            name = flat.get(key)
            if name and not (catalog.ROOT / "catalog" / folder / name).is_file():
                shipped = sorted(item.name for item in (catalog.ROOT / "catalog" / folder).glob("*.*"))
                why = f"catalog/{folder}/ has no file of this name"
                fix = f"choose one of: {', '.join(shipped)}; or set the flag {key} to a path on the host"
                found.append(problem(host, f"{place}.{key}", name, why, fix))
    return found


def model_problems(asked: Asked, site: Site) -> list[dict[str, Any]]:
    """A sound instance against its model."""
    return [
        *source_problems(asked),
        *build_problems(asked, site),
        *context_problems(asked),
        *tool_problems(asked, site),
        *parser_problems(asked, site),
        *split_problems(asked),
    ]


def source_problems(asked: Asked) -> list[dict[str, Any]]:
    """Weights that nobody vouches for."""
    source = asked.entry["source"]
    if "repo" not in source or source.get("revision") not in (None, "unverified"):
        return []
    return [
        problem(
            asked.host,
            f"{asked.where}.model",
            asked.entry["id"],
            "the catalogue knows no verified revision of these weights",
            f"run ./run pins on a connected machine, or describe the model in vllm_models with source: "
            f"{{repo: {source['repo']}, revision: <commit>}}, or with source: {{path: <folder on the host>}}",
        )
    ]


def build_problems(asked: Asked, site: Site) -> list[dict[str, Any]]:
    """The build of vLLM, its version and the stored format of the weights."""
    found = []
    host, where, entry, flags, variant = asked.host, asked.where, asked.entry, asked.flags, site.variant
    runs_on = entry.get("runs_on") or ["cpu", "cuda"]
    if variant in ("cpu", "cuda") and variant not in runs_on:
        fitting = [
            name
            for name, other in site.entries.items()
            if variant in (other.get("runs_on") or [variant]) and other.get("title") and same_family(other, entry)
        ]
        fix = "choose another model" + (f", such as {', '.join(fitting)}" if fitting else "")
        why = f"this checkpoint runs on {' and '.join(runs_on)} only, and vllm_variant is {variant}"
        found.append(problem(host, f"{where}.model", entry["id"], why, fix))
    needed = entry.get("minimum_vllm")
    if needed and numbers(needed) > numbers(site.version):
        why = f"this model needs vLLM {needed} or later, and this release installs {site.version}"
        found.append(problem(host, f"{where}.model", entry["id"], why, "choose another model"))
    method, stored = flags.get("quantization"), entry.get("quantization") or "none"
    if method and stored in READS:
        if method in READS[stored]:
            why = f"these weights are stored as {stored}, which vLLM finds out by itself"
            fix = "remove the flag: with another checkpoint it would be wrong"
            found.append(problem(host, asked.place("quantization"), method, why, fix, "warning"))
        else:
            why = f"these weights are stored as {stored}, and vLLM refuses to read them as {method}"
            found.append(problem(host, asked.place("quantization"), method, why, "remove the flag"))
    if method and variant == "cpu" and str(method).startswith("fp8"):
        why = "vLLM on CPU does not compute in FP8"
        fix = "remove the flag, or choose a checkpoint stored as AWQ, GPTQ or INT8"
        found.append(problem(host, asked.place("quantization"), method, why, fix))
    if flags.get("trust_remote_code") and not entry.get("trust_remote_code"):
        why = "the engine would run code that lies beside the weights, and the catalogue does not ask for it"
        fix = "remove trust_remote_code, unless the engine says that it needs it"
        found.append(problem(host, asked.place("trust_remote_code"), True, why, fix, "warning"))
    return found


def same_family(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two entries are checkpoints of one model: as many parameters, and ids that begin alike."""
    begin = str(other["id"]).split("-")[:2]
    return one.get("parameters") == other.get("parameters") and str(one.get("id")).split("-")[:2] == begin


def numbers(version: str) -> tuple[int, ...]:
    """`0.10.0` → (0, 10, 0)"""
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def stretched(flags: dict[str, Any], native: int) -> int:
    """Tokens that YaRN or its like allows, 0 without any stretching, and -1 where it cannot be told."""
    overrides = flags.get("hf_overrides")
    if not overrides:
        return 0
    if not isinstance(overrides, dict):
        return -1
    nested = overrides.get("text_config")
    for level in (overrides, nested if isinstance(nested, dict) else {}):
        for key in ("rope_parameters", "rope_scaling"):
            rope = level.get(key)
            if isinstance(rope, dict) and isinstance(rope.get("factor"), (int, float)):
                base = rope.get("original_max_position_embeddings") or native
                return int(rope["factor"] * base) if isinstance(base, int) else -1
    return -1


def context_problems(asked: Asked) -> list[dict[str, Any]]:
    """Too much context for the model, or too little for Claude Code."""
    host, entry, instance = asked.host, asked.entry, asked.instance
    context = instance.get("max_model_len") or entry.get("max_model_len")
    native = entry.get("native_context")
    if not isinstance(context, int):
        return []
    found = []
    place = f"{asked.where}.max_model_len"
    limit = stretched(asked.flags, native) if native else -1
    if native and context > native and limit == 0:
        factor = -(-context // native)
        fix = (
            f"set at most {native}, or stretch it with flags.hf_overrides: {{rope_parameters: {{rope_type: yarn, "
            f"factor: {factor}.0, original_max_position_embeddings: {native}}}}}"
        )
        found.append(problem(host, place, context, f"{entry['id']} was made for at most {native} tokens", fix))
    elif native and context > max(native, limit) and limit > 0:
        why = f"hf_overrides stretches {entry['id']} to {limit} tokens only"
        found.append(problem(host, place, context, why, f"set at most {limit}, or a larger factor"))
    if context < CLAUDE_CODE_CONTEXT:
        found.append(
            problem(
                host,
                place,
                context,
                "Claude Code sends 11–29K tokens before the user has typed anything, "
                "and with this context it will compact all the time",
                f"set {CLAUDE_CODE_CONTEXT} or more",
                "warning",
            )
        )
    return found


def tool_problems(asked: Asked, site: Site) -> list[dict[str, Any]]:
    """Models that were not made for tools: without them Claude Code can read and edit nothing."""
    entry, place = asked.entry, f"{asked.where}.model"
    can = (entry.get("capabilities") or {}).get("tool_calling")
    # Those first that are recommended for some kind of host.
    fitting = sorted(
        (name for name, other in site.entries.items() if calls_tools(other)),
        key=lambda name: not site.entries[name].get("choice_for"),
    )
    native = some(fitting, "catalog/models/", 6)
    if (entry.get("chat_only") or can == "none") and site.claude_code and not asked.instance.get("allow_chat_only"):
        why = "this model only chats: it calls no tools, so Claude Code could neither read nor edit a file with it"
        fix = (
            f"choose one that calls tools ({native}), or set allow_chat_only: true on this instance if chatting is all "
            "that is wanted"
        )
        return [problem(asked.host, place, entry["id"], why, fix)]
    if can == "prompted":
        why = (
            "this model was not trained to call tools: it is asked to by a prompt of ours, and now and then it will "
            "answer in words or call a tool wrongly"
        )
        fix = f"expect that, or choose one that was trained for it ({native})"
        return [problem(asked.host, place, entry["id"], why, fix, "warning")]
    return []


def parser_problems(asked: Asked, site: Site) -> list[dict[str, Any]]:
    """Parsers that are not there, or not the model's: tool calls would silently stand in the answers as text."""
    found = []
    host, entry, flags = asked.host, asked.entry, asked.flags
    known = vllm_flags.engine_description(site.version)
    for flag, kind in (("tool_call_parser", "tool"), ("reasoning_parser", "reasoning")):
        names, value = known[f"{kind}_parsers"], flags.get(flag)
        # A plugin brings names of its own.
        if value is not None and value not in names and not flags.get(f"{kind}_parser_plugin"):
            why = f"vLLM {site.version} has no parser of this name"
            fix = f"choose one of: {', '.join(names)}{hint(value, names)}"
            found.append(problem(host, asked.place(flag), value, why, fix))
    auto, parser = flags.get("enable_auto_tool_choice"), flags.get("tool_call_parser")
    expected = (entry.get("flags") or {}).get("tool_call_parser")
    can = (entry.get("capabilities") or {}).get("tool_calling")
    if auto and not parser:
        why = "vLLM refuses to start with enable_auto_tool_choice and no tool_call_parser"
        fix = f"set tool_call_parser: {expected}" if expected else "set the tool_call_parser that fits the model"
        found.append(problem(host, asked.place("tool_call_parser"), None, why, fix))
    elif not auto and (parser or (can is None and not entry.get("chat_only"))):
        why = "without enable_auto_tool_choice tool calls stand in the answers as text, and no tool runs"
        fix = "set enable_auto_tool_choice: true" + ("" if parser else " and the tool_call_parser that fits the model")
        found.append(problem(host, asked.place("enable_auto_tool_choice"), auto, why, fix, "warning"))
    if parser and expected and parser != expected and not found:
        why = (
            f"the catalogue has {expected} for {entry['id']}; with another parser tool calls stand in the answers as "
            "text, and no tool runs"
        )
        fix = f"remove it, or make sure by playbooks/verify.yml that {parser} reads what this model writes"
        found.append(problem(host, asked.place("tool_call_parser"), parser, why, fix, "warning"))
    return found


def calls_tools(entry: dict[str, Any]) -> bool:
    """Whether a model calls tools as it was trained to, and is one at all (the loopback model is an instrument)."""
    can = (entry.get("capabilities") or {}).get("tool_calling")
    return can in ("native", "adapted") and "builder" not in entry["source"] and not entry.get("chat_only")


def split_problems(asked: Asked) -> list[dict[str, Any]]:
    """A model over several devices."""
    found = []
    host, entry, instance, flags = asked.host, asked.entry, asked.instance, asked.flags
    size = instance.get("tensor_parallel_size")
    if not size:
        return []
    place = f"{asked.where}.tensor_parallel_size"
    why = capacity.parallel_problem(entry, size)
    if why:
        sizes = ", ".join(map(str, capacity.parallel_sizes(entry, 16)))
        found.append(problem(host, place, size, why, f"set it to one of: {sizes}; or leave it out"))
    devices = instance.get("devices")
    needed = size * int(flags.get("pipeline_parallel_size") or 1) * int(flags.get("data_parallel_size") or 1)
    if devices and len(devices) < needed:
        why = f"this needs {needed} GPUs, and `devices` names {len(devices)}"
        found.append(problem(host, place, size, why, f"set it to {len(devices)}, or name {needed} devices"))
    elif devices and len(devices) > needed:
        why = f"this uses {needed} of the {len(devices)} GPUs that `devices` names"
        found.append(problem(host, place, size, why, f"set it to {len(devices)}, or name {needed} devices", "warning"))
    return found
