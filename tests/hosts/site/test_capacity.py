"""What the capacity module calls fitting starts with exactly those flags, and the engine finds the KV cache foretold.

Catalogue models with fewer layers and experts, so that they fit a test host; weights are made up by the engine itself
(`--load-format dummy`). `./run test --all` takes one of each kind of attention, `./run test` the most intricate.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader
from conftest import ROOT, SideEngine, run

init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.modelhost.serving.plugins.lookup.pin import pin  # noqa: E402 (needs the loader)
from ansible_collections.modelhost.serving.plugins.module_utils import (  # noqa: E402 (same)
    capacity,
    catalog,
    hardware,
    vllm_flags,
)

GIB = capacity.GIB
PYTHON = "/opt/modelhost/vllm/current/bin/python"
FOLDER = "/var/cache/modelhost/vllm/shapes"
PORT = 8199
VERSION = str(pin("vllm.cpu.version"))

#: Catalogue model → layers and context that are left of it.
SHAPES = {
    "qwen3-coder-next": (4, 65536),
    "qwen3-coder-30b-a3b-instruct": (4, 65536),
    "qwen2.5-coder-32b-instruct": (2, 65536),
    "deepseek-coder-v2-lite-instruct": (3, 16384),
}
CHOSEN = list(SHAPES) if os.environ.get("MODELHOST_TEST_ALL") else list(SHAPES)[:1]

COUNT = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained(sys.argv[1])
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(getattr(config, "text_config", config), dtype=torch.bfloat16)
print("PARAMETERS", sum(tensor.numel() for tensor in model.parameters()))
"""


def shrunk(config: dict[str, Any], count: int) -> dict[str, Any]:
    """The same model with fewer layers, experts and words, and weights that are not quantised."""
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    if "text_config" in config:
        return {**config, "text_config": shrunk(config["text_config"], count)}
    config |= {"num_hidden_layers": count, "vocab_size": 32768}
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:count]
    for key in ("num_experts", "n_routed_experts", "num_local_experts"):
        if config.get(key):
            config[key] = min(int(config[key]), 32)
    return config


def in_container(container: str, *command: str, text: str | None = None) -> str:
    """What a command prints that runs in the container as the engines' account."""
    return run("docker", "exec", "-i", "-u", "vllm", container, *command, input=text).stdout


@pytest.fixture
def folder(container: str) -> Iterator[str]:
    """A place for models that are gone after the test."""
    yield FOLDER
    subprocess.run(["docker", "exec", container, "rm", "-rf", FOLDER], check=False)


@pytest.mark.parametrize("name", CHOSEN)
def test_what_fits_starts(name: str, container: str, side_engine: SideEngine, folder: str) -> None:
    shape = f"{folder}/{name}"
    layers, context = SHAPES[name]
    config = shrunk(catalog.shipped()[name]["config"], layers)
    in_container(container, "mkdir", "-p", shape)
    in_container(
        container, "sh", "-c",
        f"cp /var/lib/modelhost/models/modelhost/loopback_model/*/tokenizer* {shape}; cat > {shape}/config.json",
        text=json.dumps(config),
    )  # fmt: skip
    out = in_container(container, "env", "HF_HUB_OFFLINE=1", "HOME=/tmp", PYTHON, "-c", COUNT, shape)
    parameters = int(out.split("PARAMETERS")[1])

    inventory = os.environ["MODELHOST_INVENTORY"]
    said = run("ansible", "-i", inventory, container, "-m", "modelhost.serving.host_probe", cwd=ROOT).stdout
    facts = yaml.safe_load(said.split("=>", 1)[1])["probe"]
    machine = hardware.machine(facts, "cpu", free=True)
    overrides = {key: value for key, value in catalog.shipped()[name]["flags"].items() if key == "hf_overrides"}
    entry = {
        "id": "shape",
        "source": {"path": shape},
        "config": config,
        "weights_gib": parameters * 2 / GIB,
        "parameters": parameters / 1e9,
        "max_model_len": context,
        # What a start needs to be quick; the rest is the capacity module's.
        "flags": {"load_format": "dummy", "enforce_eager": True, **overrides},
    }
    instance = {"name": "shape", "model": entry, "port": PORT}
    (found,) = vllm_flags.effective_instances([instance], {}, VERSION, machine=machine)
    foretold = found["capacity"]
    assert foretold["fits"], foretold["why"]

    began = time.monotonic()
    # The guard lets no engine start without a key.
    environment = {**found["environment"], "VLLM_API_KEY": "sk-engine-of-a-test"}
    side_engine.start(found["argv"], PORT, environment, found["hidden_paths"])
    text = side_engine.journal()
    tokens = int(re.findall(r"KV cache size: ([\d,]+) tokens", text)[-1].replace(",", ""))
    held = side_engine.resident()
    expected = foretold["weights"] + foretold["overhead"] + foretold["kv_cache_memory_bytes"]
    print(
        f"{name}: {parameters / 1e9:.2f} B parameters, {tokens} tokens of KV cache (foretold {foretold['kv_tokens']}), "
        f"{capacity.gib(held)} resident (foretold at most {capacity.gib(expected)}), {time.monotonic() - began:.0f} s"
    )
    assert tokens == pytest.approx(foretold["kv_tokens"], rel=0.02)
    # Not less than the weights, or the wrong processes were counted.
    assert foretold["weights"] < held < expected
