# MIT licence (see LICENSE)
"""A Docker Compose project of one engine host: engines, a gateway, and their files. Pure; runs on the controller.

The flags, folders and variables of an engine are those of its unit, so that both ways of running it give the same
answers. One flag differs: `host`, because the gateway is another container.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import (
    capacity,
    catalog,
    claude_code,
    compose_readme,
    containers,
    litellm_config,
    plan,
    preflight_capacity,
    vllm_flags,
)
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

ROOT = Path(__file__).resolve().parents[2]

#: Where the gateway and Ollama listen inside the project.
GATEWAY_PORT, OLLAMA_PORT = 4000, 11434
#: The gateway's folder, as in its unit.
GATEWAY_DIR = "/etc/modelhost/litellm"
#: Who services are inside their containers: nobody that an image or the host knows.
USER = "65532:65532"
#: For the services that run once and have to write where only root may.
ROOT_USER = "0:0"
#: Seconds that a stop may take: requests in flight get 20 (shutdown_timeout), and many GPUs take some to be let go.
STOP_SECONDS = 60
#: Random bytes of a key (256 bits).
KEY_BYTES = 32
#: Below it Claude Code compacts all the time.
LEAST_CONTEXT = capacity.MIN_CONTEXT


@dataclass
class Inputs:
    """All that a project is made from."""

    host: str
    #: The engine host's and the gateway's variables, with the roles' defaults.
    engine: dict[str, Any]
    gateway: dict[str, Any]
    #: What clients call the gateway, and the address on the host at which it is published.
    url: str
    address: str
    #: cpu or cuda; the machine that capacity.py reckons with, and its facts, where they are known.
    kind: str
    machine: dict[str, Any] | None
    facts: dict[str, Any]
    #: Where the facts are from, in words.
    hardware: str
    #: Images by `engine` and `gateway`; vLLM's version.
    images: dict[str, str]
    version: str
    #: vllm or ollama; nvidia or cdi; a folder of the host that holds Ollama's models.
    runs: str = "vllm"
    gpu: str = "nvidia"
    ollama_models: str = ""


@dataclass
class Project:
    """A project: its files but for the secret ones, and what those are made from."""

    document: dict[str, Any]
    files: dict[str, str]
    #: Names of secrets in .env, and lines beside them.
    secret_names: list[str]
    environment: dict[str, str]
    #: Users with the models of each, as key_hashes.json has them; keys that users bring along.
    access: dict[str, Any]
    own_keys: dict[str, str]
    notes: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)


def escaped(text: Any) -> str:
    """A value as Compose passes it on unchanged: `$` would begin a variable of its own."""
    return str(text).replace("$", "$$")


def variable(name: str) -> str:
    """A secret of .env; Compose refuses to start without it."""
    return "${" + name + ":?it stands in the file .env of this project}"


def project_name(host: str) -> str:
    """A name as Compose takes it."""
    return "modelhost-" + (re.sub(r"[^a-z0-9_-]+", "-", host.lower()).strip("-") or "host")


# --- engines -----------------------------------------------------------------------------------------------------


@functools.cache
def role_variables(role: str) -> dict[str, Any]:
    """A role's own variables, as they are written."""
    found = read_yaml(ROOT / "roles" / role / "vars" / "main.yml")
    assert isinstance(found, dict)
    return found


def worked_out(role: str, name: str, values: dict[str, Any]) -> dict[str, str]:
    """A mapping among a role's own variables, with what it names in turn; `values` are the public ones."""
    known = {**role_variables(role), **values}
    named = re.compile(r"\{\{ (\w+) \}\}")
    return {
        key: named.sub(lambda match: str(known[match.group(1)]), str(value))
        for key, value in role_variables(role)[name].items()
    }


def engine_environment() -> dict[str, str]:
    """What the role vllm gives to each engine, whatever it runs in."""
    return worked_out("vllm", "__vllm_environment", {})


def vllm_engines(inputs: Inputs, entries: dict[str, Any]) -> list[dict[str, Any]]:
    """The host's instances as its units would have them, listening for the gateway."""
    values = inputs.engine
    instances = values["vllm_instances"]
    return vllm_flags.effective_instances(
        instances,
        entries,
        inputs.version,
        vllm_flags=values["vllm_flags"],
        machine=inputs.machine,
        accelerator_flags={**plan.accelerator_flags()[inputs.kind], **values["vllm_accelerator_flags"]},
        metrics_clients=values["vllm_metrics_clients"],
        environment={**engine_environment(), **values["vllm_environment"]},
        runtimes={item["name"]: "docker" for item in instances},
        models_dir=values["vllm_models_dir"],
        bind_address="0.0.0.0",
        timeout=int(values["vllm_start_timeout"]) or None,
    )


def ollama_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry as Ollama runs it: its own 4-bit checkpoint, and no more context than that was made for."""
    own = entry["ollama"]
    left_out = ("loaded_gib", "tensor_parallel_sizes", "minimum_cpu", "minimum_compute_capability", "runs_on", "flags")
    found = {name: value for name, value in entry.items() if name not in left_out}
    config = {name: value for name, value in (entry.get("config") or {}).items() if name != "quantization_config"}
    size = {"weights_gib": own["weights_gib"]} if "weights_gib" in own else {}
    context = min(int(entry.get("max_model_len") or own["context"]), own["context"])
    return {**found, **size, "config": config, "quantization": "other", "max_model_len": context}


def ollama_engines(inputs: Inputs, entries: dict[str, Any]) -> list[dict[str, Any]]:
    """The host's instances for Ollama, in the form of vllm_engines."""
    instances = inputs.engine["vllm_instances"]
    asked = []
    for instance in instances:
        entry = ollama_entry(vllm_flags.resolve(instance, entries))
        wish = {name: instance[name] for name in ("max_model_len", "max_num_seqs") if instance.get(name)}
        if "max_model_len" in wish:
            wish["max_model_len"] = min(wish["max_model_len"], entry["max_model_len"])
        asked.append((entry, wish, instance.get("devices")))
    found = capacity.share(inputs.machine, asked) if inputs.machine else [{} for _item in asked]
    engines = []
    for instance, (entry, wish, devices), room in zip(instances, asked, found, strict=True):
        context = int(wish.get("max_model_len") or room.get("max_model_len") or entry["max_model_len"])
        # Its memory is taken at the start: this many times the whole context.
        sessions = max(1, min(int(wish.get("max_num_seqs") or capacity.SESSIONS), room.get("kv_tokens", 0) // context))
        environment = {
            "OLLAMA_HOST": f"0.0.0.0:{OLLAMA_PORT}",
            "OLLAMA_MODELS": "/models",
            # Without it 4K to 256K by the GPU's memory, and longer prompts are cut without a word.
            "OLLAMA_CONTEXT_LENGTH": str(context),
            "OLLAMA_NUM_PARALLEL": str(sessions),
            "OLLAMA_MAX_LOADED_MODELS": "1",
            # A model that was unloaded after five minutes would have to be read again.
            "OLLAMA_KEEP_ALIVE": "-1",
            # Otherwise it removes at its start what it takes for leftovers, in a folder that is read-only here.
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_NO_CLOUD": "1",
            "HOME": "/tmp",
            **{name: str(value) for name, value in (instance.get("environment") or {}).items()},
        }
        if devices:
            # Left to itself, Ollama takes as many GPUs as the model needs.
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        engines.append(
            {
                "name": instance["name"],
                "model": entry["id"],
                "port": OLLAMA_PORT,
                "served_model_name": [entry["ollama"]["model"]],
                "max_model_len": context,
                "start_timeout": 60,
                "environment": environment,
                "capacity": room,
            }
        )
    return engines


def problems(inputs: Inputs, engines: list[dict[str, Any]], entries: dict[str, Any]) -> list[dict[str, Any]]:
    """Instances that the machine has no room for."""
    found = []
    for at, item in enumerate(engines):
        room = item["capacity"]
        if not room or room["fits"] or not (room["known"] or room["why"]):
            continue
        instance = inputs.engine["vllm_instances"][at]
        entry = vllm_flags.resolve(instance, entries)
        fix = "another model (`./run plan` shows which fit) or a host with more memory"
        if inputs.runs == "vllm" and inputs.machine:
            wish = {name: instance[name] for name in ("max_model_len",) if instance.get(name)}
            fix = preflight_capacity.alternative(inputs.machine, entry, entries, wish)
        where = f"vllm_instances[{at}].model"
        found.append(problem(inputs.host, where, entry["id"], "; ".join(room["why"]), f"set {fix}"))
    return found


def lacking(inputs: Inputs, entries: dict[str, Any]) -> list[dict[str, Any]]:
    """Instances that Ollama has no model for, as far as the catalogue knows."""
    found = []
    for at, instance in enumerate(inputs.engine["vllm_instances"]):
        entry = vllm_flags.resolve(instance, entries)
        if "ollama" not in entry:
            known = ", ".join(sorted(name for name, item in entries.items() if "ollama" in item))
            why = "the catalogue names no model of Ollama's library for it"
            fix = (
                f"set one of: {known}; or describe it in vllm_models with the key `ollama`; or leave compose_engine out"
            )
            found.append(problem(inputs.host, f"vllm_instances[{at}].model", entry["id"], why, fix))
    return found


# --- services ----------------------------------------------------------------------------------------------------


def common(image: str) -> dict[str, Any]:
    """What all services share: no rights, no writing but where it is said, few logs."""
    return {
        "image": image,
        "user": USER,
        "restart": "unless-stopped",
        "init": True,
        "read_only": True,
        "tmpfs": ["/tmp:exec"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "logging": {"driver": "json-file", "options": {"max-size": "50m", "max-file": "3"}},
    }


def health(command: list[str], start_period: int) -> dict[str, Any]:
    """A health check. Within start_period a failure does not count, and the first success does."""
    return {
        "test": ["CMD", *command],
        "interval": "10s",
        "timeout": "10s",
        "retries": 6,
        "start_period": f"{start_period}s",
    }


def asks(url: str) -> list[str]:
    """A request in Python, which the images have; not all of them have curl."""
    return ["python3", "-c", f"import urllib.request as r; r.urlopen('{url}', timeout=9)"]


def bind(source: str, target: str, read_only: bool = True) -> dict[str, Any]:
    """A folder or file of the host; a missing one is an error, not a new folder of root's."""
    return {
        "type": "bind",
        "source": source,
        "target": escaped(target),
        "read_only": read_only,
        "bind": {"create_host_path": False},
    }


def volume(name: str, target: str, read_only: bool = False) -> dict[str, Any]:
    """A volume of the project."""
    return {"type": "volume", "source": name, "target": target, "read_only": read_only}


def limits(text: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """A unit's MemoryMax= in bytes."""
    limit = containers.memory_bytes(text, int((facts.get("memory") or {}).get("total") or 0))
    return {"mem_limit": limit, "memswap_limit": limit} if limit else {}


def gpus(inputs: Inputs, environment: dict[str, str]) -> dict[str, Any]:
    """The GPUs of an engine. Inside, they are numbered from 0, so the variable that names them goes."""
    if inputs.kind != "cuda":
        return {}
    named = [index.strip() for index in environment.pop("CUDA_VISIBLE_DEVICES", "").split(",") if index.strip()]
    # In WSL all GPUs are one device of Windows'.
    named = [] if inputs.facts.get("wsl") else named
    if inputs.gpu == "cdi":
        return {"devices": [f"nvidia.com/gpu={index}" for index in named or ["all"]]}
    which: dict[str, Any] = {"device_ids": named} if named else {"count": "all"}
    device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def weights_source(inputs: Inputs, path: str) -> str:
    """Where a model lies on the host; MODELS_DIR of .env moves all that are not named by a path of their own."""
    folder = inputs.engine["vllm_models_dir"]
    if not path.startswith(f"{folder}/"):
        return escaped(path)
    return "${MODELS_DIR:-" + folder + "}" + escaped(path[len(folder) :])


def vllm_service(inputs: Inputs, item: dict[str, Any], key: str) -> dict[str, Any]:
    """An engine with vLLM."""
    environment = {name: escaped(value) for name, value in item["environment"].items()}
    devices = gpus(inputs, environment)
    environment |= {"VLLM_API_KEY": variable(key), "NO_PROXY": "*", "no_proxy": "*"}
    # The account has no name in the image, and PyTorch asks for one.
    environment["USER"] = "vllm"
    named = containers.paths_in(item["flags"].values())
    volumes = [bind(weights_source(inputs, item["model_path"]), item["model_path"])]
    volumes.append(bind("./share", vllm_flags.SHARE))
    volumes += [bind(escaped(path), path) for path in named if not path.startswith(f"{vllm_flags.SHARE}/")]
    own = engine_environment()
    volumes += [volume("engine-state", own["HOME"]), volume("engine-cache", own["VLLM_CACHE_ROOT"])]
    volumes += [{"type": "tmpfs", "target": path, "tmpfs": {"size": 4096}} for path in item["hidden_paths"]]
    total = int((inputs.facts.get("memory") or {}).get("total") or 0)
    return {
        **common(inputs.images["engine"]),
        "entrypoint": ["vllm", "serve"],
        "command": [escaped(argument) for argument in item["argv"]],
        "environment": environment,
        "volumes": volumes,
        "networks": ["engines"],
        "healthcheck": health(asks(f"http://127.0.0.1:{item['port']}/health"), item["start_timeout"]),
        "stop_grace_period": f"{max(STOP_SECONDS, int(item['flags'].get('shutdown_timeout') or 0) + 40)}s",
        # Engine processes exchange tensors there; like the host's own it is half of its memory.
        "shm_size": total // 2 or 16 * capacity.GIB,
        # Docker's seccomp profile lets a process bind memory to NUMA nodes only with this.
        **({"cap_add": ["SYS_NICE"]} if inputs.kind == "cpu" else {}),
        "depends_on": {PREPARE: {"condition": "service_completed_successfully"}},
        **limits(inputs.engine["vllm_memory_max"], inputs.facts),
        **devices,
    }


#: The service that gives volumes to the account of the others.
PREPARE = "prepare"


def prepare_service(inputs: Inputs, used: dict[str, Any]) -> dict[str, Any]:
    """Docker makes volumes root's. Runs once before the others, may do nothing but this, and reaches nothing."""
    parts = {part["target"]: part["source"] for item in used.values() for part in volumes_of(item)}
    return {
        **common(inputs.images["engine"]),
        "user": ROOT_USER,
        "restart": "no",
        "cap_add": ["CHOWN", "DAC_READ_SEARCH"],
        "network_mode": "none",
        "entrypoint": ["chown", "-R", USER],
        "command": list(parts),
        "volumes": [volume(source, target) for target, source in parts.items()],
    }


def volumes_of(service: dict[str, Any]) -> list[dict[str, Any]]:
    """A service's volumes that are the project's own."""
    return [part for part in service["volumes"] if part["type"] == "volume"]


#: Beside its place and renamed, so that an incomplete model is never there; what was fetched is not fetched again.
FETCH = """
import hashlib, json, os, sys, urllib.request
from huggingface_hub import snapshot_download

repo, revision, path, extra = sys.argv[1:]
if not os.path.isdir(path):
    part = path + ".partial"
    snapshot_download(repo, revision=revision, local_dir=part, ignore_patterns=["*.pth", "*.bin", "original/*"])
    for item in json.loads(extra):
        with urllib.request.urlopen(item["url"]) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != item["sha256"]:
            sys.exit(item["url"] + " is not the file that it should be")
        os.makedirs(os.path.dirname(os.path.join(part, item["path"])), exist_ok=True)
        with open(os.path.join(part, item["path"]), "wb") as handle:
            handle.write(content)
    os.rename(part, path)
"""


def weights_service(inputs: Inputs, item: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any] | None:
    """Brings a model to the host, with the engine's image: `docker compose run --rm weights-<name>`."""
    source, folder, path = entry["source"], inputs.engine["vllm_models_dir"], item["model_path"]
    service: dict[str, Any] = {
        **common(inputs.images["engine"]),
        "profiles": ["weights"],
        "restart": "no",
        # The folder may be anybody's.
        "user": ROOT_USER,
        "cap_add": ["DAC_OVERRIDE"],
        "networks": ["outside"],
        "volumes": [bind("${MODELS_DIR:-" + folder + "}", folder, read_only=False)],
    }
    if "builder" in source:
        service["volumes"].append(bind(f"./{source['builder']}", "/build"))
        return {**service, "entrypoint": ["python3", "-B", "/build/build.py"], "command": [path]}
    if "repo" not in source:
        return None
    return {
        **service,
        "entrypoint": ["python3", "-c", FETCH],
        "command": [source["repo"], source["revision"], path, escaped(json.dumps(source.get("extra_files", [])))],
        "environment": {
            "HOME": "/tmp",
            "HF_ENDPOINT": "${HF_ENDPOINT:-https://huggingface.co}",
            "HF_TOKEN": "${HF_TOKEN:-}",
            "HTTPS_PROXY": "${HTTPS_PROXY:-}",
            # Downloads through Xet can hang (xet-core #883, #898).
            "HF_HUB_DISABLE_XET": "1",
        },
    }


def ollama_models(inputs: Inputs, read_only: bool) -> dict[str, Any]:
    """Where Ollama's models lie: a volume, or a folder that somebody has filled."""
    if inputs.ollama_models:
        return bind(escaped(inputs.ollama_models), "/models", read_only)
    return volume("ollama-models", "/models", read_only)


def ollama_service(inputs: Inputs, item: dict[str, Any]) -> dict[str, Any]:
    """An engine with Ollama, which has no way out."""
    environment = {name: escaped(value) for name, value in item["environment"].items()}
    devices = gpus(inputs, environment)
    pulled = {"depends_on": {f"pull-{item['name']}": {"condition": "service_completed_successfully"}}}
    return {
        **common(inputs.images["engine"]),
        "entrypoint": ["ollama"],
        "command": ["serve"],
        "environment": {**environment, "NO_PROXY": "*", "no_proxy": "*"},
        "volumes": [ollama_models(inputs, read_only=True)],
        "networks": ["engines"],
        "healthcheck": health(["ollama", "list"], item["start_timeout"]),
        "stop_grace_period": f"{STOP_SECONDS}s",
        **({} if inputs.ollama_models else pulled),
        **limits(inputs.engine["vllm_memory_max"], inputs.facts),
        **devices,
    }


def pull_service(inputs: Inputs, item: dict[str, Any]) -> dict[str, Any]:
    """Pulls Ollama's model once, before the engine starts; what is there already is not asked for again."""
    script = (
        "ollama serve & server=$!; "
        "until ollama list >/dev/null 2>&1; do kill -0 $server || exit 1; sleep 1; done; "
        'ollama show "$0" >/dev/null 2>&1 || ollama pull "$0"'
    )
    return {
        **common(inputs.images["engine"]),
        "restart": "no",
        "entrypoint": ["sh", "-c", escaped(script)],
        "command": item["served_model_name"],
        "environment": {
            "OLLAMA_HOST": f"127.0.0.1:{OLLAMA_PORT}",
            "OLLAMA_MODELS": "/models",
            "HOME": "/tmp",
            "HTTPS_PROXY": "${HTTPS_PROXY:-}",
            "NO_PROXY": "127.0.0.1",
        },
        "volumes": [ollama_models(inputs, read_only=False)],
        "networks": ["outside"],
        "depends_on": {PREPARE: {"condition": "service_completed_successfully"}},
    }


def gateway_service(inputs: Inputs, backends: list[dict[str, Any]]) -> dict[str, Any]:
    """LiteLLM, the only service that publishes a port."""
    values = inputs.gateway
    own = {**worked_out("litellm", "__litellm_own_environment", values), **values["litellm_environment"]}
    keys = {name: variable(name) for name in map(litellm_config.environment_name, backends)}
    address = f"[{inputs.address}]" if ":" in inputs.address else inputs.address
    return {
        **common(inputs.images["gateway"]),
        "entrypoint": ["litellm"],
        "command": [
            *("--config", f"{GATEWAY_DIR}/config.yaml", "--host", "0.0.0.0"),
            *("--port", str(GATEWAY_PORT), "--num_workers", "1"),
        ],
        "environment": {
            **{name: escaped(value) for name, value in own.items()},
            # It talks to engines alone.
            "NO_PROXY": "*",
            "no_proxy": "*",
            **keys,
            "LITELLM_MASTER_KEY": variable("LITELLM_MASTER_KEY"),
        },
        # Folders, not files: a file that is replaced would stay the old one in a container.
        "volumes": [bind("./litellm/config", GATEWAY_DIR), bind("./litellm/lib", own["PYTHONPATH"])],
        "tmpfs": ["/tmp:exec", own["HOME"]],
        "networks": ["engines", "outside"],
        "ports": [f"{address}:{values['litellm_port']}:{GATEWAY_PORT}"],
        "depends_on": {f"engine-{item['instance']}": {"condition": "service_healthy"} for item in backends},
        "healthcheck": health(
            asks(f"http://127.0.0.1:{GATEWAY_PORT}/health/readiness"), int(values["litellm_start_timeout"])
        ),
        "stop_grace_period": f"{values['litellm_stop_timeout']}s",
        **limits(values["litellm_memory_max"], inputs.facts),
    }


# --- users and clients -------------------------------------------------------------------------------------------


def backends_of(inputs: Inputs, engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The engines as the gateway sees them."""
    return [
        {
            "host": inputs.host,
            "instance": item["name"],
            "model": item["model"],
            "served_model_name": item["served_model_name"][0],
            "url": f"http://engine-{item['name']}:{item['port']}",
            "max_model_len": item["max_model_len"],
        }
        for item in engines
    ]


def of_this_host(inputs: Inputs, names: list[str], notes: list[str]) -> dict[str, Any]:
    """Users, default instance and aliases of the gateway, as far as they ask for engines of this host."""
    values = inputs.gateway
    users = []
    for user in values["litellm_users"]:
        models = [name for name in user.get("models") or [] if name in names]
        if user.get("models") and not models:
            notes.append(f"user {user['name']} is left out: {', '.join(user['models'])} run on other hosts")
            continue
        users.append({**user, "models": models})
    default = values["litellm_default_instance"]
    if (default or len(names) > 1) and default not in names:
        notes.append(
            f"{names[0]} answers to claude-* and the other common names: litellm_default_instance is elsewhere"
        )
        default = names[0]
    aliases = {alias: name for alias, name in values["litellm_aliases"].items() if name in names}
    return {"users": users, "default": default, "aliases": aliases, "dated": values["litellm_dated_names"]}


def gateway_settings(values: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What litellm_config.config takes, as the role litellm gives it."""
    return {
        "default_instance": asked["default"],
        "aliases": asked["aliases"],
        "dated_names": asked["dated"],
        "messages_route": values["litellm_messages_route"],
        "drop_params": str(values["litellm_drop_params"]).lower() in ("true", "yes", "on", "1"),
        "request_timeout": int(values["litellm_request_timeout"]),
        "stream_timeout": int(values["litellm_stream_timeout"]),
        "retries": int(values["litellm_retries"]),
        "cooldown": int(values["litellm_cooldown"]),
        "extra": values["litellm_extra_config"],
    }


def client_files(inputs: Inputs, backends: list[dict[str, Any]], asked: dict[str, Any]) -> dict[str, str]:
    """For each user: settings for Claude Code, and shell lines that do the same for one terminal."""
    values = inputs.gateway
    found = {}
    for user in asked["users"]:
        name = (user["models"] or [asked["default"] or backends[0]["instance"]])[0]
        backend = next(item for item in backends if item["instance"] == name)
        context = int(values["claude_code_max_context_tokens"] or backend["max_model_len"] or 0)
        if not context:
            continue
        env = claude_code.environment(
            inputs.url,
            litellm_config.PREFIX + name,
            context,
            int(values["claude_code_max_output_tokens"]),
            int(values["claude_code_timeout"]),
            values["claude_code_environment"],
        )
        settings = claude_code.settings(
            env,
            "KEY",
            profile=values["claude_code_profile"],
            permission_mode=values["claude_code_permission_mode"],
            deny=values["claude_code_permissions_deny"],
        )
        # Unquoted, for the shell to find the home.
        settings["apiKeyHelper"] = f"cat {compose_readme.CLIENT_KEY}"
        settings = catalog.merged(settings, values["claude_code_settings"])
        found[f"clients/{user['name']}.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        lines = claude_code.snippet(env, "KEY").replace("cat KEY", f"cat {compose_readme.CLIENT_KEY}")
        found[f"clients/{user['name']}.sh"] = (
            f"# Source this file, then start `claude`. The key of {user['name']} lies in {compose_readme.CLIENT_KEY} "
            f"(mode 0600).\n{lines}\n"
        )
    return found


# --- the project -------------------------------------------------------------------------------------------------


class Dumper(yaml.SafeDumper):
    """YAML for people: no anchors, lists set in."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def as_yaml(data: Any) -> str:
    """A document in the order of its keys."""
    text: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def head(inputs: Inputs) -> str:
    """What stands above the services."""
    lines = [
        f"Engines and gateway of {inputs.host}, exported from an Ansible inventory (playbooks/compose.yml).",
        "The next export writes this file again: changes of your own belong into docker-compose.override.yml.",
        "Needs Docker Compose 2; keys come from the file .env.",
        f"Hardware: {inputs.hardware}",
    ]
    if inputs.runs == "vllm":
        lines += [
            "The flags are those that a deployment by Ansible gives to its units, but for one: `--host 0.0.0.0`. The",
            "gateway reaches engines by the network `engines`, which has no way out and on which nothing is published.",
        ]
    return "".join(f"# {line}\n" for line in lines)


def shipped_files(inputs: Inputs, engines: list[dict[str, Any]], entries: dict[str, Any]) -> dict[str, str]:
    """The engines' guard, and templates, parsers and builders of this project that they need."""
    found = {}
    if inputs.runs == "vllm":
        below = "guard/modelhost_engine_guard.py"
        source = ROOT / "roles/vllm/files" / vllm_flags.SHARE.lstrip("/") / below
        found[f"share/{below}"] = source.read_text(encoding="utf-8")
    for item in engines:
        for path in containers.paths_in((item.get("flags") or {}).values()):
            if path.startswith(f"{vllm_flags.SHARE}/"):
                below = path[len(vllm_flags.SHARE) + 1 :]
                found[f"share/{below}"] = (ROOT / "catalog" / below).read_text(encoding="utf-8")
    for instance in inputs.engine["vllm_instances"] if inputs.runs == "vllm" else []:
        builder = vllm_flags.resolve(instance, entries)["source"].get("builder")
        for path in sorted(vllm_flags.builder_folder(builder).iterdir()) if builder else []:
            if path.is_file():
                found[f"{builder}/{path.name}"] = path.read_text(encoding="utf-8")
    return found


def remarks(inputs: Inputs, engines: list[dict[str, Any]], entries: dict[str, Any]) -> list[str]:
    """What somebody should know before the first request."""
    found = []
    for instance, item in zip(inputs.engine["vllm_instances"], engines, strict=True):
        entry = vllm_flags.resolve(instance, entries)
        if item["max_model_len"] and int(item["max_model_len"]) < LEAST_CONTEXT:
            found.append(
                f"{item['name']}: {item['max_model_len']} tokens of context are too few for Claude Code, "
                "which needs 64K"
            )
        if inputs.runs != "ollama":
            continue
        own = entry["ollama"]
        if entry.get("quantization") not in (None, "other"):
            found.append(f"{item['name']}: Ollama's {own['model']} is a 4-bit build of its own, not {entry['id']}")
        if not own.get("tools", True):
            found.append(f"{item['name']}: Ollama refuses requests with tools for {own['model']}: chat only")
    return found


def services(inputs: Inputs, engines: list[dict[str, Any]], entries: dict[str, Any]) -> dict[str, Any]:
    """All services by name."""
    backends = backends_of(inputs, engines)
    found: dict[str, Any] = {}
    for instance, item, backend in zip(inputs.engine["vllm_instances"], engines, backends, strict=True):
        if inputs.runs == "ollama":
            found[f"engine-{item['name']}"] = ollama_service(inputs, item)
            if not inputs.ollama_models:
                found[f"pull-{item['name']}"] = pull_service(inputs, item)
            continue
        found[f"engine-{item['name']}"] = vllm_service(inputs, item, litellm_config.environment_name(backend))
        weights = weights_service(inputs, item, vllm_flags.resolve(instance, entries))
        if weights:
            found[f"weights-{item['name']}"] = weights
    if any(volumes_of(item) for item in found.values()):
        found[PREPARE] = prepare_service(inputs, found)
    return {**found, "gateway": gateway_service(inputs, backends)}


def project(inputs: Inputs) -> Project:
    """The whole of it."""
    entries = catalog.entries(inputs.engine["vllm_models"])
    if inputs.runs == "ollama":
        missing = lacking(inputs, entries)
        if missing:
            return Project({}, {}, [], {}, {}, {}, problems=missing)
        engines = ollama_engines(inputs, entries)
    else:
        engines = vllm_engines(inputs, entries)
    notes = remarks(inputs, engines, entries)
    backends = backends_of(inputs, engines)
    asked = of_this_host(inputs, [item["name"] for item in engines], notes)
    everybody = [*asked["users"], {"name": litellm_config.CHECKS_USER}]
    names = (backends, asked["default"], asked["aliases"], asked["dated"])
    used = services(inputs, engines, entries)
    volumes = {part["source"] for item in used.values() for part in volumes_of(item)}
    document = {
        "services": used,
        "networks": {"engines": {"internal": True}, "outside": {}},
        **({"volumes": {name: {} for name in sorted(volumes)}} if volumes else {}),
    }
    config = litellm_config.config(backends, gateway_settings(inputs.gateway, asked))
    clients = client_files(inputs, backends, asked)
    hook = ROOT / "roles/litellm/files/opt/modelhost/litellm/lib/modelhost_gateway"
    files = {
        "docker-compose.yml": head(inputs) + as_yaml(document),
        "litellm/config/config.yaml": "# Written by the export; see docker-compose.yml.\n" + as_yaml(config),
        **{
            f"litellm/lib/modelhost_gateway/{file.name}": file.read_text(encoding="utf-8")
            for file in sorted(hook.glob("*.py"))
        },
        **shipped_files(inputs, engines, entries),
        **clients,
        # Whoever keeps the project in a repository does not want its keys there.
        ".gitignore": "/.env\n/keys/\n",
    }
    files["README.md"] = compose_readme.text(inputs, engines, used, sorted(clients), notes)
    return Project(
        document,
        files,
        ["LITELLM_MASTER_KEY", *map(litellm_config.environment_name, backends)],
        {"COMPOSE_PROJECT_NAME": project_name(inputs.host)},
        litellm_config.access(everybody, *names, litellm_config.default_limits(inputs.gateway)),
        {user["name"]: str(user["key"]) for user in asked["users"] if user.get("key")},
        notes,
        problems(inputs, engines, entries),
    )


# --- secrets -----------------------------------------------------------------------------------------------------


def new_key() -> str:
    """A key as an engine's role makes it."""
    return "sk-" + secrets.token_urlsafe(KEY_BYTES)


def env_file(present: str, secret_names: list[str], others: dict[str, str]) -> str:
    """The file .env: what stands there stays, whoever wrote it; what is missing is added."""
    lines = present.splitlines() or [
        "# Keys of the engines and of the gateway itself; nobody needs to type them. Kept when the project is exported",
        "# again, as are lines of your own, such as MODELS_DIR=/data/models.",
    ]
    has = {line.split("=", 1)[0].strip() for line in lines if re.match(r"\s*\w+\s*=\s*\S", line)}
    lines += [f"{name}={shlex.quote(value)}" for name, value in others.items() if name not in has]
    lines += [f"{name}={new_key()}" for name in secret_names if name not in has]
    return "\n".join(lines) + "\n"


def pinned(pin: dict[str, Any], own: str, allow_unpinned: bool) -> tuple[str, str]:
    """An image's reference, and why it cannot be used, if so. A tag says which version, a digest which image."""
    if own:
        return own, ""
    name = f"{pin['repository']}:{pin['tag']}"
    if pin["digest"] != "unverified":
        return f"{name}@{pin['digest']}", ""
    if allow_unpinned:
        return name, ""
    return name, f"versions.yml has no digest for {name} yet (`unverified`)"
