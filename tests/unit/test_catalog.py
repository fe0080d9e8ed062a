"""The model catalogue: its schema, its variants, what it ships, and what it says to a user who gets an entry wrong."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import catalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "catalog/models").glob("*.yml"))
ENGINE = json.loads((ROOT / "catalog/engines/vllm-0.32.0.json").read_text())
SHIPPED = list(catalog.shipped().values())
GIB = 2**30
#: What users may leave out and an entry of ours may not.
FULL = {
    "title",
    "licence",
    "parameters",
    "active_parameters",
    "weights_gib",
    "quantization",
    "config",
    "native_context",
}
FULL |= {"max_model_len", "flags", "capabilities", "agentic_coding", "runs_on", "sources", "checked"}
every_entry = pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: str(entry["id"]))


def documents() -> dict[str, dict[str, Any]]:
    """The files as they are written."""
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}


# --- what is shipped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_fits_the_schema(path: Path) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert catalog.schema_problems(document) == []
    assert document["id"] == path.stem


def test_ids_are_unique() -> None:
    ids = [entry["id"] for document in documents().values() for entry in catalog.expand(document)]
    assert len(ids) == len(set(ids)) == len(SHIPPED)


@every_entry
def test_a_shipped_entry_is_complete(entry: dict[str, Any]) -> None:
    assert set(entry) >= FULL, "agentic_coding is null where no result is known"
    assert set(entry["capabilities"]) == {"tool_calling", "reasoning", "images"}
    assert "variants" not in entry
    if "repo" in entry["source"]:
        # What a commit is worth without the place that names it: nothing.
        assert ("revision" in entry["sources"]) == (entry["source"]["revision"] != "unverified")
        # The hub's name and the id say the same.
        assert entry["id"] == entry["source"]["repo"].split("/")[1].lower()
    assert entry["active_parameters"] <= entry["parameters"]
    if entry["max_model_len"] > entry["native_context"]:
        assert "hf_overrides" in entry["flags"]
    if entry.get("native_compute_capability"):
        assert entry["native_compute_capability"] > entry["minimum_compute_capability"]
        assert entry["compute_capability_reason"]
    if entry["quantization"] == "fp8":
        # vLLM 0.32 computes FP8 on CPUs with AMX alone.
        assert "cpu" not in entry["runs_on"] or entry["minimum_cpu"] == "amx"


def urls(entry: dict[str, Any]) -> list[str]:
    """Every URL that an entry cites."""
    text = json.dumps([entry[key] for key in ("sources", "faults", "agentic_coding") if entry.get(key)])
    return re.findall(r'https?://[^"\s]+', text)


@every_entry
def test_sources_are_public_pages(entry: dict[str, Any]) -> None:
    for name, value in entry["sources"].items():
        for one in value if isinstance(value, list) else [value]:
            assert one.startswith("https://") or (ROOT / one).exists(), f"{name}: {one}"
    for url in urls(entry):
        host = urlsplit(url).hostname or ""
        assert url.startswith("https://")
        assert "." in host
        assert not host.replace(".", "").isdigit()
        assert not host.endswith((".local", ".internal"))


@every_entry
def test_flags_and_parsers_exist_in_the_engine(entry: dict[str, Any]) -> None:
    flags = entry["flags"]
    assert set(flags) <= set(ENGINE["flags"])
    plugin, template = entry.get("tool_parser_plugin"), entry.get("chat_template")
    for name, folder in ((plugin, "parsers"), (template, "templates")):
        place = ROOT / "catalog" / folder
        if name and place.is_dir() and any(place.iterdir()):
            assert (place / name).is_file()
    if plugin is None and "tool_call_parser" in flags:
        assert flags["tool_call_parser"] in ENGINE["tool_parsers"]
    if "reasoning_parser" in flags:
        assert flags["reasoning_parser"] in ENGINE["reasoning_parsers"]
    calling = entry["capabilities"]["tool_calling"]
    assert (calling == "none") == ("tool_call_parser" not in flags)
    if calling != "none":
        assert flags["enable_auto_tool_choice"] is True
    if calling == "native":
        assert plugin is None
    if calling == "prompted":
        assert plugin
        assert template
        assert entry["chat_only"] is True


# --- arithmetic --------------------------------------------------------------------------------------------------


def text_config(entry: dict[str, Any]) -> dict[str, Any]:
    """The language part of the config."""
    return {**entry["config"], **(entry["config"].get("text_config") or {})}


def kv_per_token(config: dict[str, Any]) -> int:
    """Bytes of KV cache for a token in BF16, where all layers have the same attention."""
    layers = config["num_hidden_layers"]
    if config.get("kv_lora_rank"):
        return int(layers * (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * 2)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * layers * config["num_key_value_heads"] * width * 2)


@pytest.mark.parametrize(
    ("model", "kib"),
    [
        ("qwen3-235b-a22b-instruct-2507", 188),
        ("qwen2.5-coder-32b-instruct", 256),
        ("qwen2.5-72b-instruct", 320),
        ("qwen2.5-14b-instruct", 192),
        ("qwen3-coder-30b-a3b-instruct", 96),
        ("qwen3-30b-a3b-instruct-2507", 96),
        ("deepseek-coder-v2-lite-instruct", 30.4),
    ],
)
def test_kv_cache_follows_from_the_config(model: str, kib: float) -> None:
    for entry in catalog.expand(documents()[model]):
        assert kv_per_token(entry["config"]) / 1024 == pytest.approx(kib, rel=0.001)


def matrices(config: dict[str, Any]) -> tuple[list[tuple[int, int, int]], int, int]:
    """The matrices of a checkpoint (rows in, columns out, how many), and the numbers that are never quantised.

    Those are split into what has no matrix form (norms, biases) and embeddings with routers.
    """
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    found: list[tuple[int, int, int]] = []
    small = hidden * (2 * layers + 1)
    large = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    if config["model_type"] == "deepseek_v2":
        rank, nope, rope, value = (
            config[key] for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        found += [
            (hidden, heads * (nope + rope), layers),
            (hidden, rank + rope, layers),
            (rank, heads * (nope + value), layers),
            (heads * value, hidden, layers),
        ]
        small += layers * rank
        dense, width = config["first_k_dense_replace"], config["moe_intermediate_size"]
        experts, shared = config["n_routed_experts"], config["n_shared_experts"]
        sparse = layers - dense
        found += [(hidden, config["intermediate_size"], 2 * dense), (config["intermediate_size"], hidden, dense)]
        found += [(hidden, shared * width, 2 * sparse), (shared * width, hidden, sparse)]
        found += [(hidden, width, 2 * sparse * experts), (width, hidden, sparse * experts)]
        return found, small, large + sparse * experts * hidden
    width = config.get("head_dim") or hidden // heads
    found += [
        (hidden, heads * width, layers),
        (hidden, groups * width, 2 * layers),
        (heads * width, hidden, layers),
    ]
    if config["model_type"] == "qwen3_moe":
        experts, inner = config["num_experts"], config["moe_intermediate_size"]
        found += [(hidden, inner, 2 * layers * experts), (inner, hidden, layers * experts)]
        return found, small + 2 * width * layers, large + layers * experts * hidden
    found += [(hidden, config["intermediate_size"], 2 * layers), (config["intermediate_size"], hidden, layers)]
    # Qwen2 has biases on its queries, keys and values.
    return found, small + layers * (heads + 2 * groups) * width, large


def checkpoint_bytes(entry: dict[str, Any]) -> int:
    """The size of all tensors of a checkpoint, in the layouts of the common formats."""
    found, small, large = matrices(entry["config"])
    stored = entry["config"].get("quantization_config") or {}
    kind, bits, group = entry["quantization"], stored.get("bits", 16), stored.get("group_size", 128)
    total = 2 * (small + large)
    for rows, columns, count in found:
        if kind == "fp8":
            one = rows * columns + 2 * -(-rows // 128) * -(-columns // 128)  # a scale in BF16 for each block
        elif kind == "none":
            one = 2 * rows * columns
        else:
            one = rows * columns * bits // 8 + 2 * rows // group * columns  # packed weights, scales
            if kind in ("awq", "gptq"):
                one += rows // group * columns * bits // 8  # zero points
            if kind == "gptq":
                one += 4 * rows  # the group of each row
        total += count * one
    return total


FAMILIES = [entry for entry in SHIPPED if entry["config"].get("model_type") in ("qwen2", "qwen3_moe", "deepseek_v2")]


@pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: str(entry["id"]))
def test_weights_are_the_sum_of_the_tensors(entry: dict[str, Any]) -> None:
    assert entry["weights_gib"] == pytest.approx(checkpoint_bytes(entry) / GIB, rel=0.002)


@pytest.mark.parametrize(
    ("model", "size", "source"),
    [
        ("qwen2.5-14b-instruct", 29540067328, "https://github.com/llm-inferno/server-sim, by the config it quotes"),
        ("qwen2.5-72b-instruct-gptq-int4", 41621048632, "https://github.com/gpustack/gpustack tests/utils/test_hub.py"),
        ("qwen2.5-coder-32b-instruct", 61.03 * GIB, "https://github.com/kaito-project/kaito model_catalog.yaml"),
        ("qwen3-235b-a22b-instruct-2507-fp8", 236e9, "https://github.com/djdumpling/Lightning-Weave tau_bench_eval"),
    ],
)
def test_the_sum_agrees_with_published_sizes(model: str, size: float, source: str) -> None:
    assert checkpoint_bytes(catalog.shipped()[model]) == pytest.approx(size, rel=0.003), source


@pytest.mark.parametrize(
    "model",
    ["qwen2.5-14b-instruct", "qwen2.5-72b-instruct", "qwen2.5-coder-32b-instruct", "qwen3-30b-a3b-instruct-2507"],
)
def test_parameters_are_the_sum_of_the_tensors(model: str) -> None:
    found, small, large = matrices(catalog.shipped()[model]["config"])
    total = sum(rows * columns * count for rows, columns, count in found) + small + large
    assert catalog.shipped()[model]["parameters"] == pytest.approx(total / 1e9, rel=0.001)


#: Bits for a parameter, scales and zero points included, where config does not say.
BITS = {
    "none": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4.5,
    "awq": 4.25,
    "gptq": 4.25,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
    "mxfp8": 8.25,
}


def test_few_formats_have_no_single_size() -> None:
    mixed = {entry["id"] for entry in SHIPPED if entry["quantization"] not in BITS}
    assert mixed == {"deepseek-v4-flash-0731", "qwen3.8-27b-nvfp4"}


@pytest.mark.parametrize(
    "entry", [entry for entry in SHIPPED if entry["quantization"] in BITS], ids=lambda entry: str(entry["id"])
)
def test_weights_follow_from_parameters(entry: dict[str, Any]) -> None:
    config = text_config(entry)
    stored = config.get("quantization_config") or {}
    bits = BITS[entry["quantization"]]
    if stored.get("bits") == 8:
        bits = 8.25
    # Embeddings stay in 16 bits whatever becomes of the rest.
    embeddings = 0.0
    if {"vocab_size", "hidden_size"} <= set(config):
        embeddings = config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
    rest = entry["parameters"] * 1e9 - embeddings
    expected = (embeddings * 2 + rest * bits / 8) / GIB
    assert entry["weights_gib"] == pytest.approx(expected, rel=0.03 if entry["quantization"] == "none" else 0.12)


# --- variants ----------------------------------------------------------------------------------------------------


def test_variants_are_laid_over_their_model() -> None:
    document = {
        "id": "model",
        "source": {"repo": "a/model", "revision": "unverified"},
        "flags": {"a": 1, "b": {"c": 2, "d": 3}},
        "runs_on": ["cpu", "cuda"],
        "config": {"q_lora_rank": None, "head_dim": 128},
        "variants": [
            {
                "id": "model-fp8",
                "flags": {"a": None, "b": {"c": 4}},
                "runs_on": ["cuda"],
                "config": {"extra": {"x": None}},
            },
            {"id": "model-own", "source": {"repo": None, "revision": None, "path": "/data/x"}},
        ],
    }
    before = copy.deepcopy(document)
    plain, fp8, own = catalog.expand(document)
    assert "variants" not in plain
    # Null in the file itself is what the checkpoint publishes; only a variant's null removes.
    assert plain["config"] == {"q_lora_rank": None, "head_dim": 128}
    assert fp8["flags"] == {"b": {"c": 4, "d": 3}}
    assert fp8["runs_on"] == ["cuda"]
    assert fp8["config"] == {"q_lora_rank": None, "head_dim": 128, "extra": {}}
    assert own["source"] == {"path": "/data/x"}
    assert own["flags"] == plain["flags"]
    own["flags"]["b"]["c"] = 9
    assert document == before, "nothing of a variant reaches back"
    assert set(catalog.entries([document])) >= {"model", "model-fp8", "model-own", "loopback"}


def test_own_entries_win() -> None:
    own = {"id": "loopback", "source": {"path": "/data/mine"}}
    assert catalog.entries([own])["loopback"] == own
    assert catalog.entries()["loopback"]["source"] == {"builder": "loopback_model"}


# --- the schema and its messages ---------------------------------------------------------------------------------


def nodes(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every node of the schema that describes a value."""
    found = []
    if isinstance(node, dict):
        for name, value in (node.get("properties") or {}).items():
            found += [(f"{path}.{name}", value), *nodes(value, f"{path}.{name}")]
        for name in ("items", "additionalProperties"):
            if isinstance(node.get(name), dict):
                found += [(f"{path}[]", node[name]), *nodes(node[name], f"{path}[]")]
        for name, value in (node.get("$defs") or {}).items():
            found += nodes(value, f"${name}")
    return found


def test_the_schema_describes_everything() -> None:
    for path, node in nodes(catalog.schema()):
        described = node.get("description") or catalog.resolved(node).get("description") or ""
        assert len(described) > 5, path
        assert {"type", "enum", "$ref", "not"} & set(node), path
    open_ones = {"config", "flags", "environment", "checked"}
    for path, node in nodes(catalog.schema()):
        if node.get("type") == "object" and path.split(".")[-1] not in open_ones and not path.startswith("$config"):
            assert node.get("additionalProperties") is False or path.startswith(".variants"), path


def test_a_small_entry_is_enough() -> None:
    assert catalog.schema_problems({"id": "my-model", "source": {"path": "/data/my-model"}}) == []


SMALL = {"id": "my-model", "source": {"path": "/data/my-model"}}
BROKEN: list[tuple[Any, str, str, str]] = [
    ("my-model", "", "this has to be a mapping", "Only id and source are needed"),
    ({}, "id", "this is missing", "lower-case letters, digits, dots and dashes"),
    ({"id": "my-model"}, "source", "this is missing", "exactly one of path, repo (with its revision) or builder"),
    ({**SMALL, "id": "My Model"}, "id", "not of the form", "lower-case letters"),
    ({**SMALL, "id": 7}, "id", "this has to be text", "qwen2.5-coder-32b-instruct"),
    ({**SMALL, "source": {}}, "source", "none of them, or more than one", "exactly one of"),
    ({**SMALL, "source": {"path": "/x", "repo": "a/b"}}, "source", "none of them, or more than one", "exactly one of"),
    ({**SMALL, "source": {"path": "data/x"}}, "source.path", "not of the form", "absolute folder"),
    ({**SMALL, "source": {"repo": "model"}}, "source.repo", "not of the form", "owner/name"),
    ({**SMALL, "source": {"repo": "a/b", "revision": "main"}}, "source.revision", "not of the form", "40 hex digits"),
    (
        {**SMALL, "source": {"path": "/x", "revision": "unverified"}},
        "source.revision",
        "`revision` means nothing without `repo`",
        "exactly one of",
    ),
    ({**SMALL, "source": {"builder": "tiny"}}, "source.builder", "none of the known values", "loopback_model"),
    ({**SMALL, "parameters": 32_800_000_000}, "parameters", "this is above", "in billions (1e9)"),
    ({**SMALL, "parameters": 0}, "parameters", "more than 0", "in billions (1e9)"),
    ({**SMALL, "parameters": float("nan")}, "parameters", "this has to be a number", "in billions (1e9)"),
    ({**SMALL, "weights_gib": "61 GB"}, "weights_gib", "this has to be a number", "in GiB (2**30 bytes)"),
    ({**SMALL, "max_model_len": 131072.0}, "max_model_len", "a whole number", "Tokens of one session"),
    ({**SMALL, "max_model_len": True}, "max_model_len", "a whole number", "Tokens of one session"),
    ({**SMALL, "quantization": "fp-8"}, "quantization", "none of the known values", "did you mean `fp8`?"),
    ({**SMALL, "minimum_vllm": 0.1}, "minimum_vllm", "this has to be text", "in quotes"),
    ({**SMALL, "runs_on": []}, "runs_on", "this list is empty", "cpu, cuda or both"),
    ({**SMALL, "runs_on": ["cuda", "cuda"]}, "runs_on", "stands in this list twice", "cpu, cuda or both"),
    ({**SMALL, "runs_on": ["gpu"]}, "runs_on[0]", "none of the known values", "choose one of: cpu, cuda"),
    ({**SMALL, "capabilities": {"tool_calling": True}}, "capabilities.tool_calling", "none of the known", "adapted"),
    ({**SMALL, "trust_remote_code": True}, "trust_remote_code_reason", "this is missing", "without running code"),
    ({**SMALL, "flags": ["--x"]}, "flags", "this has to be a mapping", "Python names"),
    ({**SMALL, "environment": {"A": ["b"]}}, "environment.A", "text or a number", "text or a number"),
    ({**SMALL, "config": {"num_hidden_layers": "48"}}, "config.num_hidden_layers", "a whole number", "layers"),
    (
        {**SMALL, "config": {"text_config": {"head_dim": -1}}},
        "config.text_config.head_dim",
        "this is below 0",
        "in elements",
    ),
    ({**SMALL, "faults": [{"what": "x"}]}, "faults[0].source", "this is missing", "says so"),
    (
        {**SMALL, "agentic_coding": {"score": 696, "benchmark": "x", "source": "https://x.example"}},
        "agentic_coding.score",
        "this is above 100",
        "in percent",
    ),
    ({**SMALL, "licence_url": "x"}, "licence_url", "knows no such key", "did you mean `licence`?"),
    ({**SMALL, "reasoning": True}, "reasoning", "knows no such key", "known here: id, title"),
    ({**SMALL, "variants": {"id": "x"}}, "variants", "this has to be a list", "Other checkpoints"),
    ({**SMALL, "variants": [{"title": "x"}]}, "variants[0].id", "this is missing", "lower-case letters"),
    ({**SMALL, "variants": [{"id": "my-model"}]}, "variants[0].id", "this id is taken", "an id of its own"),
    (
        {**SMALL, "variants": [{"id": "b", "source": {"repo": "q", "path": None}}]},
        "variants[0].source.repo",
        "not of the form",
        "owner/name",
    ),
    (
        {**SMALL, "variants": [{"id": "b", "variants": []}]},
        "variants[0].variants",
        "this cannot stand here",
        "no variants of their own",
    ),
]


@pytest.mark.parametrize(
    ("entry", "path", "why", "fix"), BROKEN, ids=[f"{at}-{row[1]}" for at, row in enumerate(BROKEN)]
)
def test_broken_entries_are_explained(entry: Any, path: str, why: str, fix: str) -> None:
    found = catalog.schema_problems(entry)
    assert [item for item in found if item[0] == path and why in item[2] and fix in item[3]], found
    for item in found:
        # Words for people, not the library's dump of the schema.
        assert len(item[2]) < 100
        assert len(item[3]) < 900
        assert "'type':" not in item[2] + item[3]


def test_a_broken_entry_is_not_said_again_for_its_variants() -> None:
    found = catalog.schema_problems({**SMALL, "parameters": "x", "variants": [{"id": "b"}, {"id": "c"}]})
    assert [item[0] for item in found] == ["parameters"]


def test_without_the_library_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.validator.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    try:
        with pytest.raises(RuntimeError, match=r"the Python package `jsonschema` .* requirements\.txt"):
            catalog.schema_problems(SMALL)
    finally:
        catalog.validator.cache_clear()


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
known = st.sampled_from([*catalog.schema()["properties"], "repo", "path", "revision", "tool_calling", "what", "id"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(known | st.text(max_size=5) | st.integers(), inner, max_size=5)
    ),
    max_leaves=12,
)


def checked_shape(found: list[Any]) -> None:
    for path, _value, why, fix in found:
        assert isinstance(path, str)
        assert why
        assert fix


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_nothing_that_yaml_can_hold_breaks_the_check(entry: Any) -> None:
    checked_shape(catalog.schema_problems(entry))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(documents())), st.data())
def test_a_damaged_entry_is_explained_or_still_good(model: str, data: st.DataObject) -> None:
    entry = copy.deepcopy(documents()[model])
    place: Any = entry
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(values)
        break
    checked_shape(catalog.schema_problems(entry))
