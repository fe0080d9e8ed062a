"""The program of the role model_store stages models with the real client, whatever the source does to it.

Sources are those of tests/hub/server.py. Most tests run the program in this process, without its pauses; where it has
to die, or there have to be two of it, it is a process of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/model_store/files/opt/modelhost/model_store"
sys.path[:0] = [str(ROOT / "tests"), str(PROGRAM)]

from hub.server import Hub  # noqa: E402
from hub.without_clock import read_without_clock  # noqa: E402
from patience import HANGS, wait_until  # noqa: E402
from store import fetch as store_fetch  # noqa: E402
from store import job as store_job  # noqa: E402
from store import manifest  # noqa: E402
from store import stage as store_stage  # noqa: E402
from store.status import Status  # noqa: E402

TOKEN = "hf_" + "SecretOfTests" * 2
MIB = 1 << 20
#: What one broken connection may cost: the piece that was being put together.
LOSS = MIB
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


#: What an engine needs of the repository.
NEEDED = {
    "config.json": b'{"architectures": ["Qwen2ForCausalLM"]}\n',
    "generation_config.json": b"{}\n",
    "model.safetensors.index.json": b'{"weight_map": {}}\n' * 300,
    "tokenizer.json": noise("tokenizer", 1_200_000),
    "chat_template.jinja": b"{{ messages }}\n",
    "merges.txt": b"a b\n",
    "LICENSE": b"Apache-2.0\n",
    "README.md": "# 模型\n".encode(),
    "1_Pooling/config.json": b'{"pooling": 1}\n',
    "notes #1, 100% ?&+ 模型.json": b'{"notes": 1}\n',
    "empty.txt": b"",
    **{name: noise(name, 2 * MIB + 12_345) for name in SHARDS},
}
#: What lies beside it.
BESIDE = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "pytorch_model.bin": noise("pickle", 5000),
    "original/consolidated.00.pth": noise("original", 5000),
    "consolidated.safetensors": noise("consolidated", 5000),
    "onnx/model.onnx": noise("onnx", 5000),
    "model.Q4.gguf": noise("gguf", 5000),
    "modeling_own.py": b"import os\n",
    "images/logo.png": noise("png", 5000),
}


def put(place: Path, files: dict[str, bytes], **settings: object) -> None:
    for path, content in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    if settings:
        (place / ".hub.json").write_text(json.dumps(settings))


class Pauseless:
    """A module whose pauses are short."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def sleep(self, seconds: float) -> None:  # clock: no pause, a method
        time.sleep(min(seconds, 0.01))  # clock: pauses of the program, made short

    def uniform(self, low: float, high: float) -> float:
        return 0.001

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class Site:
    """A hub, and a store that is filled from it."""

    def __init__(self, top: Path, hub: Hub) -> None:
        self.top, self.hub = top, hub
        self.root = hub.library.root
        self.store = top / "store"
        self.source: dict[str, Any] = {"type": "hub", "url": hub.url}
        self.status_file = top / "status.json"
        self.said = ""

    def model(self, repo: str = "Org/Model", **more: Any) -> dict[str, Any]:
        revision = more.pop("revision", None) or self.hub.revision(repo)
        return {"id": repo, "repo": repo, "revision": revision, **more}

    def path(self, repo: str = "Org/Model", revision: str = "") -> Path:
        return self.store / repo / (revision or self.hub.revision(repo))

    def staging(self, repo: str = "Org/Model") -> Path:
        return self.store / ".staging" / repo / self.hub.revision(repo)

    def job(self, *models: dict[str, Any], **changes: Any) -> Path:
        job = {
            "store": str(self.store),
            "models": list(models) or [self.model()],
            "sources": [self.source],
            "workers": 4,
            "retries": 3,
            "reserve_bytes": 0,
            **changes,
        }
        for model in job["models"]:
            model.setdefault("path", str(self.store / model["repo"] / model["revision"]))
        path = self.top / "job.json"
        path.write_text(json.dumps(job))
        return path

    def stage(self, *models: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Run it here; its last status. Raises what the program would end with."""
        status = Status(str(self.status_file), "stage")
        try:
            store_stage.stage(store_job.read(str(self.job(*models, **changes))), status)
            status.end("done")
        except BaseException as error:
            status.end("failed", str(error))
            raise
        return self.status()

    def fails(self, *models: dict[str, Any], **changes: Any) -> str:
        """Run it here; why it failed."""
        with pytest.raises((store_stage.Failed, store_job.JobError)) as caught:
            self.stage(*models, **changes)
        assert self.status()["state"] == "failed"
        return str(caught.value)

    def start(
        self, *models: dict[str, Any], environment: dict[str, str] | None = None, **changes: Any
    ) -> subprocess.Popen:
        """Run it as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "store", "--status", self.status_file, "stage", self.job(*models, **changes)],
            cwd=PROGRAM,
            env={
                "PATH": os.environ["PATH"],
                "HF_HUB_DOWNLOAD_TIMEOUT": str(HANGS),
                "PYTHONDONTWRITEBYTECODE": "1",
                **(environment or {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self) -> dict[str, Any]:
        return json.loads(self.status_file.read_text())

    def doing(self) -> str:
        """What the program says that it does now."""
        return str(self.status()["doing"]) if self.status_file.exists() else ""

    def begun(self, process: subprocess.Popen, match: str = "*") -> None:
        """Return when bytes of such files are on their way to a process."""
        wait_until(lambda: self.hub.sent(match) or ended(process), "bytes are on their way")

    def holds(self, files: dict[str, bytes], repo: str = "Org/Model", revision: str = "") -> dict[str, Any]:
        """The store shows exactly these files under the final path, and nothing is left beside; their manifest."""
        place = self.path(repo, revision)
        assert content(place) == {path: digest(data) for path, data in files.items()}
        found = manifest.read(str(place))
        assert found is not None
        assert {item["path"]: item["sha256"] for item in found["files"]} == content(place)
        assert (found["repo"], found["revision"]) == (repo, place.name)
        assert [str(path) for path in (self.store / ".staging").rglob("*") if path.is_file()] == []
        assert [str(path) for path in place.rglob("*") if path.is_symlink()] == []
        assert {oct(path.stat().st_mode & 0o777) for path in place.rglob("*") if path.is_file()} == {"0o644"}
        return found

    def shows_nothing(self, repo: str = "Org/Model") -> None:
        assert not self.path(repo).exists()

    def fetched_once(self, files: dict[str, bytes], *but: str) -> None:
        """Each file came once, in one piece; `but` may have come more than once."""
        sent = {path: self.hub.sent(path) for path in files if path not in but}
        assert sent == {path: len(data) for path, data in files.items() if path not in but}


def ended(process: subprocess.Popen) -> bool:
    """False; fails with a process's output when it is no longer there."""
    assert process.poll() is None, process.communicate()
    return False


def finished(process: subprocess.Popen) -> tuple[str, str]:
    """Output and complaints of a process that ends by itself, and well."""
    output = process.communicate(timeout=HANGS)
    assert process.returncode == 0, output
    return output


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content(place: Path) -> dict[str, str]:
    return {
        path.relative_to(place).as_posix(): digest(path.read_bytes())
        for path in place.rglob("*")
        if path.is_file() and path.name != manifest.NAME
    }


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder in memory, where there is one: what is written is brought to the disk before it counts, 130 times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="store-") as folder:
        yield Path(folder)


@pytest.fixture
def site(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for module in ("huggingface_hub.file_download.time", "huggingface_hub.utils._http.time", "store.stage.time"):
        monkeypatch.setattr(module, Pauseless(time))
    monkeypatch.setattr("store.fetch.random", Pauseless(random))
    read_without_clock(monkeypatch)
    put(top / "root/Org/Model", {**NEEDED, **BESIDE})
    with Hub(top / "root") as hub:
        yield Site(top, hub)


@pytest.fixture
def second(site: Site) -> Iterator[Hub]:
    """Another server with the same repositories."""
    with Hub(site.root) as hub:
        yield hub


def gone() -> dict[str, Any]:
    """A source at which nobody answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return {"type": "hub", "url": f"http://127.0.0.1:{listener.getsockname()[1]}"}


# All is well


def test_it_stages_what_an_engine_needs_and_nothing_else(site: Site) -> None:
    status = site.stage()
    found = site.holds(NEEDED)
    assert found["verified"] == "hub"
    assert found["source"] == f"hub {site.hub.url}"
    blobs = {item["path"]: (item["lfs"], item["blob_id"]) for item in found["files"]}
    assert blobs["config.json"][0] is False
    assert all(blobs[name][0] for name in SHARDS)
    assert len(blobs["config.json"][1]) == 40
    site.fetched_once(NEEDED)
    assert site.hub.sent() == sum(len(data) for data in NEEDED.values())
    assert {key: status[key] for key in ("state", "error")} == {"state": "done", "error": ""}
    assert status["done"] == status["total"] == status["transferred"] == sum(len(data) for data in NEEDED.values())
    assert [item["state"] for item in status["results"]] == ["staged"]


def test_a_second_run_asks_nobody(site: Site) -> None:
    site.stage()
    site.hub.clear()
    status = site.stage()
    assert site.hub.requests == []
    assert (status["state"], status["transferred"]) == ("done", 0)
    site.holds(NEEDED)


def test_code_comes_only_if_it_is_wanted_and_pickles_never_beside_safetensors(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "HUB", site.hub.url)
    site.stage(site.model(code=True, allow_pickle=True))
    site.holds({**NEEDED, "modeling_own.py": BESIDE["modeling_own.py"]})


def test_pickles_alone_are_refused_unless_they_are_allowed(site: Site) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": noise("p", 3000), "training_args.bin": b"x"}
    put(site.root / "Org/Pickle", files)
    why = site.fails(site.model("Org/Pickle"))
    assert "pickle" in why
    assert "allow_pickle" in why
    assert site.hub.sent() == 0
    site.stage(site.model("Org/Pickle", allow_pickle=True))
    assert digest(files["pytorch_model.bin"]) in content(site.path("Org/Pickle")).values()


def test_files_that_are_named_are_the_only_ones(site: Site) -> None:
    site.stage(site.model(files=["config.json", "onnx/*"]))
    site.holds({"config.json": NEEDED["config.json"], "onnx/model.onnx": BESIDE["onnx/model.onnx"]})


def test_long_listings_and_compressed_answers(site: Site) -> None:
    site.hub.configure({"page_size": 4, "gzip": True})
    site.stage()
    site.holds(NEEDED)


def test_files_of_other_places_come_with_their_hash(site: Site) -> None:
    words = noise("words", 4000)
    put(site.root / "Org/Elsewhere", {"o200k_base.tiktoken": words})
    url = f"{site.hub.url}/Org/Elsewhere/resolve/main/o200k_base.tiktoken"
    path = "tiktoken/o200k_base.tiktoken"
    extra = {"path": path, "url": url, "sha256": digest(words), "size": len(words)}
    site.stage(site.model(extra_files=[extra]))
    site.holds({**NEEDED, path: words})
    shutil.rmtree(site.store)
    wrong = {**extra, "sha256": "0" * 64}
    assert "o200k_base" in site.fails(site.model(extra_files=[wrong]))
    site.shows_nothing()


def test_several_models_and_revisions(site: Site) -> None:
    small = {"config.json": b'{"small": 1}', "model.safetensors": noise("small", 50_000)}
    put(site.root / "Org/Small", small)
    put(site.root / f"Org/Small@{'b' * 40}", {**small, "config.json": b'{"small": 0}'})
    status = site.stage(site.model(), site.model("Org/Small"), site.model("Org/Small", revision="b" * 40))
    site.holds(NEEDED)
    site.holds(small, "Org/Small")
    site.holds({**small, "config.json": b'{"small": 0}'}, "Org/Small", "b" * 40)
    assert len(status["results"]) == 3


def test_models_that_are_asked_for_twice_come_once(site: Site) -> None:
    site.stage(site.model(), {**site.model(), "id": "again"})
    site.holds(NEEDED)
    site.fetched_once(NEEDED)


@pytest.mark.parametrize("status", [404, 503])
def test_one_model_that_cannot_come_does_not_keep_others_away(site: Site, status: int) -> None:
    small = {"config.json": b'{"small": 1}', "model.safetensors": noise("small", 50_000)}
    put(site.root / "Org/Small", small)
    put(site.root / "Org/Broken", {"config.json": b'{"broken": 1}', "model.safetensors": noise("broken", 50_000)})
    site.hub.fault("status", "Org/Broken/model.safetensors", times=None, status=status)
    missing = {"id": "ghost", "repo": "Org/Ghost", "revision": "c" * 40}
    why = site.fails(site.model("Org/Broken"), missing, site.model("Org/Small"))
    assert content(site.path("Org/Small")) == {path: digest(data) for path, data in small.items()}
    assert any("ghost" in line and "Org/Ghost" in line for line in why.splitlines())
    assert any("Org/Broken" in line and "model.safetensors" in line for line in why.splitlines())
    site.shows_nothing("Org/Broken")


def test_progress_can_be_read_while_it_runs(site: Site) -> None:
    total = sum(len(data) for data in NEEDED.values())
    rate = total / 60  # it is looked at long before it ends
    site.hub.configure({"rate": rate})
    process = site.start()
    seen = []

    def told() -> bool:
        if site.status_file.exists() and site.status()["total"] == total:
            seen.append(site.status())
        return ended(process) or (bool(seen) and seen[-1]["rate"] > 0 and seen[-1]["done"] > seen[0]["done"])

    wait_until(told, "its progress shows")
    site.hub.configure({"rate": 0})
    finished(process)
    assert {state["state"] for state in seen} == {"running"}
    assert [state["done"] for state in seen] == sorted(state["done"] for state in seen)
    # No more than was sent, at most in one piece.
    assert all(0 < state["rate"] < 1.5 * rate + 4096 for state in seen if state["rate"])
    assert all(state["left"] > 0 for state in seen if state["rate"])
    assert site.status()["done"] == total


# One thing goes wrong once


@pytest.mark.parametrize(
    ("fault", "costs"),
    [
        ({"kind": "cut", "after": MIB + 600_000}, LOSS),
        ({"kind": "cut", "after": 0}, LOSS),
        ({"kind": "reset", "after": MIB + 600_000}, 2 * LOSS),
        ({"kind": "stall", "after": MIB + 600_000}, LOSS),
        ({"kind": "stall", "after": 0}, LOSS),
        ({"kind": "refuse", "where": "cdn"}, 0),
        ({"kind": "refuse", "where": "resolve"}, 0),
        ({"kind": "length", "delta": -5}, None),
        ({"kind": "length", "delta": 5}, None),
        ({"kind": "corrupt"}, None),
        ({"kind": "corrupt", "at": 0}, None),
        ({"kind": "slow", "rate": 20e6}, 0),
        ({"kind": "status", "status": 429, "retry_after": 1, "where": "resolve"}, 0),
        ({"kind": "status", "status": 429, "where": "cdn", "times": 3}, 0),
        ({"kind": "status", "status": 503, "where": "cdn", "times": 2}, 0),
        ({"kind": "status", "status": 500, "where": "resolve", "times": 2}, 0),
        ({"kind": "status", "status": 504, "where": "resolve"}, 0),
        ({"kind": "html", "where": "cdn"}, None),
        ({"kind": "html", "where": "resolve"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_what_goes_wrong_once_costs_little(site: Site, fault: dict[str, Any], costs: int | None) -> None:
    """`costs`: bytes that may come twice; None: the file may come twice, as nobody knows which byte is wrong."""
    path = SHARDS[1]
    site.hub.fault(match=path, **fault)
    site.stage()
    site.holds(NEEDED)
    assert any(entry["fault"] == fault["kind"] for entry in site.hub.requests)
    site.fetched_once(NEEDED, path)
    size = len(NEEDED[path])
    assert site.hub.sent(path) <= size + (size if costs is None else costs)


def test_a_server_that_ignores_ranges_is_no_harm(site: Site) -> None:
    path = SHARDS[0]
    site.hub.fault("cut", path, after=MIB + 5)
    site.hub.fault("norange", path, times=None)
    site.stage()
    site.holds(NEEDED)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429, "retry_after": 0},
        {"kind": "refuse"},
        {"kind": "status", "status": 502},
    ],
    ids=str,
)
def test_a_listing_that_fails_is_asked_for_again(site: Site, fault: dict[str, Any]) -> None:
    site.hub.fault(match="/api/models/*/tree/*", **fault)
    site.stage()
    site.holds(NEEDED)


def test_many_things_go_wrong(site: Site) -> None:
    dice = random.Random(5)
    for path in NEEDED:
        for kind in dice.sample(["cut", "reset", "corrupt", "refuse", "norange"], 2):
            site.hub.fault(kind, path)
        site.hub.fault("status", path, status=dice.choice([429, 500, 502, 503]))
    site.stage(retries=6)
    site.holds(NEEDED)


def test_links_that_expire_are_asked_for_anew(site: Site) -> None:
    """The signed link of a long download dies; the next attempt begins at the hub again."""
    path = SHARDS[2]
    site.hub.fault("cut", path, after=MIB + 5)
    site.hub.fault("status", path, status=403, where="cdn", method="GET", skip=1)
    try:
        site.stage()
    except store_stage.Failed as error:
        pytest.fail(f"a link that was refused once ended the run: {error}")
    site.holds(NEEDED)


# A source does not get better


REPLACED: list[dict[str, Any]] = [{"kind": kind} for kind in ("refuse", "loop", "html")]
REPLACED += [{"kind": "status", "status": status} for status in (401, 403, 404, 429, 500, 503)]
SPOILT: list[dict[str, Any]] = [{"kind": "corrupt"}, {"kind": "cut", "after": 100}, {"kind": "length", "delta": -5}]


@pytest.mark.parametrize(
    ("where", "fault"),
    [("file", fault) for fault in [*SPOILT, *REPLACED]] + [("listing", fault) for fault in REPLACED],
    ids=str,
)
def test_the_next_source_is_used(site: Site, second: Hub, fault: dict[str, Any], where: str) -> None:
    path = SHARDS[1]
    match = path if where == "file" else "/api/models/*"
    site.hub.fault(match=match, times=None, **fault)
    site.stage(sources=[site.source, {"type": "hub", "url": second.url}])
    site.holds(NEEDED)
    others = [other for other in NEEDED if other != path]
    sent = {other: site.hub.sent(other) + second.sent(other) for other in others}
    assert sent == {other: len(NEEDED[other]) for other in others}
    if where == "file":
        assert 0 < second.sent(path) <= len(NEEDED[path])


def test_a_page_in_the_place_of_a_file_does_not_cost_what_is_there(site: Site) -> None:
    """A network that wants a login answers everything with a page, for a while."""
    path = SHARDS[1]
    site.hub.fault("cut", path, after=MIB + 600_000)
    site.hub.fault("html", path, times=2, skip=2)
    site.stage()
    site.holds(NEEDED)
    assert [entry["fault"] for entry in site.hub.requests if entry["subject"].endswith(path)].count("html") == 2
    assert site.hub.sent(path) <= len(NEEDED[path]) + LOSS + 1000


def test_a_source_at_which_nobody_answers_is_passed_over(site: Site) -> None:
    site.stage(sources=[gone(), site.source])
    assert site.holds(NEEDED)["source"] == f"hub {site.hub.url}"


@pytest.mark.parametrize(
    "options",
    [{"match": "/api/models/*"}, {"match": SHARDS[1], "where": "resolve"}, {"match": SHARDS[1], "where": "cdn"}],
    ids=str,
)
def test_a_source_that_takes_the_question_and_never_answers(site: Site, second: Hub, options: dict[str, Any]) -> None:
    site.hub.fault("hang", times=None, **options)
    site.stage(sources=[site.source, {"type": "hub", "url": second.url}], retries=1)
    site.holds(NEEDED)
    # Each of its workers tries twice what waits for an answer, and passes the source over then.
    assert 2 <= [entry["fault"] for entry in site.hub.requests].count("hang") <= 2 * 4


def test_a_server_that_breaks_off_and_cannot_resume_is_left_for_the_next(site: Site, second: Hub) -> None:
    """Each attempt brings bytes, and none of them brings the file nearer."""
    path = SHARDS[1]
    site.hub.fault("cut", path, times=None, after=MIB + 600_000, norange=True)
    site.stage(sources=[site.source, {"type": "hub", "url": second.url}], retries=2)
    site.holds(NEEDED)
    asked = [entry for entry in site.hub.requests if entry["subject"].endswith(path) and entry["where"] == "cdn"]
    assert len(asked) <= 3 * 6


def test_a_connection_that_breaks_again_and_again_gets_there(site: Site) -> None:
    path = SHARDS[1]
    site.hub.fault("cut", path, times=None, after=MIB + 5)
    site.stage(retries=0)
    site.holds(NEEDED)


def test_what_the_first_source_began_the_second_ends(site: Site, second: Hub) -> None:
    path = SHARDS[1]
    site.hub.fault("cut", path, after=MIB + 5)
    site.hub.fault("status", path, status=404, times=None, skip=2)
    site.stage(sources=[site.source, {"type": "hub", "url": second.url}])
    site.holds(NEEDED)
    assert site.hub.sent(path) + second.sent(path) <= len(NEEDED[path]) + LOSS


def sources_of(site: Site, kind: str) -> dict[str, Any]:
    """A source of each type, with the model in it."""
    revision = site.hub.revision("Org/Model")
    folder = site.top / "nas"
    if kind == "hub":
        return site.source
    if kind == "modelscope":
        return {"type": "modelscope", "url": site.hub.url}
    if kind == "http":
        return {"type": "http", "url": f"{site.hub.url}/files/"}
    if kind == "http with a password":
        site.hub.configure({"basic": f"rack:{TOKEN}"})
        return {"type": "http", "url": f"{site.hub.url}/files", "username": "rack", "password": TOKEN}
    if kind == "s3":
        site.hub.configure({"s3": {"secret_key": TOKEN}})
        keys = {"access_key": site.hub.settings["s3"]["access_key"], "secret_key": TOKEN, "region": "us-east-1"}
        return {"type": "s3", "url": "s3://weights/models", "endpoint": site.hub.url, **keys}
    if kind == "folder of a store":
        put(folder / "Org/Model" / revision, NEEDED)
        entries = [
            {"path": path, "size": len(data), "sha256": digest(data), "blob_id": None, "lfs": False}
            for path, data in NEEDED.items()
        ]
        manifest.write(str(folder / "Org/Model" / revision), manifest.make("Org/Model", revision, "x", "hub", entries))
    elif kind == "folder by hand":
        put(folder / "Org/Model", NEEDED)
    elif kind == "cache of the client":
        from huggingface_hub import snapshot_download

        snapshot_download("Org/Model", revision=revision, endpoint=site.hub.url, cache_dir=folder)
        site.hub.clear()
    return {"type": "folder", "path": str(folder)}


OVER_HTTP = ["hub", "modelscope", "http", "http with a password", "s3"]
KINDS = [*OVER_HTTP, "folder of a store", "folder by hand", "cache of the client"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_source(site: Site, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = sources_of(site, kind)
    path = SHARDS[1]
    if kind in OVER_HTTP:
        site.hub.fault("cut", path, after=MIB + 600_000)
    site.stage(sources=[source])
    found = site.holds(NEEDED)
    assert found["source"].split()[0] == source["type"]
    assert found["verified"] in {
        "hub": ("hub",),
        "modelscope": ("modelscope",),
        "folder": ("manifest", "cache", "recorded"),
    }.get(source["type"], ("manifest",))
    if kind in OVER_HTTP:
        site.fetched_once(NEEDED, path)
        assert site.hub.sent(path) <= len(NEEDED[path]) + LOSS
    else:
        assert site.hub.requests == []
    said = "".join(capfd.readouterr()) + site.status_file.read_text() + json.dumps(found)
    assert TOKEN not in said
    assert "Signature=" not in said


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_type_of_source_helps_a_hub_out(site: Site, second: Hub, kind: str) -> None:
    source = sources_of(site, kind)
    path = SHARDS[1]
    second.fault("status", path, times=None, status=404)
    site.stage(sources=[{"type": "hub", "url": second.url}, source])
    assert site.holds(NEEDED)["verified"] == "hub"
    assert second.sent(path) == 0


@pytest.mark.parametrize("kind", ["http with a password", "s3"])
def test_wrong_credentials_are_said_and_not_shown(site: Site, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = sources_of(site, kind)
    site.hub.configure({"basic": "other:word", "s3": {"secret_key": "other"}})
    why = site.fails(sources=[source])
    assert "401" in why or "403" in why
    said = "".join(capfd.readouterr()) + site.status_file.read_text() + why
    assert TOKEN not in said
    assert "Signature=" not in said


def test_a_revision_that_modelscope_does_not_know_is_named(site: Site) -> None:
    """ModelScope answers it with success and no list of files."""
    why = site.fails(sources=[{"type": "modelscope", "url": site.hub.url, "revision": "v9"}])
    assert "v9" in why


# Who may


def test_gated_models(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    put(site.root / "Org/Gated", NEEDED, gated=True, tokens=[TOKEN])
    why = site.fails(site.model("Org/Gated"))
    assert "gated" in why
    assert "token" in why
    why = site.fails(site.model("Org/Gated"), sources=[{**site.source, "token": TOKEN + "x"}])
    assert "gated" in why
    assert TOKEN not in why
    site.hub.clear()
    site.stage(site.model("Org/Gated"), sources=[{**site.source, "token": TOKEN}])
    found = site.holds(NEEDED, "Org/Gated")
    assert {entry["authorization"] for entry in site.hub.requests if entry["where"] == "cdn"} == {""}
    assert TOKEN not in "".join(capfd.readouterr()) + site.status_file.read_text() + json.dumps(found)
    stored = [path for path in site.store.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert stored == []


def test_a_gated_model_of_modelscope(site: Site) -> None:
    put(site.root / "Org/Gated", NEEDED, private=True, tokens=[TOKEN])
    source = {"type": "modelscope", "url": site.hub.url}
    assert "404" in site.fails(site.model("Org/Gated"), sources=[source])
    site.hub.clear()
    site.stage(site.model("Org/Gated"), sources=[{**source, "token": TOKEN}])
    site.holds(NEEDED, "Org/Gated")
    leaks = [
        entry for entry in site.hub.requests if entry["where"] == "cdn" and (entry["authorization"] or entry["cookie"])
    ]
    assert leaks == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tokens": []}, "401"), ({}, "Org/Ghost")],
    ids=["a token that is not valid", "a repository that does not exist"],
)
def test_refusals_name_what_to_do(site: Site, settings: dict[str, Any], message: str) -> None:
    site.hub.configure(settings)
    ghost = {"id": "ghost", "repo": "Org/Ghost", "revision": "c" * 40}
    why = site.fails(ghost if not settings else site.model(), sources=[{**site.source, "token": TOKEN}])
    assert message in why
    assert "hf_mirror_sources" in why
    assert TOKEN not in why
    assert len([entry for entry in site.hub.requests if entry["where"] == "api"]) == 1, "no retry changes that"


def test_a_revision_that_does_not_exist(site: Site) -> None:
    assert "c" * 40 in site.fails(site.model(revision="c" * 40))


def test_a_hub_with_a_certificate_of_ones_own(site: Site) -> None:
    pair, authority = site.top / "pair.pem", site.top / "ca.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=hub -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", pair, "-out", authority], check=True, capture_output=True)
    pair.write_bytes(pair.read_bytes() + authority.read_bytes())
    with Hub(site.root, certificate=str(pair)) as hub:
        source = {"type": "hub", "url": hub.url}
        assert "CERTIFICATE_VERIFY_FAILED" in site.fails(sources=[source], retries=0)
        process = site.start(sources=[source], environment={"SSL_CERT_FILE": str(authority)})
        finished(process)
    site.holds(NEEDED)


# Content that is not what was promised


def test_a_damaged_part_of_a_former_run_costs_one_file(site: Site) -> None:
    path = SHARDS[0]
    put(site.staging(), {path + ".part": b"\0" * MIB, SHARDS[1] + ".part": NEEDED[SHARDS[1]] + b"more"})
    site.stage()
    site.holds(NEEDED)
    site.fetched_once(NEEDED, path)
    assert site.hub.sent(path) <= 2 * len(NEEDED[path])


def test_whole_files_of_a_former_run_are_hashed_not_believed(site: Site) -> None:
    right, wrong = SHARDS[:2]
    put(site.staging(), {right: NEEDED[right], wrong: NEEDED[wrong][:-1] + b"!"})
    site.stage()
    site.holds(NEEDED)
    assert site.hub.sent(right) == 0
    assert site.hub.sent(wrong) == len(NEEDED[wrong])


@pytest.mark.parametrize(
    "lie",
    [
        {SHARDS[0]: {"sha256": "1" * 64}},
        {SHARDS[0]: {"size": 2 * MIB}},
        {SHARDS[0]: {"size": 3 * MIB}},
        {"config.json": {"blob_id": "1" * 40}},
        {"config.json": {"size": 7}},
    ],
    ids=str,
)
def test_a_listing_that_does_not_fit_the_content_brings_nothing(site: Site, lie: dict[str, Any]) -> None:
    site.hub.fault("listing", "Org/Model", set=lie)
    # The signed link names what is there, not what is listed.
    site.hub.configure({"cdn": False})
    why = site.fails()
    assert next(iter(lie)) in why
    site.shows_nothing()


@pytest.mark.parametrize(
    "name",
    [
        "../../../../../evil.json",
        "/tmp/evil-of-tests.json",
        "sub/../../evil.json",
        "..\\evil.json",
        "./evil.json",
        "a//evil.json",
        "..",
        "evil.json\0.txt",
    ],
)
@pytest.mark.parametrize("patterns", [[], ["*"]])
def test_names_that_lead_out_of_the_folder_are_refused(site: Site, name: str, patterns: list[str]) -> None:
    site.hub.fault("listing", "Org/Model", set={name: {"content": "evil"}})
    before = set(site.top.rglob("*evil*"))
    why = site.fails(site.model(files=patterns))
    assert "evil" in why or ".." in why
    assert set(site.top.rglob("*evil*")) == before
    assert not Path("/tmp/evil-of-tests.json").exists()
    site.shows_nothing()


def test_names_of_our_own_files_in_a_repository_do_no_harm(site: Site) -> None:
    """A repository can hold files that are called as those with which the store keeps its books."""
    names = {
        manifest.NAME: b'{"format": 1}',
        ".verified.json": b'{"config.json": [1, 2, "x"]}',
        "config.json.part": b"x",
    }
    put(site.root / "Org/Odd", {**NEEDED, **names})
    site.stage(site.model("Org/Odd", files=["*.json*", "*.safetensors"]))
    found = manifest.read(str(site.path("Org/Odd")))
    assert found is not None
    assert manifest.differences(str(site.path("Org/Odd")), found) == []
    assert (site.path("Org/Odd") / "config.json").read_bytes() == NEEDED["config.json"]
    site.hub.clear()
    site.stage(site.model("Org/Odd", files=["*.json*", "*.safetensors"]))
    assert site.hub.requests == []


def test_a_name_that_is_a_file_and_a_folder_fails_without_a_trace(site: Site) -> None:
    site.hub.fault("listing", "Org/Model", set={"config.json/more.json": {"content": "x"}})
    assert "config.json" in site.fails()
    site.shows_nothing()


def test_an_evil_manifest_over_http_is_refused(site: Site) -> None:
    site.hub.fault("listing", "Org/Model", set={"../../evil.json": {"content": "evil"}})
    assert "evil" in site.fails(sources=[{"type": "http", "url": f"{site.hub.url}/files"}])
    site.shows_nothing()


@pytest.mark.parametrize("move", [False, True])
def test_a_link_in_a_folder_does_not_become_a_link_in_the_store(site: Site, move: bool) -> None:
    source = sources_of(site, "folder of a store")
    place = Path(source["path"]) / "Org/Model" / site.hub.revision("Org/Model")
    elsewhere = site.top / "elsewhere"
    shutil.move(place / SHARDS[0], elsewhere)
    (place / SHARDS[0]).symlink_to(elsewhere)
    elsewhere.chmod(0o600)
    try:
        site.stage(sources=[{**source, "move": move}])
    except store_stage.Failed:
        site.shows_nothing()  # to refuse it is right as well
    else:
        site.holds(NEEDED)
    assert elsewhere.stat().st_mode & 0o777 == 0o600, "what a link leads to is not ours to change"


def test_what_is_moved_leaves_no_copy(site: Site) -> None:
    source = sources_of(site, "folder of a store")
    place = Path(source["path"]) / "Org/Model" / site.hub.revision("Org/Model")
    numbers = {path: (place / path).stat().st_ino for path in SHARDS}
    site.stage(sources=[{**source, "move": True}])
    site.holds(NEEDED)
    assert {path: (site.path() / path).stat().st_ino for path in SHARDS} == numbers


def test_a_damaged_file_of_a_folder_comes_from_the_next_source(site: Site) -> None:
    source = sources_of(site, "folder of a store")
    place = Path(source["path"]) / "Org/Model" / site.hub.revision("Org/Model")
    (place / SHARDS[0]).write_bytes(b"!" + NEEDED[SHARDS[0]][1:])
    site.stage(sources=[source, site.source])
    site.holds(NEEDED)
    assert site.hub.sent() == len(NEEDED[SHARDS[0]])


# What is in its place already


def test_only_what_is_missing_in_a_staged_model_comes_again(site: Site) -> None:
    site.stage()
    site.hub.clear()
    (site.path() / SHARDS[0]).unlink()
    with (site.path() / "tokenizer.json").open("r+b") as file:
        file.truncate(5)
    status = site.stage()
    site.holds(NEEDED)
    assert {entry["subject"].split("/", 2)[2] for entry in site.hub.requests if entry["subject"]} == {
        SHARDS[0],
        "tokenizer.json",
    }
    assert site.hub.sent() == len(NEEDED[SHARDS[0]]) + len(NEEDED["tokenizer.json"])
    assert [item["state"] for item in status["results"]] == ["mended"]


def test_what_lies_in_the_place_without_a_manifest_is_replaced(site: Site) -> None:
    put(site.path(), {**NEEDED, SHARDS[0]: b"damaged", "notes.txt": b"mine"})
    site.stage()
    site.holds(NEEDED)
    assert site.hub.sent() == len(NEEDED[SHARDS[0]]), "what was right there was not fetched again"


# It dies, and there are two of it


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_at_random_points_and_run_again(site: Site) -> None:
    total = sum(len(data) for data in NEEDED.values())
    site.hub.configure({"rate": total / 2})
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    there: set[str] = set()
    sent = kills = 0
    while kills < 4:
        process = site.start()
        enough = dice.uniform(0, total / 3)

        def far_enough() -> bool:
            return process.poll() is not None or site.hub.sent() > enough  # noqa: B023 - asked in this round only

        wait_until(far_enough, "bytes are on their way")
        kill(process)
        kills += 1
        if process.returncode == 0:
            break  # it was quicker
        site.hub.settle()
        site.shows_nothing()
        assert {path: site.hub.sent(path) for path in there} == dict.fromkeys(there, 0), seed
        sent += site.hub.sent()
        site.hub.clear()
        # What is in its place, or whole as a part, is not asked for again; the rest goes on where it stopped.
        parts = {path: size(site.staging() / (path + ".part")) for path in NEEDED}
        whole = [path for path, data in NEEDED.items() if parts[path] == len(data)]
        there = {*whole, *(path for path in NEEDED if (site.staging() / path).exists())}
    begun = {path: f"bytes={parts[path]}-" for path in NEEDED if path not in there and parts[path]}
    site.hub.configure({"rate": 0})
    finished(site.start())
    site.holds(NEEDED)
    assert {path: site.hub.sent(path) for path in there} == dict.fromkeys(there, 0), seed
    for path, begin in begun.items():
        asked = [entry["range"] for entry in site.hub.requests if entry["subject"].endswith(path)]
        assert set(asked) == {begin}, (seed, path)
    # Each kill loses, of each of four files that were coming, a piece and what the network held.
    assert sent + site.hub.sent() <= total + kills * 4 * 4 * LOSS, seed


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def another(site: Site) -> tuple[Site, subprocess.Popen]:
    """A second run for the same store, begun and waiting for the first."""
    other = Site(site.top, site.hub)
    other.status_file = site.top / "other.json"
    process = other.start()
    wait_until(lambda: "waiting" in other.doing() or ended(process), "the second one waits")
    return other, process


def test_two_at_once_fetch_once(site: Site) -> None:
    site.hub.fault("stall", SHARDS[0], after=MIB)
    first = site.start()
    wait_until(lambda: site.hub.stands() or ended(first), "the first one is in the middle of a file")
    other, second = another(site)
    site.hub.go_on()
    finished(first)
    finished(second)
    site.holds(NEEDED)
    site.fetched_once(NEEDED)
    assert [item["state"] for item in other.status()["results"]] == ["present"]


def test_one_takes_over_where_the_other_died(site: Site) -> None:
    site.hub.fault("stall", SHARDS[0], after=MIB)
    first = site.start()
    wait_until(lambda: site.hub.stands() or ended(first), "the first one is in the middle of a file")
    _other, second = another(site)
    kill(first)
    finished(second)
    site.holds(NEEDED)


def test_the_program_says_what_failed_and_shows_no_token(site: Site) -> None:
    put(site.root / "Org/Gated", NEEDED, gated=True)
    process = site.start(site.model("Org/Gated"), sources=[{**site.source, "token": TOKEN}])
    output, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert "gated" in errors
    assert "Traceback" not in errors
    assert TOKEN not in output + errors + site.status_file.read_text()


def test_it_ends_in_order_when_it_is_told_to(site: Site) -> None:
    total = sum(len(data) for data in NEEDED.values())
    site.hub.configure({"rate": total / HANGS})
    process = site.start()
    site.begun(process)
    process.terminate()
    process.communicate(timeout=HANGS)
    site.shows_nothing()
    assert site.hub.sent() < total / 2, "it did not wait for the rest"
    site.hub.configure({"rate": 0})
    site.stage()
    site.holds(NEEDED)


# The disk


@pytest.fixture
def disk(top: Path) -> Iterator[Path]:
    """A small disk: 12 MiB."""
    place = top / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def used(place: Path) -> int:
    state = os.statvfs(place)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


@contextlib.contextmanager
def in_the_middle(hub: Hub, deed: Callable[[], object]) -> Iterator[None]:
    """Do something when a shard is there and the next has begun; the download goes on afterwards."""

    def wait() -> None:
        wait_until(hub.stands, "a file has begun")
        try:
            deed()
        finally:
            hub.go_on()

    hub.fault("stall", "*.safetensors", after=MIB, skip=1)
    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize("reserve", [0, 6 * MIB])
def test_too_small_a_disk_is_known_before_anything_comes(site: Site, disk: Path, reserve: int) -> None:
    site.store = disk / "store"
    (disk / "filler").write_bytes(b"\0" * (0 if reserve else 8 * MIB))
    why = site.fails(reserve_bytes=reserve)
    assert "model_store_dir" in why
    assert "free" in why
    assert site.hub.sent() == 0
    site.shows_nothing()


def test_a_disk_that_gets_full_on_the_way_leaves_no_half_model(
    site: Site, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.store = disk / "store"
    filler = disk / "filler"

    def fill() -> None:
        state = os.statvfs(disk)
        with contextlib.suppress(OSError):  # full is what it shall be
            filler.write_bytes(b"\0" * max(0, state.f_bavail * state.f_frsize - MIB))

    read_without_clock(monkeypatch, patient=True)
    with in_the_middle(site.hub, fill):
        why = site.fails(workers=1)
    assert "no space left" in why.lower()
    assert "model_store_dir" in why
    site.shows_nothing()
    assert list(site.staging().rglob("*.part")) == []
    there = [path for path in NEEDED if (site.staging() / path).exists()]
    assert there
    filler.unlink()
    site.hub.clear()
    site.stage()
    site.holds(NEEDED)
    assert {path: site.hub.sent(path) for path in there} == dict.fromkeys(there, 0)


def test_the_reserve_is_kept_while_bytes_come(site: Site, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills the disk; what shall stay free stays free."""
    monkeypatch.setattr(store_fetch, "LOOK", 100_000)
    read_without_clock(monkeypatch, patient=True)
    site.store = disk / "store"
    before = used(disk)

    def fill() -> None:
        (disk / "filler").write_bytes(b"\0" * (4 * MIB))

    with in_the_middle(site.hub, fill):
        why = site.fails(workers=1, reserve_bytes=3 * MIB)
    assert "model_store_dir" in why
    site.shows_nothing()
    assert used(disk) - before <= 12 * MIB - 3 * MIB


def test_a_store_that_cannot_be_written_is_said(site: Site) -> None:
    site.store = site.top / "file"
    site.store.write_text("not a folder")
    with pytest.raises((OSError, store_stage.Failed), match="file"):
        site.stage()


class Told:
    """A module whose clock says what it is told to."""

    def __init__(self, module: Any, clock: Callable[[], float]) -> None:
        self.module, self.monotonic = module, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def test_a_source_that_drips_is_left_for_the_next(site: Site, second: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SHARDS[1]
    # A minute passes while it brings less than it should in a minute.
    late = store_fetch.SLOW[1] + 1
    monkeypatch.setattr(store_fetch, "time", Told(time, lambda: late if site.hub.sent(path) > 200_000 else 0.0))
    site.hub.fault("slow", path, times=None, rate=2e6)
    site.stage(sources=[site.source, {"type": "hub", "url": second.url}])
    site.holds(NEEDED)
    assert second.sent(path) > 0
    assert site.hub.sent(path) < store_fetch.SLOW[0], "it was not left in time"
