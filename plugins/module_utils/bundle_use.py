# MIT licence (see LICENSE)
"""Installing from a bundle: whether it fits, and what each host needs of it. Runs on the controller.

docs/bundle.md describes the folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import (
    bundle_pins,
    bundle_plan,
    model_manifest,
    model_store,
    preflight,
    runtime,
)
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem, some
from packaging import utils, version

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
#: The one place that says which signature counts; ./run and people use it too.
CHECK = ROOT / "tools/bundle_signature.sh"
#: Where a host keeps what was brought to it.
KEPT = "/var/cache/modelhost/bundle"
MODELS_DIR = "/var/lib/modelhost/models"
AGAIN = "build it again: playbooks/bundle.yml fetches only what is missing"

Problems = list[dict[str, Any]]


class BundleError(Exception):
    """Why a folder cannot be installed from: what is wrong, and what to do."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


# --- the folder --------------------------------------------------------------------------------------------------


@functools.cache
def manifest(path: str) -> dict[str, Any]:
    """What a bundle says of itself; BundleError where there is none that this release can read."""
    folder = Path(path)
    if not folder.is_absolute():
        raise BundleError("it is not clear below which folder a relative path is meant", "write the whole path")
    if folder.is_file():
        fix = f"unpack it (tar -xf {folder.name}) and name the folder that comes of it"
        raise BundleError("this is a file, and a bundle is a folder", fix)
    if not folder.is_dir():
        fix = "name the folder that playbooks/bundle.yml made; of parts: cat <name>.tar.* | tar -x"
        raise BundleError("the controller has no such folder", fix)
    try:
        data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = "it holds no manifest.json: this is no bundle, or its build did not end"
        raise BundleError(why, f"name the folder that playbooks/bundle.yml made, or {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"its manifest.json cannot be read: {error}", f"copy the bundle again, or {AGAIN}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        seen = data.get("format") if isinstance(data, dict) else None
        why = f"its manifest has the format {seen}, and this release reads {FORMAT}"
        raise BundleError(why, "build it with this release, or install with the project that lies in it (project/)")
    wrong = [name for name in data.get("files", {}) if not model_manifest.safe(name)]
    if wrong:
        raise BundleError(f"its manifest names a file outside of the bundle: {wrong[0]}", "do not use this bundle")
    return data


@functools.cache
def faults(path: str, on_hosts: bool, key: str) -> tuple[tuple[str, str], ...]:
    """What is wrong with a bundle as such, as (why, what to do): signature, checksums, sizes, pins."""
    try:
        data = manifest(path)
    except BundleError as error:
        return ((error.why, error.fix),)
    found = [*signature_faults(Path(path), key), *checksum_faults(Path(path))]
    if not found and not on_hosts:
        found += size_faults(Path(path), data)
    return (*found, *pin_faults(data))


def checksum_faults(folder: Path) -> list[tuple[str, str]]:
    """The manifest against SHA256SUMS, which is what is signed."""
    again = f"copy the bundle again, or {AGAIN}"
    try:
        sums = (folder / "SHA256SUMS").read_text(encoding="utf-8")
    except OSError:
        return [("it holds no SHA256SUMS: its build did not end, or it was not copied whole", again)]
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    if not re.search(rf"^{digest} [ *](?:\./)?manifest\.json$", sums, re.M):
        return [("its manifest.json is another one than SHA256SUMS says", again)]
    return []


def signature_faults(folder: Path, key: str) -> list[tuple[str, str]]:
    """SHA256SUMS against its signature, where a key is given (bundle_verify_key)."""
    if not key:
        return []
    if not (folder / "SHA256SUMS.asc").is_file():
        fix = "build it with bundle_signing_key, or take bundle_verify_key out"
        return [("it is not signed (it holds no SHA256SUMS.asc), and bundle_verify_key asks for that", fix)]
    try:
        done = subprocess.run([CHECK, key, folder], capture_output=True, text=True, check=False)
    except OSError as error:
        return [(f"its signature cannot be checked: {error}", "see that bash is here and this checkout is whole")]
    if done.returncode == 0:
        return []
    why = " ".join(done.stderr.split()) or "the check ended without a word"
    return [(why, "do not install from it before you know why")]


def size_faults(folder: Path, data: dict[str, Any]) -> list[tuple[str, str]]:
    """Files that are missing or cut short, by their size alone: their hashes are looked at where they arrive."""
    found = []
    for name, item in data["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            size = -1
        if size != item["size"]:
            found.append(name)
    if not found:
        return []
    why = f"{len(found)} of its {len(data['files'])} files are missing or of another size: {some(found, 'all', 5)}"
    return [(why, f"copy the bundle again (rsync copies only these), or {AGAIN}")]


@functools.cache
def own_pins() -> dict[str, str]:
    """What this checkout installs."""
    versions = read_yaml(ROOT / "versions.yml")
    return bundle_pins.pins(versions, read)


def read(path: str) -> str:
    """A file of this project."""
    return (ROOT / path).read_text(encoding="utf-8")


def pin_faults(data: dict[str, Any]) -> list[tuple[str, str]]:
    """A bundle of another release."""
    own = own_pins()
    other = [
        f"{name} {pin} (here {own[name]})" for name, pin in data.get("pins", {}).items() if own.get(name, pin) != pin
    ]
    if not other:
        return []
    why = f"it was built by another release ({data.get('release')}): {', '.join(other)}"
    return [(why, "build it with this release, or install with the project that lies in it (project/)")]


def problems(host: str, variables: Any) -> Problems:
    """Everything that is wrong with `bundle` as such; no host is asked."""
    path = variables.get("bundle")
    if not isinstance(path, str) or not path:
        return []
    key = str(variables.get("bundle_verify_key") or "")
    if key and not Path(key).is_file():
        return [problem(host, "bundle_verify_key", None, f"the controller has no file {key}", "name the public key")]
    wrong = faults(path, truth(variables.get("bundle_on_hosts")), key)
    return [problem(host, "bundle", path, why, fix) for why, fix in wrong]


def truth(value: Any) -> bool:
    """A switch, which -e gives as text."""
    return str(value).lower() in ("true", "yes", "on", "1")


# --- what a host needs -------------------------------------------------------------------------------------------


def platform_of(data: dict[str, Any], probe: dict[str, Any]) -> dict[str, Any] | None:
    """The bundle's platform that a host is."""
    own = bundle_plan.platform_of(probe)
    for item in data.get("platforms", []):
        if all(item.get(name) == own[name] for name in ("distribution", "codename", "architecture")):
            return dict(item)
    return None


def components(host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]) -> list[str]:
    """Programs that are installed on a host in virtual environments."""
    found = ["uv"]
    engines = host in groups.get("engines", []) and variables.get("vllm_state") != "absent"
    if engines and "venv" in runtime.of_engines(probe, variables).values():
        found.append(f"vllm_{preflight.resolved_variant(probe, variables)}")
    if fetches(host, variables, groups):
        found.append("huggingface_hub")
    gateway = host in groups.get("gateways", []) and variables.get("litellm_state") != "absent"
    if gateway and runtime.of_gateway(probe, variables) == "venv":
        found.append("litellm")
    client = host in groups.get("clients", []) and variables.get("claude_code_state") != "absent"
    install = variables.get("claude_code_install")
    if client and (install is None or truth(install)):
        found += ["node", "claude_code"]
    return found


def images(host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]) -> list[str]:
    """Components that run in containers on a host."""
    found = []
    if runtime.engines_use_containers(host, probe, variables, groups) and variables.get("vllm_state") != "absent":
        found.append("vllm")
    if (
        host in groups.get("gateways", [])
        and variables.get("litellm_state") != "absent"
        and runtime.of_gateway(probe, variables) == "docker"
    ):
        found.append("litellm")
    return found


def fetches(host: str, variables: Any, groups: dict[str, list[str]]) -> bool:
    """Whether weights of a hub come to a host, by whatever way."""
    if host in groups.get("mirrors", []):
        return True
    return host in groups.get("engines", []) and bool(model_store.models(model_store.of_host(variables), ""))


def wheel_names(names: list[str]) -> set[tuple[str, version.Version]]:
    """(distribution, version) of everything that the locks of components name."""
    found = set()
    versions = yaml.safe_load(read("versions.yml"))
    locks = {bundle_pins.lock_path(name, versions) for name in names if name != "claude_code"}
    # Beside uv's: a pip that can install it, for old systems.
    for path in sorted(locks | {"roles/host_base/files/etc/modelhost/pip.txt"}):
        for name, number in re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", read(path), re.M):
            found.add((str(utils.canonicalize_name(name)), version.Version(number)))
    return found


def wheel_of(path: str) -> tuple[str, version.Version]:
    """(distribution, version) of a wheel by its name."""
    name, number, *_rest = utils.parse_wheel_filename(path.rpartition("/")[2])
    return str(name), number


def folders(item: dict[str, Any], kind: str) -> list[str]:
    """A platform's folders of wheels or debs, below the bundle."""
    named = item.get(kind) or []
    return [named] if isinstance(named, str) else list(named)


def parts(
    data: dict[str, Any], host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]
) -> list[str]:
    """Files of a bundle that a host needs, without models and images."""
    item = platform_of(data, probe)
    if item is None:
        return []
    needed = components(host, probe, variables, groups)
    names = wheel_names(needed)
    wheels = tuple(f"{folder}/" for folder in folders(item, "wheels"))
    whole = [*(f"{folder}/" for folder in folders(item, "debs")), *(["npm/"] if "claude_code" in needed else [])]
    return [
        path
        for path in data["files"]
        if path.startswith(tuple(whole))
        or (path.startswith(wheels) and wheel_of(path) in names)
        or (path.startswith("python/") and item["architecture"] in path)
    ]


def use(hostvars: Any, host: str, groups: dict[str, list[str]]) -> dict[str, Any]:
    """What the site's roles are told about a host, for group_vars/all/wiring.yml; nothing without a bundle.

    path: the bundle as the host sees it; in_place; files and prune for bundle_push; downloads for host_base; npm: the
    archive of npm's cache; images for container_image; sources for hf_mirror.
    """
    variables = hostvars[host]
    path = str(variables.get("bundle") or "")
    if not path:
        return {}
    data, probe = manifest(path), variables.get("host_preflight_probe") or {}
    in_place = truth(variables.get("bundle_on_hosts")) or variables.get("ansible_connection") == "local"
    root = path if in_place else KEPT
    store = str(variables.get("model_store_dir") or MODELS_DIR)
    incoming = f"{store}/{model_manifest.INCOMING}"
    # Where there are mirrors, the others fetch from these.
    stages = host in (groups.get("mirrors") or groups.get("engines", []))
    models = model_store.models(model_store.entries(groups, hostvars, host), store) if stages else []
    names = parts(data, host, probe, variables, groups)
    files = [{"root": root, "path": name, "source": name, "unless": [], **data["files"][name]} for name in names]
    if in_place:
        # A mounted disk or share: others may write there between two runs, and apt would install it as root.
        files = [{**item, "fresh": True} for item in files]
    if not in_place:
        files += model_files(data, models, store, incoming)
    item = platform_of(data, probe) or {}
    return {
        "path": path,
        "in_place": in_place,
        "files": files,
        "prune": [folder for folder in (KEPT, f"{incoming}/.part") if folder != path],
        "downloads": {
            "wheels": [f"{root}/{folder}" for folder in folders(item, "wheels")],
            "debs": [
                {"path": f"{root}/{folder}", "sha256": data["files"][f"{folder}/Packages"]["sha256"]}
                for folder in folders(item, "debs")
            ],
            "python": f"{root}/python" if any(name.startswith("python/") for name in names) else "",
            "npm_registry": str(data.get("npm_registry") or ""),
        },
        "npm": [
            {"archive": f"{root}/{name}", "sha256": data["files"][name]["sha256"]}
            for name in names
            if name.startswith("npm/")
        ],
        "images": [
            {"component": name, **data["images"][name], "file": f"{path}/{data['images'][name]['file']}"}
            for name in images(host, probe, variables, groups)
            if name in data.get("images", {})
        ],
        "sources": sources(path, in_place, incoming) if models else [],
    }


def sources(path: str, in_place: bool, incoming: str) -> list[dict[str, Any]]:
    """Where the store takes weights from first. What was brought is moved, so that it takes its space once."""
    folder = f"{path}/models" if in_place else incoming
    return [{"type": "folder", "path": folder, "move": not in_place}]


def model_files(data: dict[str, Any], models: list[dict[str, Any]], store: str, incoming: str) -> list[dict[str, Any]]:
    """Files of models for bundle_push, a model's manifest last: what has none is not used."""
    found = []
    for model in models:
        folder = f"{model['repo']}/{model['revision']}/"
        names = [name for name in data["files"] if name.startswith(f"models/{folder}")]
        for name in sorted(names, key=lambda it: (it.endswith("/" + model_manifest.NAME), it)):
            below = name.removeprefix("models/")
            found.append(
                {
                    "root": incoming,
                    "path": below,
                    "source": name,
                    # Complete in the store already, or on its way there.
                    "unless": [
                        f"{store}/{folder}{model_manifest.NAME}",
                        f"{store}/{model_manifest.STAGING}/{below}",
                    ],
                    **data["files"][name],
                }
            )
    return found


# --- whether it fits a host --------------------------------------------------------------------------------------


def host_problems(host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]) -> Problems:
    """What a host needs and the bundle does not hold."""
    path = variables.get("bundle")
    if not isinstance(path, str) or not path:
        return []
    try:
        data = manifest(path)
    except BundleError:
        return []  # said before

    def wrong(why: str, fix: str) -> dict[str, Any]:
        return problem(host, "bundle", path, why, fix)

    if platform_of(data, probe) is None:
        own = bundle_plan.platform_of(probe)
        held = [f"{item['distribution']} {item['codename']} {item['architecture']}" for item in data["platforms"]]
        wanted = f"{{codename: {own['codename']}, architecture: {own['architecture']}}}"
        why = f"it was built for {', '.join(held) or 'nothing'}, and this host is {probe['distribution_name']}"
        return [wrong(f"{why} ({own['architecture']})", f"add {wanted} to bundle_platforms and {AGAIN}")]
    missing = [name for name in components(host, probe, variables, groups) if name not in data["pins"]]
    found = []
    if missing:
        why = f"it does not hold {', '.join(missing)}, which this host needs"
        found.append(wrong(why, f"{AGAIN}, with the inventory that you install with"))
    there = {(item["repo"], item["revision"]) for item in data.get("models", [])}
    store = str(variables.get("model_store_dir") or MODELS_DIR)
    models = model_store.models(model_store.of_host(variables), store) if host in groups.get("engines", []) else []
    absent = [model for model in models if (model["repo"], model["revision"]) not in there and not staged(model, probe)]
    if absent:
        listed = ", ".join(f"{model['repo']} at {model['revision'][:12]}" for model in absent)
        why = f"it does not hold the weights of {listed}, and this host has them not"
        fix = f"{AGAIN}, with the inventory that you install with; or put them into model_store_dir yourself"
        found.append(wrong(why, fix))
    without = [name for name in images(host, probe, variables, groups) if name not in data.get("images", {})]
    # What was loaded before is still there.
    if without and not probe.get("deployed"):
        why = f"it holds no image of {', '.join(without)}, which runs in a container on this host"
        found.append(wrong(why, f"{AGAIN} on a machine that reaches the registry, with bundle_images: auto"))
    return found


def staged(model: dict[str, Any], probe: dict[str, Any]) -> bool:
    """Whether preflight saw a model in the host's store."""
    return bool(((probe.get("paths") or {}).get(model["path"]) or {}).get("exists"))
