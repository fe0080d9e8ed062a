# MIT licence (see LICENSE)
"""The model catalogue: one file per model in catalog/models/, and what users add to it."""

from __future__ import annotations

import copy
import difflib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]

#: What JSON Schema calls a type, in the words of a message.
TYPES = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}

#: path, value, why, fix
Problem = tuple[str, Any, str, str]


def merged(base: Any, over: Any) -> Any:
    """`over` laid on `base`: mappings merge, null removes a key, everything else replaces."""
    if not isinstance(over, dict):
        return copy.deepcopy(over)
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return copy.deepcopy(result)


def expand(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """An entry as it is written, as flat entries: itself, and each of its variants."""
    base = {key: value for key, value in entry.items() if key != "variants"}
    return [base, *(variant_of(base, variant) for variant in entry.get("variants") or [])]


def variant_of(base: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """A variant on its base. A digest belongs to its repository and revision, and is inherited with these alone."""
    found: dict[str, Any] = merged(base, variant)
    own = variant.get("source")
    if isinstance(own, dict) and {"repo", "revision"} & own.keys() and "files_digest" not in own:
        found["source"].pop("files_digest", None)
    return found


def selection(entry: dict[str, Any]) -> dict[str, Any]:
    """By what the files that an engine needs are chosen from all that a repository has (store/plan.py)."""
    source = entry["source"]
    return {
        "allow_pickle": bool(source.get("allow_pickle")),
        "code": bool(entry.get("trust_remote_code")),
        "files": source.get("files", []),
    }


@functools.cache
def families() -> dict[str, list[dict[str, Any]]]:
    """The entries of each file of catalog/models/, by the file's name: the model itself, then its variants."""
    files = sorted((ROOT / "catalog" / "models").glob("*.yml"))
    return {path.stem: expand(read_yaml(path)) for path in files}


@functools.cache
def shipped() -> dict[str, dict[str, Any]]:
    """The entries that come with this project, by id."""
    return {entry["id"]: entry for family in families().values() for entry in family}


@functools.cache
def preference() -> dict[str, int]:
    """How far down each model stands in catalog/preference.yml, its variants with it; the best is 0."""
    order = read_yaml(ROOT / "catalog" / "preference.yml")
    return {entry["id"]: order.index(name) for name, family in families().items() if name in order for entry in family}


def entries(own: list[dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """The shipped entries, and a user's own ones, which win."""
    return {**shipped(), **{entry["id"]: entry for item in own or [] for entry in expand(item)}}


def on_host(entry: dict[str, Any], paths: dict[str, Any] | None) -> dict[str, Any]:
    """An entry with what its own folder on a host says, where the entry does not. paths: `paths` of host_probe."""
    seen = (paths or {}).get((entry.get("source") or {}).get("path") or "") or {}
    found = dict(entry)
    config = seen.get("config")
    if config and not found.get("config"):
        found["config"] = config
        longest = (config.get("text_config") or config).get("max_position_embeddings")
        if longest:
            found.setdefault("native_context", longest)
    if seen.get("safetensors_bytes") and not found.get("weights_gib"):
        found["weights_gib"] = seen["safetensors_bytes"] / 2**30
    return found


# --- the schema --------------------------------------------------------------------------------------------------


@functools.cache
def schema() -> dict[str, Any]:
    """catalog/model.schema.json"""
    data = json.loads((ROOT / "catalog" / "model.schema.json").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


@functools.cache
def validator() -> Any:
    """A validator of the schema; the library is only needed where entries are checked."""
    try:
        import jsonschema
    except ImportError as error:
        raise RuntimeError(
            "checking catalogue entries needs the Python package `jsonschema` beside Ansible; "
            "requirements.txt of this project installs it"
        ) from error

    def integer(checker: Any, value: Any) -> bool:
        # JSON Schema takes 32768.0 for a whole number, vLLM's command line does not.
        return isinstance(value, int) and not isinstance(value, bool)

    def number(checker: Any, value: Any) -> bool:
        # NaN is neither too small nor too large, so no other rule would catch it.
        return integer(checker, value) or (isinstance(value, float) and math.isfinite(value))

    draft = jsonschema.Draft202012Validator
    strict = jsonschema.validators.extend(
        draft, type_checker=draft.TYPE_CHECKER.redefine_many({"integer": integer, "number": number})
    )
    return strict(schema())


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """A node of the schema with what its $ref says; its own words win."""
    while "$ref" in node:
        target: dict[str, Any] = schema()
        for part in node["$ref"].split("/")[1:]:
            target = target[part]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def node_at(path: list[Any]) -> dict[str, Any]:
    """The node of the schema that describes this place of an entry, or the nearest one above it."""
    node = schema()
    for part in path:
        below = node.get("items") if isinstance(part, int) else (node.get("properties") or {}).get(part)
        if below is None:
            below = node.get("additionalProperties")
        if not isinstance(below, dict):
            break
        node = resolved(below)
    return node


def written(path: list[Any]) -> str:
    """`faults[0].source`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def advice(path: list[Any]) -> str:
    """What belongs in a place, from the schema's own description, with an example where it has one."""
    node = node_at(path)
    text = f"what belongs here: {node.get('description') or 'see catalog/model.schema.json'}"
    for example in node.get("examples", [])[:1]:
        value = example if isinstance(example, str) else json.dumps(example, ensure_ascii=False)
        text += f" For example: `{value}`"
    return text


def explained(error: Any) -> Iterator[Problem]:
    """One finding of the library in the words of this project."""
    path, value, rule, wanted = list(error.absolute_path), error.instance, error.validator, error.validator_value
    if rule == "required":
        # The library reports each missing key by itself, but names it in its sentence alone.
        for key in wanted:
            if key not in value and error.message.startswith(repr(key)):
                yield written([*path, key]), None, "this is missing", advice([*path, key])
        return
    if rule == "dependentRequired":
        for key, others in wanted.items():
            for other in others if key in value else []:
                if other not in value:
                    why = f"`{key}` means nothing without `{other}`"
                    yield written([*path, key]), value[key], why, advice(path)
        return
    if rule == "additionalProperties":
        known = list(error.schema.get("properties") or {})
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean `{near[0]}`? " if near else ""
                fix = f"{hint}known here: {', '.join(known)}"
                yield written([*path, str(key)]), value[key], "the catalogue knows no such key here", fix
        return
    if "propertyNames" in error.absolute_schema_path:
        yield written(path), value, "this is not a name that can stand here", advice(path)
        return
    if rule == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        why = f"this has to be {' or '.join(TYPES[kind] for kind in kinds)}"
    elif rule == "enum":
        near = difflib.get_close_matches(str(value), wanted, n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        why, fix = "this is none of the known values", f"choose one of: {', '.join(wanted)}{hint}; {advice(path)}"
        yield written(path), value, why, fix
        return
    else:
        why = {
            "pattern": "this is not of the form that is needed here",
            "minLength": "this is empty",
            "maxLength": f"this is longer than {wanted} characters",
            "minimum": f"this is below {wanted}",
            "exclusiveMinimum": f"this has to be more than {wanted}",
            "maximum": f"this is above {wanted}",
            "minItems": "this list is empty",
            "uniqueItems": "something stands in this list twice",
            "oneOf": "this names none of them, or more than one",
        }.get(rule, "this cannot stand here")
    yield written(path), value, why, advice(path)


def flat_problems(entry: Any) -> list[Problem]:
    """What the schema says against an entry, variants as they are written."""
    found = [item for error in validator().iter_errors(entry) for item in explained(error)]
    return sorted(found, key=lambda item: item[0])


def schema_problems(entry: Any) -> list[Problem]:
    """All that is wrong with the form of an entry and of its variants: (path, value, why, fix) of each."""
    found = flat_problems(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("variants"), list):
        return found
    base = {key: value for key, value in entry.items() if key != "variants"}
    # What is wrong with the entry itself is said once, not again for each of its variants.
    known = {(path, repr(value)) for path, value, _why, _fix in found}
    seen = {str(entry.get("id"))}
    for at, variant in enumerate(entry["variants"]):
        if not isinstance(variant, dict) or not isinstance(variant.get("id"), str):
            continue  # said already
        for path, value, why, fix in flat_problems(variant_of(base, variant)):
            place = f"variants[{at}].{path}"
            if (path, repr(value)) not in known and (place, repr(value)) not in known:
                found.append((place, value, why, fix))
        if variant["id"] in seen:
            found.append(
                (f"variants[{at}].id", variant["id"], "this id is taken", "give each variant an id of its own")
            )
        seen.add(variant["id"])
    return found
