#!/usr/bin/env python3
"""Our program for staging weights against `hf download`, from the same throttled server, as ratios. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPO = "Bench/Model"
TICK = os.sysconf("SC_CLK_TCK")


def make(folder: Path, files: int, size: int) -> None:
    """A model: shards of random bytes and a few small files."""
    folder.mkdir(parents=True)
    for number in range(files):
        with (folder / f"model-{number + 1:05}-of-{files:05}.safetensors").open("wb") as handle:
            for begin in range(0, size, 1 << 24):
                handle.write(os.urandom(min(1 << 24, size - begin)))
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        (folder / name).write_text(json.dumps({"name": name}) + "\n")


class Server:
    """The local hub, in a process of its own."""

    def __init__(self, root: Path, rate: float) -> None:
        ports = []
        for _ in range(2):
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                ports.append(listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{ports[0]}"
        command = [sys.executable, str(ROOT / "tests/hub/server.py"), "--root", str(root), "--rate", str(rate)]
        self.process = subprocess.Popen(
            [*command, "--port", str(ports[0]), "--cdn-port", str(ports[1])], stdout=subprocess.DEVNULL
        )

    def ask(self, path: str, method: str = "GET") -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=120) as answer:
            return json.load(answer)

    def ready(self) -> str:
        """Wait until it answers; the model's revision."""
        while self.process.poll() is None:
            try:
                return self.ask("/_health")["repositories"][REPO]
            except urllib.error.URLError:
                time.sleep(0.2)  # it hashes the model before it listens
        raise SystemExit("the server ended")

    def cpu(self) -> float:
        """CPU seconds that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def serving(root: Path, rate: float) -> Iterator[Server]:
    server = Server(root, rate)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


class Bench:
    def __init__(self, top: Path, python: str, server: Server) -> None:
        self.top, self.python, self.server = top, python, server
        self.revision = server.ready()

    def command(self, way: str) -> list[str]:
        if way == "hf":
            hf = str(Path(self.python).parent / "hf")
            return [hf, "download", REPO, "--revision", self.revision, "--local-dir", str(self.top / "hf")]
        job = {
            "store": str(self.top / "ours"),
            "models": [{"id": "bench", "repo": REPO, "revision": self.revision}],
            "sources": [{"type": "hub", "url": self.server.url}],
            "adopt_mode": "never",
        }
        (self.top / "job.json").write_text(json.dumps(job))
        return [
            self.python,
            "-m",
            "store",
            "--status",
            str(self.top / "status.json"),
            "stage",
            str(self.top / "job.json"),
        ]

    def run(self, way: str) -> dict[str, float]:
        """One run: seconds, bytes of the model that came, CPU seconds of the program and of the server."""
        os.sync()  # what the last run left to be written is not this one's burden
        self.server.ask("/_requests", "DELETE")
        environment = {
            "PATH": os.environ["PATH"],
            "HF_ENDPOINT": self.server.url,
            "HF_HOME": str(self.top / "home"),
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        served, began = self.server.cpu(), time.monotonic()
        program = ROOT / "roles/model_store/files/opt/modelhost/model_store"
        process = subprocess.Popen(self.command(way), cwd=program, env=environment, stdout=subprocess.DEVNULL)
        _, state, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(state)
        if process.returncode:
            raise SystemExit(f"{way} failed")
        requests = self.server.ask("/_requests")["requests"]
        return {
            "seconds": seconds,
            "MB": sum(entry["sent"] for entry in requests if entry["status"] in (200, 206) and entry["subject"]) / 1e6,
            "requests": len(requests),
            "CPU": used.ru_utime + used.ru_stime,
            "server CPU": self.server.cpu() - served,
            "peak MB": used.ru_maxrss / 1e3,
        }


def show(title: str, found: dict[str, float]) -> None:
    print(f"{title:16}", "  ".join(f"{name} {value:8.2f}" for name, value in found.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=8, help="number of shards")
    parser.add_argument("--size", type=int, default=64, help="MiB of each")
    parser.add_argument("--rate", type=float, default=100, help="MB/s of the server for all together; 0: no limit")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs")
    parser.add_argument("--python", default=sys.executable, help="a Python with the pinned huggingface_hub")
    parser.add_argument("--folder", help="where to put the files (twice the model, three times while it runs)")
    given = parser.parse_args()
    ways = ["hf", "ours"]
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="weights-") as folder:
        top = Path(folder)
        make(top / "root" / REPO, given.files, given.size << 20)
        with serving(top / "root", given.rate * 1e6) as server:
            bench = Bench(top, given.python, server)
            print(f"{given.files} files of {given.size} MiB at {given.rate:g} MB/s")
            ratios = []
            for turn in range(given.runs):
                found = {}
                for way in ways if turn % 2 == 0 else ways[::-1]:
                    for place in (top / way, top / "home"):
                        shutil.rmtree(place, ignore_errors=True)
                    found[way] = bench.run(way)
                    show(way, found[way])
                    if way == "hf":
                        shutil.rmtree(top / "hf")
                ratios.append(found["ours"]["seconds"] / found["hf"]["seconds"])
                print(f"ours / hf: {ratios[-1]:.3f}")
            print(f"ours / hf: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
            show("ours again", bench.run("ours"))
            shutil.rmtree(top / "ours")
            bench.run("hf")
            show("hf again", bench.run("hf"))


if __name__ == "__main__":
    main()
