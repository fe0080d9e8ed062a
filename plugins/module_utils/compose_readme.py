# MIT licence (see LICENSE)
"""The README.md of an exported Compose project. Pure; runs on the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible_collections.modelhost.serving.plugins.module_utils.compose import Inputs

#: Where a user keeps the key that the client files read.
CLIENT_KEY = "~/.modelhost.key"


def engine_lines(engines: list[dict[str, Any]]) -> list[str]:
    """A line for each engine."""
    return [
        f"| `engine-{item['name']}` | {item['model']} | {', '.join(item['served_model_name'])} "
        f"| {item['max_model_len'] or 'the model decides'} |"
        for item in engines
    ]


def weights_lines(inputs: Inputs, engines: list[dict[str, Any]], services: dict[str, Any]) -> list[str]:
    """How models come to the host."""
    if inputs.runs == "ollama":
        if inputs.ollama_models:
            return [f"Ollama's models are expected in `{inputs.ollama_models}` (its folders `blobs` and `manifests`)."]
        return [
            "`docker compose up` pulls the models once into the volume `ollama-models`, by a container that ends",
            "before the engine starts. The engine itself has no way out, and later starts need no network.",
        ]
    folder = inputs.engine["vllm_models_dir"]
    lines = ["| engine | folder that has to be there |", "|---|---|"]
    lines += [f"| `engine-{item['name']}` | `{item['model_path']}` |" for item in engines]
    lines += ["", f"`MODELS_DIR=/elsewhere` in `.env` takes the place of `{folder}`."]
    fetching = [name for name in services if name.startswith("weights-")]
    if fetching:
        lines += [
            "Copy the folders from a host that has them, or fetch them here; an interrupted run goes on:",
            "",
            "```sh",
            f'mkdir -p "${{MODELS_DIR:-{folder}}}"',
            *[f"docker compose run --rm {name}" for name in fetching],
            "```",
            "",
            "`HF_ENDPOINT`, `HF_TOKEN` and `HTTPS_PROXY` may stand in `.env`.",
        ]
    return lines


def client_lines(inputs: Inputs, clients: list[str]) -> list[str]:
    """How each user's Claude Code is pointed at the gateway."""
    users = sorted({name.removeprefix("clients/").rsplit(".", 1)[0] for name in clients})
    if not users:
        return ["There are no users yet: add them to `litellm_users` of the inventory and export again."]
    lines = [
        f"The gateway is `{inputs.url}` (Anthropic: `/v1/messages`, OpenAI: `/v1`). Give each user the key and one of",
        f"the two files, and let the key lie in `{CLIENT_KEY}` (mode 0600) on the user's machine:",
        "",
        "| user | key | for always | for one terminal |",
        "|---|---|---|---|",
    ]
    for name in users:
        lines.append(
            f"| {name} | `keys/{name}` | `clients/{name}.json` as `~/.claude/settings.json`, or `claude --settings "
            f"{name}.json` | `source {name}.sh`, then `claude` |"
        )
    return lines


def text(
    inputs: Inputs, engines: list[dict[str, Any]], services: dict[str, Any], clients: list[str], notes: list[str]
) -> str:
    """The page."""
    values = inputs.gateway
    what = "vLLM" if inputs.runs == "vllm" else "Ollama"
    gpu = []
    if inputs.kind == "cuda":
        gpu = [
            "- NVIDIA's driver and `nvidia-container-toolkit`"
            + (
                "; the GPUs are named by CDI (`nvidia-ctk cdi list` shows them)."
                if inputs.gpu == "cdi"
                else ", with the runtime `nvidia` known to Docker (`nvidia-ctk runtime configure --runtime=docker`)."
            )
        ]
    check = f"http://{'127.0.0.1' if inputs.address in ('0.0.0.0', '::') else inputs.address}:{values['litellm_port']}"
    lines = [
        f"# Engines and gateway of {inputs.host}",
        "",
        f"{what} and LiteLLM by Docker Compose, exported from an Ansible inventory. Hardware: {inputs.hardware}.",
        "",
        "| service | model | names at the engine | context (tokens) |",
        "|---|---|---|---|",
        *engine_lines(engines),
        "",
        *([*(f"- **{note}**" for note in notes), ""] if notes else []),
        "## What the host needs",
        "",
        "- Docker Engine and Docker Compose 2 (`docker compose version`).",
        *gpu,
        "- This folder, with the modes it has (`rsync -a`, `tar -p`): `.env` and `keys/` are for its owner alone.",
        "",
        "## Models",
        "",
        *weights_lines(inputs, engines, services),
        "",
        "## Start",
        "",
        "```sh",
        "docker compose pull --ignore-pull-failures   # not in a closed network",
        "docker compose up -d                         # waits for the engines; a large model loads for minutes",
        "docker compose ps",
        f'curl -H "Authorization: Bearer $(cat keys/verify)" {check}/v1/models',
        "```",
        "",
        "`docker compose logs -f` shows what happens, `docker compose down` ends it: running requests get their time.",
        "In a closed network, bring the images by `docker save` and `docker load`. Loading does not keep digests:",
        "export again with the ids that the images have then (`docker image inspect --format '{{.Id}}' …`) in",
        "`vllm_image` and `litellm_image` of the inventory.",
        "",
        "## Claude Code",
        "",
        *client_lines(inputs, clients),
        "",
        "Anthropic does not support models of other vendors behind Claude Code.",
        "",
        "## What is what",
        "",
        "| file | |",
        "|---|---|",
        "| `docker-compose.yml` | the services; changes of your own go into `docker-compose.override.yml` |",
        "| `.env` | keys of the engines, mode 0600; lines of your own are kept |",
        "| `litellm/` | the gateway's configuration, what this project adds to it, and the hashes of users' keys |",
        "| `keys/` | a key for each user, mode 0600; `verify` is for checks |",
        "| `clients/` | settings and shell lines for Claude Code; no key in them |",
        "",
        "Only the gateway publishes a port. Engines sit on a network without a way out"
        + (", and Ollama checks no key of its own" if inputs.runs == "ollama" else "")
        + ".",
        "Containers run as user and group 65532, who are nobody on the host, without any right that could take effect,",
        "on a read-only file system. Only what runs once and ends is root inside: `weights-…`, which writes into your",
        "folder of models, and `prepare`, which gives Docker's volumes to that user; each with no more than the",
        "capabilities that stand in `docker-compose.yml`. Models must be readable for others than root",
        "(`chmod -R o+rX`).",
        "LiteLLM comes with the package `litellm-enterprise`, whose licence is proprietary.",
    ]
    return "\n".join(lines) + "\n"
