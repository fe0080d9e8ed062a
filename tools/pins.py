#!/usr/bin/env python3
"""Fill what stands as `unverified` from the network, and show the difference. `./run pins` calls this.

Asked are the hub (revisions, digests over their files, sizes, config.json and licences of the models in
catalog/models/), GitHub (digests of
the release files in versions.yml) and registries (digests of its container images). Nothing is written without
--write, and comments stay where they are.

A revision or digest that is pinned stays; a newer one is named, and --update takes it. What an entry says and the hub
says otherwise is named too. Exit codes: 0 all was answered, 1 something was not, 2 wrong arguments, 3 a host
is out of reach.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import http.client
import importlib
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import pins_files

ROOT = Path(__file__).resolve().parents[1]
HUB = pins_files.manifest.HUB
#: Whose word about files a digest is made of: the hub's own, and no mirror's.
WITNESS = HUB
GITHUB = "https://api.github.com"
#: Names of registries in the names of images → where their API answers, where that is another place.
REGISTRIES = {"docker.io": "https://registry-1.docker.io"}
#: An image for several architectures is an index; its digest holds for all of them.
MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "docker.distribution.manifest.list.v2",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.v2",
    )
)
DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
RELEASE_FILE = re.compile(r"^https://github\.com/([^/]+/[^/]+)/releases/download/([^/]+)/([^/]+)$")
#: How the hub writes licences that SPDX writes otherwise.
LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
#: What the catalogue keeps of a config.json.
CONFIG_KEYS = re.findall(
    r"\w+",
    "architectures model_type num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads "
    "head_dim vocab_size max_position_embeddings rope_theta tie_word_embeddings torch_dtype dtype sliding_window "
    "use_sliding_window sliding_window_pattern layer_types full_attention_interval kv_lora_rank q_lora_rank "
    "qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim linear_num_key_heads linear_num_value_heads "
    "linear_key_head_dim linear_value_head_dim linear_conv_kernel_dim num_experts n_routed_experts num_local_experts "
    "num_experts_per_tok moe_intermediate_size n_shared_experts first_k_dense_replace text_config quantization_config",
)
QUANTIZATION_KEYS = re.findall(
    r"\w+", "quant_method bits group_size zero_point version activation_scheme fmt weight_block_size format"
)
#: A larger answer than this is none of what is asked for here.
LARGEST = 64 * 1024 * 1024


class RefusedError(Exception):
    """The host answered, but not with what was asked for: the reason, and of an HTTP error its status and header."""

    def __init__(self, reason: str, status: int = 0, header: Message | None = None) -> None:
        super().__init__(reason)
        self.status, self.header = status, header


class UnreachableError(Exception):
    """The host did not answer at all."""


class Host:
    """One host's API. What did not answer once is not asked again."""

    def __init__(self, base: str, token: str = "", timeout: float = 20) -> None:
        self.base, self.token, self.timeout = base.rstrip("/"), token, timeout
        self.silent = ""

    def answer(self, path: str, accept: str = "application/json", method: str = "GET") -> tuple[Message, bytes]:
        """Header and body of what lies at a path."""
        if self.silent:
            raise UnreachableError(self.silent)
        request = urllib.request.Request(self.base + path, headers={"Accept": accept}, method=method)
        if self.token:
            # Not to be sent on to a host that it redirects to.
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.headers, answer.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(refusal(error.code), error.code, error.headers) from error
        except (OSError, http.client.HTTPException) as error:
            self.silent = str(getattr(error, "reason", "") or error) or type(error).__name__
            raise UnreachableError(self.silent) from error

    def json(self, path: str) -> dict[str, Any]:
        """The JSON object at a path."""
        _header, body = self.answer(path)
        try:
            data = json.loads(body)
        except ValueError as error:
            raise RefusedError(
                "answered with something that is no JSON; is a login page or proxy in between?"
            ) from error
        if not isinstance(data, dict):
            raise RefusedError("answered with JSON of another form than its documentation says")
        return data


class Registry(Host):
    """A container registry (OCI distribution, HTTP API v2), asked without an account."""

    def digest(self, name: str, tag: str) -> str:
        """The digest that a tag leads to; of an image for several architectures that of its index."""
        path = f"/v2/{quote(name)}/manifests/{quote(tag)}"
        try:
            # HEAD, because Docker Hub counts GET as a pull.
            try:
                header, _body = self.answer(path, MANIFESTS, "HEAD")
            except RefusedError as error:
                if error.status != 401 or not error.header:
                    raise
                self.token = self.admission(error.header.get("WWW-Authenticate", ""))
                header, _body = self.answer(path, MANIFESTS, "HEAD")
        except RefusedError as error:
            reasons = {401: "private, or misspelt", 403: "private, or misspelt", 404: "there is no such image or tag"}
            if error.status not in reasons:
                raise
            raise RefusedError(f"HTTP {error.status}: {reasons[error.status]}") from error
        found = str(header.get("Docker-Content-Digest", ""))
        if not DIGEST.match(found):
            raise RefusedError("the registry states no SHA-256 digest for this tag")
        return found

    def admission(self, challenge: str) -> str:
        """The token that everybody gets from where a registry sends us for it."""
        asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if not challenge.lower().startswith("bearer ") or "realm" not in asked:
            raise RefusedError("the registry wants a login that is none of the usual form")
        query = urlencode({key: asked[key] for key in ("service", "scope") if key in asked})
        office = Host(asked["realm"], timeout=self.timeout)
        try:
            given = office.json(f"?{query}")
        except UnreachableError:
            self.silent = office.silent
            raise
        return str(given.get("token") or given.get("access_token") or "")


def refusal(code: int) -> str:
    """What an HTTP status means to the person who runs this."""
    if code in (401, 403):
        return (
            f"HTTP {code}: gated, private or misspelt; accept its licence on the hub and set HF_TOKEN, "
            "or correct source.repo"
        )
    if code == 404:
        return "HTTP 404: there is no such repository, revision or file"
    if code == 429:
        return "HTTP 429: too many requests; try again later"
    return f"HTTP {code}"


@functools.cache
def catalog() -> Any:
    """plugins/module_utils/catalog.py, which needs no Ansible."""
    sys.path.insert(0, str(ROOT / ".collections"))
    return importlib.import_module("ansible_collections.modelhost.serving.plugins.module_utils.catalog")


# --- editing YAML in place ---------------------------------------------------------------------------------------


class Document:
    """A YAML file whose values are changed where they stand, so that all else stays as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.old = path.read_text(encoding="utf-8")
        self.text = self.old
        self.data = yaml.safe_load(self.text)

    def node(self, place: list[Any]) -> yaml.Node | None:
        """The node at a place, or None."""
        found = yaml.compose(self.text)
        for part in place:
            if isinstance(found, yaml.SequenceNode) and isinstance(part, int) and part < len(found.value):
                found = found.value[part]
            elif isinstance(found, yaml.MappingNode):
                found = next((value for key, value in found.value if key.value == part), None)
            else:
                return None
        return found

    def set(self, place: list[Any], value: Any) -> None:
        """Replace the value at a place, or add it near the top of its mapping."""
        node = self.node(place)
        if node is not None:
            self.replace(node, value)
        else:
            *above, key = place
            holder = self.node(above)
            if not isinstance(holder, yaml.MappingNode) or not holder.value:
                self.set(above, {key: value})
                return
            self.insert(holder, key, value)
        holder_data: Any = self.data
        for part in place[:-1]:
            if isinstance(holder_data, dict) and not isinstance(holder_data.get(part), (dict, list)):
                holder_data[part] = {}
            holder_data = holder_data[part]
        holder_data[place[-1]] = value
        assert yaml.safe_load(self.text) == self.data, f"{self.path}: {place} could not be edited"

    def replace(self, node: yaml.Node, value: Any) -> None:
        """Put a value in the place of a node."""
        start, end = node.start_mark.index, node.end_mark.index
        tail = "\n" if self.text[start:end].endswith("\n") else ""
        self.text = self.text[:start] + flow(value) + tail + self.text[end:]

    def insert(self, holder: yaml.MappingNode, key: str, value: Any) -> None:
        """Add a key to a mapping that has some already."""
        first_key, first_value = holder.value[0]
        if holder.flow_style:
            at, lines = first_value.end_mark.index, flow(value)
            margin = "\n" + " " * (holder.start_mark.column + 1)
            if isinstance(value, dict) and len(lines) > 80:
                # A line of its own for each part, at the mapping's end.
                at, key = holder.end_mark.index - 1, margin[1:] + key
                lines = "{" + f",{margin} ".join(f"{name}: {flow(part)}" for name, part in value.items()) + "}"
                self.text = f"{self.text[:at]},\n{key}: {lines}{self.text[at:]}"
            else:
                self.text = f"{self.text[:at]}, {key}: {lines}{self.text[at:]}"
            return
        margin = " " * first_key.start_mark.column
        lines = f"{key}: {flow(value)}\n"
        if isinstance(value, dict) and len(lines) > 80:
            # Digests would stand in one line that is too long for any linter.
            style = False if any(isinstance(part, str) and len(part) > 60 for part in value.values()) else None
            body = yaml.safe_dump(value, default_flow_style=style, sort_keys=False, width=110, allow_unicode=True)
            lines = f"{key}:\n" + "".join(f"{margin}  {line}\n" for line in body.splitlines())
        if first_value.end_mark.line == first_key.start_mark.line:
            # Comments above a key stay with it, so the new one comes after the line of the first.
            at = self.text.find("\n", first_value.end_mark.index) + 1
            if not at:
                self.text, at = self.text + "\n", len(self.text) + 1
            self.text = self.text[:at] + margin + lines + self.text[at:]
        else:
            at = first_key.start_mark.index
            self.text = self.text[:at] + lines + margin + self.text[at:]

    def difference(self, root: Path) -> str:
        """A unified diff of what changed."""
        name = str(self.path.relative_to(root))
        return "".join(
            difflib.unified_diff(self.old.splitlines(True), self.text.splitlines(True), f"a/{name}", f"b/{name}")
        )

    def write(self) -> None:
        """All of it or nothing."""
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(self.text, encoding="utf-8")
        os.replace(part, self.path)


def flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


# --- the hub -----------------------------------------------------------------------------------------------------


def kept(config: dict[str, Any]) -> dict[str, Any]:
    """What the catalogue keeps of a config.json."""
    found = {key: config[key] for key in CONFIG_KEYS if key in config}
    if isinstance(found.get("text_config"), dict):
        found["text_config"] = kept(found["text_config"])
    stored = found.get("quantization_config")
    if isinstance(stored, dict):
        found["quantization_config"] = {key: stored[key] for key in QUANTIZATION_KEYS if key in stored}
    return found


def commit_of(answer: dict[str, Any]) -> str:
    """The commit that an answer is about."""
    commit = answer.get("sha")
    if not isinstance(commit, str) or not COMMIT.match(commit):
        raise RefusedError("answered without a commit")
    return commit


def weights_of(answer: dict[str, Any]) -> float | None:
    """GiB of the safetensors files, or None where the answer has no sizes."""
    files = answer.get("siblings")
    sizes = [
        item.get("size")
        for item in (files if isinstance(files, list) else [])
        if isinstance(item, dict) and str(item.get("rfilename")).endswith(".safetensors")
    ]
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return None
    return round(sum(size for size in sizes if size) / 2**30, 2)


def licence_of(answer: dict[str, Any]) -> str | None:
    """The licence as its SPDX identifier, or under the name that the card gives it."""
    card = answer.get("cardData")
    if not isinstance(card, dict):
        return None
    name = card.get("license")
    if name == "other":
        name = card.get("license_name")
    return LICENCES.get(name, name) if isinstance(name, str) else None


def differences(mine: Any, theirs: Any, path: str = "config") -> Iterator[str]:
    """Where the catalogue's part of a config.json says something else than the file itself."""
    for key, value in mine.items():
        if isinstance(value, dict) and isinstance(theirs.get(key), dict):
            yield from differences(value, theirs[key], f"{path}.{key}")
        elif key in theirs and theirs[key] != value:
            yield f"{path}.{key} is {value!r} here and {theirs[key]!r} on the hub"


def binding_changes(
    hub: Host, entry: dict[str, Any], answer: dict[str, Any], revision: str
) -> tuple[dict[str, Any], list[str]]:
    """What binds a revision to its files: source.files_digest, and what there is to say about it."""
    source, repo = entry["source"], entry["source"]["repo"]
    pinned = source.get("files_digest") if source.get("revision") == revision else None
    stale = bool(source.get("files_digest")) and not pinned
    model = {**catalog().selection(entry), "extra_files": source.get("extra_files") or []}
    try:
        files = pins_files.listed(answer, model)
        found = pins_files.manifest.digest_of(files, False)
        if pinned and pinned["listed"] == found:
            return {}, []
        if pinned:
            raise RefusedError(
                f"its files at {revision} are others than source.files_digest binds ({found} on the hub). A commit "
                "never changes: find out who changed what before you take that key out and run this again"
            )
        if hub.base != WITNESS:
            raise pins_files.UnusableError(f"only {WITNESS} itself is asked for it, and HF_ENDPOINT names {hub.base}")
        made = {"listed": found, "content": pins_files.content(hub.answer, repo, revision, files)}
    except pins_files.UnusableError as error:
        if stale:
            raise RefusedError(
                f"its source.files_digest is of another revision, and there is no new one: {error}"
            ) from error
        return {}, [f"source.files_digest cannot be made: {error}"]
    return {"source.files_digest": made}, []


def history_notes(hub: Host, repo: str, revision: str) -> list[str]:
    """Whether main leads to a revision that is not its newest; RefusedError where it does not."""
    try:
        if pins_files.from_main(hub.answer, repo, revision):
            return []
    except (RefusedError, pins_files.UnusableError) as error:
        return [f"whether main leads to {revision} could not be seen: {error}"]
    raise RefusedError(
        f"main does not lead to the commit {revision}: it may be of anybody's pull request, or main was written anew. "
        "Look at it, and take the newest with --update"
    )


def model_changes(
    hub: Host, entry: dict[str, Any], own: dict[str, Any], update: bool
) -> tuple[dict[str, Any], list[str]]:
    """What the hub adds to an entry, and what there is to say about it. own: what its own node of the file holds."""
    repo = entry["source"]["repo"]
    pinned = entry["source"].get("revision")
    wanted: dict[str, Any] = {}
    notes: list[str] = []
    answer = hub.json(f"/api/models/{quote(repo)}?blobs=true")
    newest = commit_of(answer)
    revision = pinned
    if pinned in (None, "unverified") or (update and pinned != newest):
        wanted["source.revision"] = revision = newest
        wanted["sources.revision"] = f"{HUB}/{repo}/commit/{newest}"
        if "revision" in (own.get("checked") or {}):
            wanted["checked.revision"] = "Filled by `./run pins` from the hub's API."
    elif pinned != newest:
        notes.append(f"main has moved on to {newest}; the pin stays at {pinned} (--update takes the new one)")
        answer = hub.json(f"/api/models/{quote(repo)}/revision/{pinned}?blobs=true")
        if commit_of(answer) != pinned:
            raise RefusedError(f"answered about another commit than {pinned}")
        notes += history_notes(hub, repo, pinned)
    weights = weights_of(answer)
    if weights is not None:
        if not own.get("weights_gib"):
            wanted["weights_gib"] = weights
        elif abs(weights - own["weights_gib"]) > 0.01 * weights:
            notes.append(f"weights_gib is {own['weights_gib']} here and {weights} on the hub")
    licence = licence_of(answer)
    if licence and not entry.get("licence"):
        wanted["licence"] = licence
    config = kept(hub.json(f"/{quote(repo)}/resolve/{revision}/config.json"))
    if not entry.get("config"):
        wanted["config"] = config
    else:
        notes += differences(entry["config"], config)
    bound, said = binding_changes(hub, entry, answer, str(revision))
    return {**wanted, **bound}, notes + said


def fill_models(root: Path, hub: Host, ids: set[str], update: bool, say: Any) -> tuple[list[Document], int, int]:
    """Ask the hub about the catalogue; documents with their changes, entries asked, and how many were not answered."""
    documents, asked, failed = [], 0, 0
    for path in sorted((root / "catalog" / "models").glob("*.yml")):
        document = Document(path)
        documents.append(document)
        data = document.data
        if not isinstance(data, dict):
            continue
        flat = catalog().expand(data)
        for at, entry in enumerate(flat):
            place: list[Any] = ["variants", at - 1] if at else []
            if "repo" not in (entry.get("source") or {}) or (ids and entry["id"] not in ids and data["id"] not in ids):
                continue
            asked += 1
            own = document.data["variants"][at - 1] if at else document.data
            try:
                wanted, notes = model_changes(hub, entry, own, update)
            except UnreachableError:
                failed += 1
                continue
            except RefusedError as error:
                failed += 1
                say(f"{entry['id']} ({entry['source']['repo']}): {error}")
                continue
            for note in notes:
                say(f"{entry['id']}: {note}")
            for key, value in wanted.items():
                document.set([*place, *key.split(".")], value)
        problems = catalog().schema_problems(document.data) if document.text != document.old else []
        for where, value, why, _fix in problems:
            say(f"{data['id']}: {where} = {value!r} as the hub gives it: {why}; this file is left alone")
        if problems:
            failed += 1
            document.text = document.old
    return documents, asked, failed


# --- versions.yml ------------------------------------------------------------------------------------------------


def unverified(data: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places in versions.yml that stand as `unverified`."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from unverified(value, (*place, key))
    elif data == "unverified":
        yield place


def asset_digest(github: Host, url: str) -> str:
    """The SHA-256 that GitHub states for a file of a release."""
    match = RELEASE_FILE.match(url)
    if not match:
        raise RefusedError(f"{url} is no file of a release on GitHub; fill it in by hand, with its source")
    repository, tag, name = match.groups()
    for asset in github.json(f"/repos/{repository}/releases/tags/{tag}").get("assets") or []:
        if isinstance(asset, dict) and asset.get("name") == unquote(name):
            kind, _colon, digest = str(asset.get("digest") or "").partition(":")
            if kind == "sha256" and re.fullmatch(r"[0-9a-f]{64}", digest):
                return digest
            raise RefusedError("GitHub states no SHA-256 for this file")
    raise RefusedError(f"the release {tag} of {repository} has no file of this name")


def images(data: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places in versions.yml where the digest of a container image stands."""
    if isinstance(data, dict):
        if {"repository", "tag", "digest"} <= data.keys():
            yield (*place, "digest")
        for key, value in data.items():
            yield from images(value, (*place, key))


class Registries:
    """Registries by their names in the names of images."""

    def __init__(self, mirrors: dict[str, str]) -> None:
        self.bases = {**REGISTRIES, **mirrors}
        self.known: dict[str, Registry] = {}

    def digest(self, repository: str, tag: str) -> str:
        """The digest of an image now."""
        host, _slash, name = repository.partition("/")
        if host not in self.known:
            self.known[host] = Registry(self.bases.get(host, f"https://{host}"))
        registry = self.known[host]
        # A token is for one image.
        registry.token = ""
        return registry.digest(name, tag)


def fill_versions(
    root: Path, github: Host, registries: Registries, ids: set[str], update: bool, say: Any
) -> tuple[Document, int, int]:
    """Ask GitHub and registries about the checksums of versions.yml."""
    document = Document(root / "versions.yml")
    asked = failed = 0
    for place in dict.fromkeys((*unverified(document.data), *images(document.data))):
        name = ".".join(place)
        if ids and name not in ids:
            continue
        asked += 1
        holder: Any = document.data
        for part in place[:-1]:
            holder = holder[part]
        try:
            if place[-1] == "digest" and "repository" in holder:
                found, pinned = registries.digest(str(holder["repository"]), str(holder["tag"])), holder["digest"]
                if pinned not in ("unverified", found) and not update:
                    say(
                        f"{name}: the tag {holder['tag']} leads to {found} now; the pin stays at {pinned} (--update "
                        "takes the new one)"
                    )
                elif pinned != found:
                    document.set(list(place), found)
            elif place[-1] == "sha256" and "url" in holder:
                document.set(list(place), asset_digest(github, str(holder["url"])))
            else:
                raise RefusedError("nothing here knows how to fill this; do it by hand, with its source")
        except UnreachableError:
            failed += 1
        except RefusedError as error:
            failed += 1
            say(f"versions.yml {name}: {error}")
    return document, asked, failed


def known_ids(root: Path) -> set[str]:
    """All that can be named as an argument."""
    versions = yaml.safe_load((root / "versions.yml").read_text(encoding="utf-8"))
    found = {".".join(place) for place in (*unverified(versions), *images(versions))}
    for path in (root / "catalog" / "models").glob("*.yml"):
        found |= {entry["id"] for entry in catalog().expand(yaml.safe_load(path.read_text(encoding="utf-8")))}
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="./run pins", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="ids of the catalogue, or places in versions.yml; all")
    parser.add_argument("--write", action="store_true", help="write what is shown")
    parser.add_argument("--update", action="store_true", help="take newer revisions in the place of pinned ones")
    parser.add_argument(
        "--registry-mirror",
        action="append",
        default=os.environ.get("REGISTRY_MIRRORS", "").split(),
        metavar="REGISTRY=URL",
        help="ask this mirror, such as docker.io=https://docker.m.daocloud.io (also: REGISTRY_MIRRORS, with blanks)",
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    root, ids = options.root.resolve(), set(options.ids)
    names = known_ids(root)
    for name in sorted(ids - names):
        near = difflib.get_close_matches(name, sorted(names), n=1)
        print(f"pins: there is no `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""), file=sys.stderr)
    if ids - names:
        return 2
    mirrors = dict(item.partition("=")[::2] for item in options.registry_mirror)
    wrong = [item for item in options.registry_mirror if not re.match(r"[\w.:-]+=https?://", item)]
    if wrong:
        print(f"pins: --registry-mirror {wrong[0]}: write REGISTRY=URL, as docker.io=https://…", file=sys.stderr)
        return 2

    def say(line: str) -> None:
        print(f"  {line}")

    hub = Host(os.environ.get("HF_ENDPOINT") or HUB, os.environ.get("HF_TOKEN", ""))
    github = Host(os.environ.get("GITHUB_API_URL") or GITHUB, os.environ.get("GITHUB_TOKEN", ""))
    documents, asked, failed = fill_models(root, hub, ids, options.update, say)
    registries = Registries(mirrors)
    versions, more_asked, more_failed = fill_versions(root, github, registries, ids, options.update, say)
    changed = [document for document in (*documents, versions) if document.text != document.old]
    for document in changed:
        print(document.difference(root), end="")
        if options.write:
            document.write()
    asked, failed = asked + more_asked, failed + more_failed
    files = "1 file" if len(changed) == 1 else f"{len(changed)} files"
    done = (
        "written" if options.write else "shown; --write writes them" if len(changed) > 1 else "shown; --write writes it"
    )
    print(
        f"{asked} asked, {failed} without an answer of use. "
        + (f"{files} {done}." if changed else "Nothing to change.")
    )
    silent = [host for host in (hub, github, *registries.known.values()) if host.silent]
    for host in silent:
        print(
            f"pins: {urlsplit(host.base).netloc} cannot be reached from here ({host.silent}). Run this on a connected "
            "machine and commit what it writes; HF_ENDPOINT names a mirror of the hub, --registry-mirror one of a "
            "registry, https_proxy a proxy.",
            file=sys.stderr,
        )
    return 3 if silent else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
