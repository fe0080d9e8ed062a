# MIT licence (see LICENSE)
"""What argument specs cannot say of hf_mirror's variables, and the mirrors of an inventory. Pure; needs no host."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.modelhost.serving.plugins.module_utils import catalog, model_manifest, model_store, vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_backends import is_loopback

Problems = list[dict[str, Any]]

#: The role's default; kept equal to roles/hf_mirror/defaults/main.yml by a test.
PORT = 8090
#: Keys of a source beside its type, those that it cannot do without first.
KEYS = {
    "hub": ("url", "token"),
    "modelscope": ("url", "token", "revision"),
    "http": ("url", "username", "password"),
    "s3": ("url", "endpoint", "region", "access_key", "secret_key"),
    "folder": ("path", "move"),
}
NEEDED = {"http": "url", "s3": "url", "folder": "path"}
#: What other guides call the key.
MEANT = {"hub": {"endpoint": "url", "path": "url", "password": "token"}, "folder": {"url": "path"}}
EXAMPLES = {"http": "https://files.example/models", "s3": "s3://bucket/models", "folder": "/mnt/nas/models"}
#: Hosts whose addresses have models below them, and the type of source that they are.
PUBLIC = {
    "huggingface.co": "hub",
    "hf.co": "hub",
    "hf-mirror.com": "hub",
    "modelscope.cn": "modelscope",
    "modelscope.ai": "modelscope",
}
COMMIT = re.compile(r"[0-9a-f]{40}")
#: Parts of an address that belong to a page or file of one model.
PAGE = re.compile(r"/(tree|blob|resolve|raw)/")


def problems(host: str, variables: Any, groups: dict[str, list[str]] | None = None) -> Problems:
    """Everything that is wrong with hf_mirror's variables of one host; without groups, with the values alone."""
    if variables.get("hf_mirror_state") == "absent":
        return []
    found = source_problems(host, variables.get("hf_mirror_sources"))
    found += server_problems(host, variables)
    if groups is None:
        return found
    found += emptiness_problems(host, variables, groups)
    if host in groups.get("engines", []):
        found += code_problems(host, variables)
    return found + place_problems(host, variables, groups) if host in groups.get("mirrors", []) else found


# --- sources -----------------------------------------------------------------------------------------------------


def source_problems(host: str, sources: Any) -> Problems:
    """The items of hf_mirror_sources. Of wrong keys and types the specs complain."""
    found = []
    for index, item in enumerate(sources if isinstance(sources, (list, tuple)) else []):
        if not isinstance(item, dict) or str(item.get("type")) not in KEYS:
            continue
        place = f"hf_mirror_sources[{index}]"
        found += key_problems(host, place, item)
        if item["type"] == "folder":
            found += folder_problems(host, place, item.get("path"))
        elif isinstance(item.get("url"), str) and item["url"]:
            found += bucket_problems(host, place, item) if item["type"] == "s3" else url_problems(host, place, item)
        for key in ("token", "password", "secret_key", "access_key"):
            # Of line breaks the specs complain.
            if " " in str(item.get(key) or ""):
                why = "there is a space in it, which no server would take"
                found.append(problem(host, f"{place}.{key}", None, why, "copy it again, without what stands around it"))
    return found


def key_problems(host: str, place: str, item: dict[str, Any]) -> Problems:
    """Keys that a type of source does not have, or lacks."""
    kind = item["type"]
    known = {key for keys in KEYS.values() for key in keys}
    found = []
    for key in item:
        if key in KEYS[kind] or key not in known or item[key] is None:
            continue
        meant = MEANT.get(kind, {}).get(key)
        fix = f"call it `{meant}`" if meant else f"remove it; {kind} knows: {', '.join(KEYS[kind])}"
        found.append(problem(host, f"{place}.{key}", None, f"a source of type {kind} has no such key", fix))
    needed = NEEDED.get(kind)
    if needed and not item.get(needed):
        why = f"a source of type {kind} needs it"
        found.append(problem(host, f"{place}.{needed}", None, why, f"set it, for example to {EXAMPLES[kind]}"))
    pairs = {"http": ("username", "password"), "s3": ("access_key", "secret_key")}
    if kind in pairs:
        one, other = pairs[kind]
        if bool(item.get(one)) != bool(item.get(other)):
            lacking = other if item.get(one) else one
            fix = "set both, or neither"
            found.append(problem(host, f"{place}.{lacking}", None, f"{one} and {other} belong together", fix))
    return found


def url_problems(host: str, place: str, item: dict[str, Any]) -> Problems:
    """The address of a hub, of ModelScope or of a web server."""
    kind, url, name = item["type"], item["url"], f"{place}.url"
    try:
        part = urlsplit(url)
        sound = part.scheme in ("http", "https") and bool(part.hostname) and (part.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        fix = "write it as https://name[:port]"
        if kind == "http" and url.startswith("s3://"):
            fix = "set type: s3"
        return [problem(host, name, secretless(url), "this is no address of a web server", fix)]
    plain = f"{part.scheme}://{part.netloc.rpartition('@')[2]}{part.path}".rstrip("/")
    if "@" in part.netloc or part.query or part.fragment:
        key = "username and password" if kind == "http" else "token"
        why = "an address ends up in logs and manifests, so it cannot hold a password, a token or a query"
        return [problem(host, name, secretless(url), why, f"write {plain}, and what is secret as `{key}` of this item")]
    owner = public_host(part.hostname or "")
    actual = PUBLIC.get(owner, kind)
    found = []
    if actual != kind:
        why = f"{owner} is a source of another type"
        found.append(problem(host, f"{place}.type", kind, why, f"set type: {actual}"))
    page = PAGE.search(part.path + "/")
    if actual == kind and part.path.strip("/") and (owner or (kind == "hub" and page)):
        why = "this is the page of a model or a file; the source is the whole hub"
        top = f"{part.scheme}://{part.netloc}"
        fix = f"write {top}" if owner or not page else f"leave out the model's name and what follows: {top}/…"
        found.append(problem(host, name, url, why, fix + "; which models are wanted follows from vllm_instances"))
    return found + clear_text_problems(host, place, item, part.scheme, part.hostname or "")


def clear_text_problems(host: str, place: str, item: dict[str, Any], scheme: str, name: str) -> Problems:
    """Secrets that would pass over a network unencrypted."""
    secret = next((key for key in ("token", "password") if item.get(key)), None)
    if scheme != "http" or not secret:
        return []
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        why = f"everybody on the way can read the {secret}, because the address begins with http"
        level = "error" if public_host(name) else "warning"
    else:
        why = f"everybody on the way through the internet can read the {secret}"
        level = "error"
        if not address.is_global:
            return []
    return [problem(host, f"{place}.url", item["url"], why, "write https://, or leave the secret out", level)]


def bucket_problems(host: str, place: str, item: dict[str, Any]) -> Problems:
    """A bucket's address, and where its server is."""
    url, found = str(item["url"]), []
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[^?#\s]*)?", url):
        why = "this is no bucket"
        fix = "write s3://bucket/prefix, and the server's address as `endpoint`"
        found.append(problem(host, f"{place}.url", secretless(url), why, fix))
    endpoint = item.get("endpoint")
    if not endpoint and not item.get("region"):
        why = "it is not known on which server the bucket is"
        fix = "set region (Amazon), or endpoint: https://minio.example:9000"
        found.append(problem(host, f"{place}.endpoint", None, why, fix))
    elif isinstance(endpoint, str) and re.match(r"https?://([^/]*@|[^/]+/.)", endpoint):
        # Of what is no address at all the specs complain.
        why = "this is more than the address of a server"
        fix = "leave out path, user and password; the bucket stands in `url`"
        found.append(problem(host, f"{place}.endpoint", secretless(endpoint), why, fix))
    return found


def folder_problems(host: str, place: str, path: Any) -> Problems:
    """The path of a folder."""
    if not isinstance(path, str) or not path or path.startswith("/"):
        return []
    why = "it is not clear below which folder of the host a relative path is meant"
    fix = "write /mnt/… or another whole path"
    if path.startswith("file://"):
        why, fix = "this is a path and no address", f"write {path.removeprefix('file://')}"
    return [problem(host, f"{place}.path", path, why, fix)]


def public_host(name: str) -> str:
    """`www.modelscope.cn` → `modelscope.cn`; nothing where it is none of them."""
    return next((known for known in PUBLIC if name == known or name.endswith("." + known)), "")


def secretless(url: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"[?#].*", "?…", re.sub(r"//[^/@\s]+@", "//…@", url))


def emptiness_problems(host: str, variables: Any, groups: dict[str, list[str]]) -> Problems:
    """A host that needs weights and has nowhere to take them from."""
    sources = variables.get("hf_mirror_sources")
    serving, engine = host in groups.get("mirrors", []), host in groups.get("engines", [])
    if sources != [] or "bundle" in variables or not (serving or engine):
        return []
    if groups.get("mirrors") and not serving and variables.get("hf_mirror_own", True) not in (False, "false", "no"):
        return []
    if not serving and not needs_weights(variables):
        return []
    why = "there is nowhere to take weights from"
    fix = "leave it out for Hugging Face, name a source, or put a host that has one into the group `mirrors`"
    if serving:
        fix = "leave it out for Hugging Face, or name a source; a mirror does not use itself"
    return [problem(host, "hf_mirror_sources", [], why, fix)]


def code_problems(host: str, variables: Any) -> Problems:
    """A model whose code the engine runs, and no word of the hub's which code that is; staging would refuse it."""
    sources = variables.get("hf_mirror_sources")
    if not isinstance(sources, (list, tuple)) or any(
        isinstance(item, dict) and model_manifest.is_hub(item) for item in sources
    ):
        return []
    try:
        models = model_store.models(model_store.of_host(variables), "")
    except (AttributeError, KeyError, TypeError, ValueError):
        return []  # vllm_validation says what is wrong with them.
    found = []
    for model in models:
        if model["code"] and not model["files_digest"] and COMMIT.fullmatch(str(model["revision"])):
            why = (
                f"the engine runs Python code of {model['id']} (trust_remote_code), no source.files_digest of the "
                f"catalogue says which code that is, and no source here is the hub itself ({model_manifest.HUB})"
            )
            found.append(problem(host, "hf_mirror_sources", None, why, model_manifest.how_to_bind(model["id"])))
    return found


def needs_weights(variables: Any) -> bool:
    """Whether an engine's models come from somewhere."""
    try:
        entries = catalog.entries(variables.get("vllm_models") or [])
        models = [vllm_flags.resolve(item, entries) for item in variables.get("vllm_instances") or []]
        return any("repo" in model["source"] for model in models)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # vllm_validation says what is wrong with them.


# --- our own mirrors ---------------------------------------------------------------------------------------------


def server_problems(host: str, variables: Any) -> Problems:
    """Address, port and who may ask."""
    found = []
    bind = variables.get("hf_mirror_bind_address")
    if isinstance(bind, str) and bind:
        name, address = "hf_mirror_bind_address", as_address(bind)
        if address is None:
            why, fix = "this is no address", "write the host's own address in the private network, such as 10.0.0.5"
            found.append(problem(host, name, bind, why, fix))
        elif address.is_unspecified:
            why = "every network of the host would reach the mirror, and the others would not know which address to ask"
            found.append(problem(host, name, bind, why, "write the host's own address in the private network"))
        elif address.is_global:
            why = "this is an address of the internet; hf_mirror_allowed_addresses alone would keep strangers out"
            found.append(problem(host, name, bind, why, "use an address of a private network", "warning"))
    port = variables.get("hf_mirror_port", PORT)
    if str(port).isdigit() and not 1024 <= int(port) <= 65535:
        why = "the server runs without rights, and has ports from 1024 to 65535 only"
        found.append(problem(host, "hf_mirror_port", port, why, f"set it to {PORT} or another free port"))
    allowed = variables.get("hf_mirror_allowed_addresses")
    for index, item in enumerate(allowed if isinstance(allowed, (list, tuple)) else []):
        if item == "auto" or not isinstance(item, str):
            continue
        name = f"hf_mirror_allowed_addresses[{index}]"
        try:
            network = ipaddress.ip_network(item, strict=False)
        except ValueError:
            why, fix = "this is neither an address nor a network", "write 10.0.0.7, 10.0.0.0/24 or auto"
            found.append(problem(host, name, item, why, fix))
            continue
        if network.prefixlen == 0:
            why = "everybody who reaches the port may take the weights"
            found.append(problem(host, name, item, why, "name the private network", "warning"))
    return found


def place_problems(host: str, variables: Any, groups: dict[str, list[str]]) -> Problems:
    """A mirror that others cannot reach, or whose port something else of ours takes."""
    found = []
    bind = str(variables.get("hf_mirror_bind_address") or "")
    others = [name for name in groups.get("engines", []) if name not in groups.get("mirrors", [])]
    if others and not bind:
        why = f"{', '.join(others)} shall use this mirror, and it would listen on loopback"
        fix = "set it to this host's own address in the private network, such as 10.0.0.5"
        found.append(problem(host, "hf_mirror_bind_address", None, why, fix))
    elif others and is_loopback(bind):
        why = f"only this host itself could reach it, and {', '.join(others)} shall use it"
        fix = "set it to this host's own address in the private network, such as 10.0.0.5"
        found.append(problem(host, "hf_mirror_bind_address", bind, why, fix))
    port = variables.get("hf_mirror_port", PORT)
    for name, taken in taken_ports(host, variables, groups):
        if taken == str(port):
            why = f"{name} of this host is the same port"
            found.append(problem(host, "hf_mirror_port", port, why, "set one of the two to a free port"))
    return found


def taken_ports(host: str, variables: Any, groups: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(variable, port) of what else listens on this host."""
    found = []
    instances = variables.get("vllm_instances")
    if host in groups.get("engines", []) and isinstance(instances, (list, tuple)):
        for index, item in enumerate(instances):
            if isinstance(item, dict):
                found.append((f"vllm_instances[{index}].port", str(item.get("port", 8000))))
    if host in groups.get("gateways", []):
        found.append(("litellm_port", str(variables.get("litellm_port", 4000))))
    return found


def as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, or None where it is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def peers(groups: dict[str, list[str]], hostvars: Any, host: str) -> list[dict[str, Any]]:
    """The inventory's mirrors as sources of `host`: none for a mirror itself, which would wait for its like.

    Each host begins with another one, so that several share the load. `direct`: not by way of a proxy.
    """
    mirrors = groups.get("mirrors") or []
    if host in mirrors:
        return []
    found = []
    for name in mirrors:
        variables = hostvars[name]
        bind = str(variables.get("hf_mirror_bind_address") or "")
        if not bind or is_loopback(bind) or variables.get("hf_mirror_state") == "absent":
            continue
        address = f"[{bind}]" if ":" in bind else bind
        port = variables.get("hf_mirror_port") or PORT
        found.append({"type": "hub", "url": f"http://{address}:{port}", "direct": True})
    first = sorted(groups.get("all") or [host]).index(host) % len(found) if len(found) > 1 else 0
    return found[first:] + found[:first]
