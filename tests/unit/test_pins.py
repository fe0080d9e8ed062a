"""tools/pins.py against a hub, a GitHub and a container registry of our own, over real HTTP."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("pins", ROOT / "tools/pins.py")
assert SPEC
assert SPEC.loader
pins = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pins)

OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40
DIGEST = "d" * 64
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "bos_token_id": 1,
    "quantization_config": {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["x"]},
}

MODEL = (
    """---
# The head of the file.
id: model   # its id
title: A model
source:
  repo: org/Model
  # Not found anywhere yet.
  revision: unverified
capabilities: {tool_calling: native}

# What the hub does not know.
flags:
  enable_auto_tool_choice: true
sources:
  # First of all: the licence.
  licence: https://example.org/licence
checked:
  revision: >-
    No public source that names one
    was found.
  model: not run
variants:
  - id: model-awq
    # AWQ
    source: {repo: org/Model-AWQ, revision: unverified}  # theirs
    sources: {revision: null}
    config: {num_hidden_layers: 2}
  - {id: model-pinned, source: {repo: org/Pinned, revision: %s}, weights_gib: 2.0}
"""
    % OLD
)

VERSIONS = """---
# Every pin.
vllm:
  cpu:
    official:
      file: x+cpu.whl
      url: https://github.com/vllm-project/vllm/releases/download/v1.2.3/x+cpu.whl
      # Not filled yet.
      sha256: unverified
"""


IMAGE = """---
# Every pin.
engine:
  # renovate: datasource=docker depName=org/engine
  image:
    repository: docker.io/org/engine
    tag: v1.2.3
    digest: unverified  # not filled yet
    source: somewhere
gateway:
  image: {repository: quay.io/org/gateway, tag: "4.5", digest: sha256:%s, source: elsewhere}
""" % ("e" * 64)


class Net:
    """What the server answers, by path, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.url = ""
        # Of the registry: digests by path, the header that sends clients for a token, and what they accept.
        self.digests: dict[str, str] = {}
        #: Path → what follows it, as the hub's pages say.
        self.links: dict[str, str] = {}
        self.challenge = ""
        self.accepted: list[str] = []

    def give(self, path: str, value: Any, status: int = 200) -> None:
        """Answer a path with JSON, or with bytes as they are."""
        self.answers[path] = (status, value if isinstance(value, bytes) else json.dumps(value).encode())

    def model(self, repo: str, commit: str, size: int | None = 3 * 2**30, **card: Any) -> None:
        """A model of the hub, as its API and its files."""
        body = json.dumps(CONFIG).encode()
        blob_id = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        files: list[dict[str, Any]] = [{"rfilename": "config.json", "size": len(body), "blobId": blob_id}]
        large = {"blobId": "1" * 40, "lfs": {"sha256": "2" * 64, "size": size, "pointerSize": 130}}
        files += [
            {"rfilename": f"model-{at}.safetensors", **large, **({"size": size // 2} if size else {})} for at in (1, 2)
        ]
        answer = {"id": repo, "sha": commit, "siblings": files, "cardData": card or {"license": "apache-2.0"}}
        self.give(f"/api/models/{repo}?blobs=true", answer)
        self.give(f"/api/models/{repo}/revision/{commit}?blobs=true", answer)
        self.give(f"/{repo}/resolve/{commit}/config.json", CONFIG)
        self.history(repo, commit)

    def history(self, repo: str, *commits: str) -> None:
        """What leads to main of a model."""
        self.give(f"/api/models/{repo}/commits/main", [{"id": commit, "title": "x"} for commit in commits])

    def image(self, name: str, tag: str, digest: str) -> None:
        """An image of the registry, which wants a token as Docker Hub does."""
        self.digests[f"/v2/{name}/manifests/{tag}"] = digest
        self.challenge = f'Bearer realm="{self.url}/token",service="registry.docker.io",scope="repository:{name}:pull"'
        self.give(
            f"/token?service=registry.docker.io&scope=repository%3A{name.replace('/', '%2F')}%3Apull", {"token": name}
        )

    def release(self, digest: str | None = f"sha256:{DIGEST}") -> None:
        """The release that versions.yml names."""
        asset = {"name": "x+cpu.whl", **({"digest": digest} if digest else {})}
        self.give("/repos/vllm-project/vllm/releases/tags/v1.2.3", {"assets": [{"name": "y.whl"}, asset]})


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """A server on this machine that is hub and GitHub at once."""
    state = Net()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Authorization", "")))
            status, body = state.answers.get(self.path, (404, b'{"error": "Not Found"}'))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", body.decode())
                body = b""
            if self.path in state.links:
                self.send_header("Link", f'<{state.url}{state.links[self.path]}>; rel="next"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            token = self.headers.get("Authorization", "")
            state.asked.append((self.path, token))
            state.accepted.append(self.headers.get("Accept", ""))
            name = self.path.removeprefix("/v2/").partition("/manifests/")[0]
            known = self.path in state.digests
            admitted = not state.challenge or token == f"Bearer {name}"
            self.send_response(401 if not admitted else 200 if known else 404)
            if not admitted:
                self.send_header("WWW-Authenticate", state.challenge)
            elif known and state.digests[self.path]:
                self.send_header("Docker-Content-Digest", state.digests[self.path])
            self.send_header("Content-Length", "1234")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class calls it so)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    for name in ("HF_ENDPOINT", "GITHUB_API_URL"):
        monkeypatch.setenv(name, state.url)
    registries = ("docker.io", "ghcr.io", "quay.io")
    monkeypatch.setenv("REGISTRY_MIRRORS", " ".join(f"{name}={state.url}" for name in registries))
    monkeypatch.setattr(pins, "WITNESS", state.url)
    for name in ("HF_TOKEN", "GITHUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small catalogue and versions.yml."""
    (tmp_path / "catalog/models").mkdir(parents=True)
    (tmp_path / "catalog/models/model.yml").write_text(MODEL)
    (tmp_path / "versions.yml").write_text(VERSIONS)
    return tmp_path


def everything(net: Net) -> None:
    """All that the small catalogue asks for."""
    net.model("org/Model", NEW)
    net.model("org/Model-AWQ", OTHER, size=2**30)
    net.model("org/Pinned", OLD, size=2 * 2**30)
    net.release()


def digests(size: int) -> dict[str, str]:
    """Of a model of this server with two shards of this size, as the description of the form says."""
    body = json.dumps(CONFIG).encode()
    names = {
        "listed": "git:" + hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest(),
        "content": "sha256:" + hashlib.sha256(body).hexdigest(),
    }
    shards = [f"sha256:{'2' * 64} {size} model-{at}.safetensors\n" for at in (1, 2)]
    return {
        kind: "sha256:"
        + hashlib.sha256("".join(sorted([*shards, f"{name} {len(body)} config.json\n"])).encode()).hexdigest()
        for kind, name in names.items()
    }


def run(checkout: Path, *arguments: str) -> int:
    return int(pins.main(["--root", str(checkout), *arguments]))


def texts(checkout: Path) -> tuple[str, str]:
    return (checkout / "catalog/models/model.yml").read_text(), (checkout / "versions.yml").read_text()


def test_unverified_is_shown_and_written_only_when_asked(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(net)
    assert run(checkout) == 0
    shown = capsys.readouterr().out
    assert f"-  revision: unverified\n+  revision: {NEW}\n" in shown
    assert f"-      sha256: unverified\n+      sha256: {DIGEST}\n" in shown
    assert "4 asked, 0 without an answer of use. 2 files shown; --write writes them." in shown
    assert texts(checkout) == (MODEL, VERSIONS)

    assert run(checkout, "--write") == 0
    assert "2 files written." in capsys.readouterr().out
    model, versions = texts(checkout)
    data = yaml.safe_load(model)
    assert data["source"] == {"repo": "org/Model", "revision": NEW, "files_digest": digests(3 * 2**29)}
    assert data["weights_gib"] == 3.0
    assert data["licence"] == "Apache-2.0"
    # What the catalogue keeps of config.json, and no more.
    assert data["config"] == {
        **{key: value for key, value in CONFIG.items() if key not in ("bos_token_id", "quantization_config")},
        "quantization_config": {"quant_method": "awq", "bits": 4},
    }
    assert data["sources"]["revision"] == f"https://huggingface.co/org/Model/commit/{NEW}"
    assert data["checked"] == {"revision": "Filled by `./run pins` from the hub's API.", "model": "not run"}
    awq, pinned = data["variants"]
    assert awq["source"]["revision"] == OTHER
    assert awq["sources"]["revision"].endswith(OTHER)
    assert awq["weights_gib"] == 1.0
    assert pinned["source"]["revision"] == OLD
    # Comments and everything else stand where they stood.
    for line in MODEL.splitlines():
        if "#" in line and "unverified" not in line:
            assert line in model
    assert f"source: {{repo: org/Model-AWQ, revision: {OTHER},\n" in model
    assert "}  # theirs" in model
    assert awq["source"]["files_digest"] == digests(2**29)
    # As long as yamllint lets a line be; the last entry of the test stands in one line altogether.
    lines = model.partition("- {id: model-pinned")[0].splitlines()
    assert [line for line in lines if "sha256:" in line and len(line) > 140] == []
    assert yaml.safe_load(versions)["vllm"]["cpu"]["official"]["sha256"] == DIGEST
    assert "# Not filled yet." in versions
    assert not list(checkout.rglob("*.part"))

    assert run(checkout, "--write") == 0
    assert "Nothing to change." in capsys.readouterr().out
    assert texts(checkout) == (model, versions)


def test_ids_can_be_named(net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything(net)
    assert run(checkout, "--write", "model-awq") == 0
    model, versions = texts(checkout)
    assert f"revision: {OTHER}" in model
    assert "  revision: unverified\n" in model
    assert versions == VERSIONS
    assert not [path for path, _token in net.asked if "releases" in path or path.startswith("/api/models/org/Model?")]
    assert run(checkout, "vllm.cpu.official.sha256") == 0
    capsys.readouterr()
    assert run(checkout, "model-aqw") == 2
    assert "there is no `model-aqw`; did you mean `model-awq`?" in capsys.readouterr().err


def test_a_newer_revision_is_named_and_the_pin_stays(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net.model("org/Pinned", OLD, size=2 * 2**30)
    answer = {"sha": NEW, "siblings": []}
    net.give("/api/models/org/Pinned?blobs=true", answer)
    assert run(checkout, "--write", "model-pinned") == 0
    out = capsys.readouterr().out
    assert f"model-pinned: main has moved on to {NEW}; the pin stays at {OLD} (--update takes the new one)" in out
    assert OLD in texts(checkout)[0]
    net.model("org/Pinned", NEW, size=2 * 2**30)
    assert run(checkout, "--write", "--update", "model-pinned") == 0
    out = capsys.readouterr().out
    assert f"{{repo: org/Pinned, revision: {NEW}" in out
    assert yaml.safe_load(texts(checkout)[0])["variants"][1]["sources"]["revision"].endswith(NEW)


def bound(checkout: Path, digest: dict[str, str]) -> None:
    """The pinned model has this digest."""
    path = checkout / "catalog/models/model.yml"
    path.write_text(MODEL.replace(f"revision: {OLD}", f"revision: {OLD}, files_digest: {json.dumps(digest)}"))


def test_a_digest_that_is_there_is_held_against_the_hub(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net.model("org/Pinned", OLD, size=2 * 2**30)
    bound(checkout, digests(2**30))
    assert run(checkout, "--write", "model-pinned") == 0
    capsys.readouterr()
    assert yaml.safe_load(texts(checkout)[0])["variants"][1]["source"]["files_digest"] == digests(2**30)
    bound(checkout, digests(2**30 + 1))
    before = texts(checkout)
    assert run(checkout, "--write", "model-pinned") == 1
    out = capsys.readouterr().out
    assert f"its files at {OLD} are others than source.files_digest binds" in out
    assert texts(checkout) == before


def test_a_new_revision_gets_a_new_digest_or_stays_away(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound(checkout, digests(2**30))
    net.model("org/Pinned", NEW, size=2 * 2**31)
    net.model("org/Pinned", OLD, size=2 * 2**30)
    answer = json.loads(net.answers[f"/api/models/org/Pinned/revision/{NEW}?blobs=true"][1])
    del answer["siblings"][0]["blobId"]
    net.give("/api/models/org/Pinned?blobs=true", answer)
    assert run(checkout, "--write", "--update", "model-pinned") == 1
    assert "is of another revision, and there is no new one" in capsys.readouterr().out
    assert OLD in texts(checkout)[0]
    net.model("org/Pinned", NEW, size=2 * 2**31)
    assert run(checkout, "--write", "--update", "model-pinned") == 0
    source = yaml.safe_load(texts(checkout)[0])["variants"][1]["source"]
    assert source == {"repo": "org/Pinned", "revision": NEW, "files_digest": digests(2**31)}


def test_a_mirror_is_no_witness(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "WITNESS", "https://huggingface.co")
    everything(net)
    assert run(checkout, "--write", "model") == 0
    assert f"only https://huggingface.co itself is asked for it, and HF_ENDPOINT names {net.url}" in (
        capsys.readouterr().out
    )
    data = yaml.safe_load(texts(checkout)[0])
    assert data["source"] == {"repo": "org/Model", "revision": NEW}


def test_a_small_file_that_is_not_what_the_hub_lists_binds_nothing(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(net)
    net.give(f"/org/Model/resolve/{NEW}/config.json", {**CONFIG, "hidden_size": 65})
    assert run(checkout, "--write", "model") == 0
    assert "config.json is not what the hub lists of it" in capsys.readouterr().out
    assert "files_digest" not in yaml.safe_load(texts(checkout)[0])["source"]


def test_a_revision_that_main_does_not_lead_to_is_refused(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a pull request, which the hub shows at its commit like any other."""
    net.model("org/Pinned", OLD, size=2 * 2**30)
    answer = json.loads(net.answers["/api/models/org/Pinned?blobs=true"][1])
    net.give("/api/models/org/Pinned?blobs=true", {**answer, "sha": NEW})
    net.history("org/Pinned", NEW, OTHER)
    before = texts(checkout)
    assert run(checkout, "--write", "model-pinned") == 1
    out = capsys.readouterr().out
    assert f"main does not lead to the commit {OLD}" in out
    assert texts(checkout) == before
    net.history("org/Pinned", NEW, OLD)
    assert run(checkout, "model-pinned") == 0
    # Pages follow each other by their header.
    net.history("org/Pinned", NEW)
    net.links["/api/models/org/Pinned/commits/main"] = "/api/models/org/Pinned/commits/main?p=1"
    net.give("/api/models/org/Pinned/commits/main?p=1", [{"id": OLD}])
    assert run(checkout, "model-pinned") == 0
    assert ("/api/models/org/Pinned/commits/main?p=1", "") in net.asked
    # A mirror may not tell.
    capsys.readouterr()
    net.give("/api/models/org/Pinned/commits/main", b"{}", 404)
    assert run(checkout, "model-pinned") == 0
    assert f"whether main leads to {OLD} could not be seen: HTTP 404" in capsys.readouterr().out


def test_what_disagrees_with_the_hub_is_named(net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkout / "catalog/models/model.yml"
    path.write_text(MODEL.replace("weights_gib: 2.0}", "weights_gib: 2.5, config: {hidden_size: 65}}"))
    net.model("org/Pinned", OLD, size=2 * 2**30)
    assert run(checkout, "model-pinned") == 0
    out = capsys.readouterr().out
    assert "model-pinned: weights_gib is 2.5 here and 2.0 on the hub" in out
    assert "model-pinned: config.hidden_size is 65 here and 64 on the hub" in out


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (404, b"{}", "model (org/Model): HTTP 404: there is no such repository, revision or file"),
        (
            401,
            b"{}",
            "model (org/Model): HTTP 401: gated, private or misspelt; accept its licence on the hub and set HF_TOKEN",
        ),
        (403, b"{}", "model (org/Model): HTTP 403: gated, private or misspelt"),
        (429, b"", "model (org/Model): HTTP 429: too many requests; try again later"),
        (500, b"oops", "model (org/Model): HTTP 500"),
        (200, b"<html>log in</html>", "model (org/Model): answered with something that is no JSON"),
        (200, b"[1, 2]", "model (org/Model): answered with JSON of another form"),
        (200, b"{}", "model (org/Model): answered without a commit"),
        (200, b'{"sha": "main"}', "model (org/Model): answered without a commit"),
    ],
    ids=["404", "401", "403", "429", "500", "html", "list", "empty", "no-commit"],
)
def test_a_bad_answer_is_one_clear_line_and_spoils_nothing_else(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str], status: int, body: bytes, line: str
) -> None:
    everything(net)
    net.give("/api/models/org/Model?blobs=true", body, status)
    assert run(checkout, "--write") == 1
    captured = capsys.readouterr()
    assert line in captured.out
    assert "4 asked, 1 without an answer of use. 2 files written." in captured.out
    assert "Traceback" not in captured.out + captured.err
    data = yaml.safe_load(texts(checkout)[0])
    assert data["source"]["revision"] == "unverified"
    assert "weights_gib" not in data
    assert data["variants"][0]["source"]["revision"] == OTHER


def test_an_entry_is_filled_whole_or_not_at_all(net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The API answers, but config.json of a gated model does not come."""
    everything(net)
    net.give(f"/org/Model/resolve/{NEW}/config.json", b"{}", 401)
    assert run(checkout, "--write", "model") == 1
    assert "model (org/Model): HTTP 401" in capsys.readouterr().out
    data = yaml.safe_load(texts(checkout)[0])
    assert data["source"]["revision"] == "unverified"
    assert "weights_gib" not in data


def test_sizes_that_the_hub_does_not_state_are_not_guessed(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net.model("org/Model-AWQ", OTHER, size=None)
    assert run(checkout, "--write", "model-awq") == 0
    assert "weights_gib" not in yaml.safe_load(texts(checkout)[0])["variants"][0]


def test_what_does_not_fit_the_schema_is_left_alone(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(net)
    net.give(f"/org/Model/resolve/{NEW}/config.json", {"num_hidden_layers": "two"})
    assert run(checkout, "--write") == 1
    out = capsys.readouterr().out
    assert "model: config.num_hidden_layers = 'two' as the hub gives it: this has to be a whole number or null" in out
    assert texts(checkout)[0] == MODEL


@pytest.mark.parametrize(
    ("digest", "line"),
    [
        (None, "GitHub states no SHA-256 for this file"),
        ("md5:123", "GitHub states no SHA-256 for this file"),
        ("sha256:short", "GitHub states no SHA-256 for this file"),
    ],
)
def test_a_release_without_a_digest_stays_unverified(
    net: Net, checkout: Path, capsys: pytest.CaptureFixture[str], digest: str | None, line: str
) -> None:
    net.release(digest)
    assert run(checkout, "--write", "vllm.cpu.official.sha256") == 1
    assert f"versions.yml vllm.cpu.official.sha256: {line}" in capsys.readouterr().out
    assert texts(checkout)[1] == VERSIONS


@pytest.fixture
def images(net: Net, checkout: Path) -> Path:
    """A versions.yml with two images, and a registry that has both."""
    (checkout / "versions.yml").write_text(IMAGE)
    net.image("org/engine", "v1.2.3", f"sha256:{DIGEST}")
    net.digests["/v2/org/gateway/manifests/4.5"] = f"sha256:{'e' * 64}"
    return checkout


def test_digests_of_images_come_from_their_registries(
    net: Net, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, "engine.image.digest") == 0
    shown = capsys.readouterr().out
    assert f"-    digest: unverified  # not filled yet\n+    digest: sha256:{DIGEST}  # not filled yet\n" in shown
    assert texts(images)[1] == IMAGE
    assert run(images, "--write", "engine.image.digest") == 0
    assert texts(images)[1] == IMAGE.replace("unverified", f"sha256:{DIGEST}")
    # First without a token, then with the one that the registry sends everybody for. The index is asked for first.
    heads = [token for path, token in net.asked if path.startswith("/v2/")]
    assert heads == ["", "Bearer org/engine"] * 2
    assert net.accepted[0].startswith(
        "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manif"
    )
    capsys.readouterr()
    assert run(images, "--write", "engine.image.digest") == 0
    assert "1 asked, 0 without an answer of use. Nothing to change." in capsys.readouterr().out


def test_a_tag_that_moved_is_named_and_the_pin_stays(
    net: Net, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net.challenge = ""
    net.digests["/v2/org/gateway/manifests/4.5"] = f"sha256:{DIGEST}"
    assert run(images, "--write", "gateway.image.digest") == 0
    out = capsys.readouterr().out
    assert f"gateway.image.digest: the tag 4.5 leads to sha256:{DIGEST} now; the pin stays at sha256:eee" in out
    assert texts(images)[1] == IMAGE
    assert run(images, "--write", "--update", "gateway.image.digest") == 0
    assert f'tag: "4.5", digest: sha256:{DIGEST}, source: elsewhere}}' in texts(images)[1].replace("'", '"')


@pytest.mark.parametrize(
    ("digest", "challenge", "line"),
    [
        (None, "", "HTTP 404: there is no such image or tag"),
        ("", "", "the registry states no SHA-256 digest for this tag"),
        ("sha256:short", "", "the registry states no SHA-256 digest for this tag"),
        (f"sha256:{DIGEST}", 'Basic realm="x"', "the registry wants a login that is none of the usual form"),
        (f"sha256:{DIGEST}", 'Bearer realm="{url}/other"', "HTTP 401: private, or misspelt"),
    ],
    ids=["404", "none", "short", "basic", "refused"],
)
def test_a_registry_that_says_no_is_one_clear_line(
    net: Net, images: Path, capsys: pytest.CaptureFixture[str], digest: str | None, challenge: str, line: str
) -> None:
    net.challenge = challenge.replace("{url}", net.url)
    net.give("/other?", {"access_token": "of no use"})
    if digest is None:
        del net.digests["/v2/org/engine/manifests/v1.2.3"]
    else:
        net.digests["/v2/org/engine/manifests/v1.2.3"] = digest
    assert run(images, "--write", "engine.image.digest") == 1
    assert f"versions.yml engine.image.digest: {line}" in capsys.readouterr().out
    assert texts(images)[1] == IMAGE


def test_a_mirror_is_asked_in_a_registry_s_place(net: Net, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net.challenge = ""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert run(images, "--write", "--registry-mirror", f"docker.io={closed}", "engine.image.digest") == 3
        assert "--registry-mirror one of a registry" in capsys.readouterr().err
    assert run(images, "--write", f"--registry-mirror=docker.io={net.url}", "engine.image.digest") == 0
    assert DIGEST in texts(images)[1]
    capsys.readouterr()
    assert run(images, "--registry-mirror", net.url) == 2
    assert "write REGISTRY=URL" in capsys.readouterr().err


def test_a_closed_network_ends_with_a_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        # Bound and not listening: every connection is refused.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for name in ("HF_ENDPOINT", "GITHUB_API_URL"):
            monkeypatch.setenv(name, f"http://{address}")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert run(checkout, "--write") == 3
    captured = capsys.readouterr()
    assert f"pins: {address} cannot be reached from here" in captured.err
    assert "Run this on a connected machine" in captured.err
    assert "4 asked, 4 without an answer of use. Nothing to change." in captured.out
    assert texts(checkout) == (MODEL, VERSIONS)


def test_the_hub_alone_out_of_reach_leaves_the_rest(
    net: Net, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net.release()
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert run(checkout, "--write") == 3
    assert "pins: hub.invalid cannot be reached from here" in capsys.readouterr().err
    assert DIGEST in texts(checkout)[1]
    assert texts(checkout)[0] == MODEL


def test_the_token_is_sent_to_the_hub_alone(net: Net, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(net)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # A renamed repository: the hub redirects.
    net.give("/api/models/org/Model?blobs=true", f"{net.url}/elsewhere".encode(), 307)
    net.give("/elsewhere", json.dumps({"sha": NEW, "siblings": []}).encode())
    assert run(checkout, "model", "vllm.cpu.official.sha256") == 0
    tokens = dict(net.asked)
    assert tokens["/api/models/org/Model?blobs=true"] == "Bearer hf_secret"
    assert tokens["/elsewhere"] == ""
    assert tokens["/repos/vllm-project/vllm/releases/tags/v1.2.3"] == ""


def test_the_real_files_can_be_filled(net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every entry that ships, with answers of the same form for all, keeps its comments and its schema."""
    (tmp_path / "catalog/models").mkdir(parents=True)
    for path in (ROOT / "catalog/models").glob("*.yml"):
        (tmp_path / "catalog/models" / path.name).write_text(path.read_text())
        for entry in pins.catalog().expand(yaml.safe_load(path.read_text())):
            if "repo" in entry["source"]:
                revision = entry["source"]["revision"]
                net.model(entry["source"]["repo"], NEW if revision == "unverified" else revision, size=None)
    (tmp_path / "versions.yml").write_text((ROOT / "versions.yml").read_text())
    run(tmp_path, "--write")
    out = capsys.readouterr().out
    assert "could not be edited" not in out
    for path in (ROOT / "catalog/models").glob("*.yml"):
        before, after = path.read_text(), (tmp_path / "catalog/models" / path.name).read_text()
        assert "revision: unverified" not in after
        lost = [line for line in before.splitlines() if line.strip().startswith("#") and line not in after]
        assert not lost
