"""A hub, a host's store and the program of roles/model_store between them, for tests."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "roles/model_store/files/opt/modelhost/model_store")]

from hub.server import Hub  # noqa: E402
from store import adopt, job, manifest, stage, status, verify  # noqa: E402

__all__ = ["REPO", "SHARDS", "World", "adopt", "job", "manifest", "stage", "verify"]

REPO = "Org/Some.Model"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


class World:
    """`hub` has one model. `places` are where the host is searched for copies, `sources` where it may download from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.content: dict[str, bytes] = {
            shard: random.Random(shard).randbytes(600_000 + number) for number, shard in enumerate(SHARDS)
        }
        weights = {f"layer.{number}": shard for number, shard in enumerate(SHARDS)}
        self.content["model.safetensors.index.json"] = json.dumps({"weight_map": weights}).encode()
        self.content["config.json"] = b'{"model_type": "qwen2"}\n'
        self.content["tokenizer.json"] = b'{"version": "1.0"}\n' * 50
        self.content["README.md"] = b"# A model\n"
        self.serve(REPO, self.content)
        self.hub = Hub(folder / "root")
        self.revision = self.hub.revision(REPO)
        self.places: list[str] = []
        #: What the hub lists of the model's files in place of the truth.
        self.lies: dict[str, Any] = {}
        self.sources: list[dict[str, Any]] = [{"type": "hub", "url": self.hub.url}]

    def serve(self, repo: str, content: dict[str, bytes]) -> None:
        for name, data in content.items():
            path = self.folder / "root" / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def __enter__(self) -> World:
        self.hub.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.hub.__exit__(*exception)

    @property
    def final(self) -> Path:
        """Where the model lies in the store."""
        return self.store / REPO / self.revision

    def job(self, **more: Any) -> dict[str, Any]:
        model = {"repo": REPO, "revision": self.revision, "id": "m"}
        wanted = {"store": str(self.store), "models": [model], "sources": self.sources, "adopt": self.places}
        path = self.folder / "job.json"
        path.write_text(json.dumps({**wanted, "retries": 0, "reserve_bytes": 0, **more}))
        found: dict[str, Any] = job.read(str(path))
        return found

    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.job()["models"][0]
        return found

    def run(self, command: str, **more: Any) -> dict[str, Any]:
        """`stage` or `verify`; what the status file says at the end, with the error of a job that failed."""
        path = self.folder / "status.json"
        self.hub.clear()
        if self.lies:
            self.hub.fault("listing", REPO, set=self.lies)
        state = status.Status(str(path), command)
        try:
            (stage.stage if command == "stage" else verify.verify)(self.job(**more), state)
        except (stage.Failed, job.JobError) as error:
            state.end("failed", str(error))
        else:
            state.end("done")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def fetched(self) -> list[str]:
        """Files of which the hub sent bytes in the last run, each once."""
        named = {request["subject"].split("/", 2)[2] for request in self.hub.requests if request.get("subject")}
        return sorted(name for name in named if self.hub.sent(f"{REPO}/{name}"))

    def whole(self) -> bool:
        """Whether the store has exactly the hub's files and a manifest that says so."""
        found = manifest.read(str(self.final))
        names = {path.name for path in self.final.iterdir()}
        return (
            found is not None
            and names == {*self.content, manifest.NAME}
            and all((self.final / name).read_bytes() == data for name, data in self.content.items())
            and not manifest.differences(str(self.final), found)
        )
