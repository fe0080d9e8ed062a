#!/usr/bin/env python3
"""What a setting of a CPU host does to a real engine: speeds with it and without it, as ratios. See README.md.

Each way to run the engine is started once and stays; they answer in turn, and those whose turn it is not are stopped
by a signal, so that all meet the same machine, however much its speed drifts. The model has the layers of a catalogue
entry, fewer of them, and random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
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

import yaml

ROOT = Path(__file__).resolve().parents[2]
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TICK = os.sysconf("SC_CLK_TCK")
#: Starts vLLM, in every process of it. vLLM asks PyTorch what the processor can do.
LAUNCHER = """
import torch
for name in %s:
    setattr(torch.cpu, f"_is_{name}_supported", lambda: False)
if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main
    main()
"""
#: By --isa: what PyTorch denies, and what tells oneDNN and PyTorch's own kernels, which look by themselves.
NEWER = ["avx512_bf16", "amx_tile", "vnni"]
HELD_BACK: dict[str, tuple[list[str], dict[str, str]]] = {
    "all": ([], {}),
    "avx512": (NEWER, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"}),
    "avx2": (["avx512", *NEWER], {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}),
}
#: A stand-in for a busy gateway: every 50 ms it computes for 15 ms, about a third of a core.
BUSY = """
import time
while True:
    end = time.monotonic() + 0.015
    while time.monotonic() < end:
        pass
    time.sleep(0.035)
"""
#: Ways to run the engine by name: env, flags, thp (what transparent_hugepage/enabled holds while it starts).
Way = dict[str, Any]


def ways(libraries: dict[str, str], cores: list[int]) -> dict[str, dict[str, Way]]:
    """What is compared with what; the first way of each comparison is what the others are divided by."""
    tcmalloc, iomp = libraries["tcmalloc"], libraries["iomp"]
    both = {"env": {"LD_PRELOAD": f"{tcmalloc}:{iomp}"}}
    all_cores, but_one = (",".join(map(str, part)) for part in (cores, cores[1:]))
    bound = [{"env": {**both["env"], "VLLM_CPU_OMP_THREADS_BIND": bind}} for bind in (all_cores, but_one)]
    return {
        "preload": {
            "neither": {},
            "tcmalloc": {"env": {"LD_PRELOAD": tcmalloc}},
            "iomp": {"env": {"LD_PRELOAD": iomp}},
            "both": both,
        },
        "hugepages": {
            "never": {**both, "thp": "never"},
            "madvise": {**both, "thp": "madvise"},
            "torch": {"env": {**both["env"], "THP_MEM_ALLOC_ENABLE": "1"}, "thp": "madvise"},
            "always": {**both, "thp": "always"},
        },
        "reserved": {
            "all cores": bound[0],
            "all but one": bound[1],
            "nobind": {"env": {**both["env"], "VLLM_CPU_OMP_THREADS_BIND": "nobind"}},
        },
        "dtype": {name: {**both, "flags": ["--dtype", name]} for name in ("bfloat16", "float32")},
    }


class Engine:
    """One engine, its processes and its speeds."""

    def __init__(self, name: str, way: Way, options: argparse.Namespace, folder: Path, port: int) -> None:
        self.name, self.port, self.model = name, port, str(folder)
        self.log = folder / f"{name.replace(' ', '-')}.log"
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            **HELD_BACK[options.isa][1],
            **way.get("env", {}),
        }
        launcher = folder / "launcher.py"
        launcher.write_text(LAUNCHER % HELD_BACK[options.isa][0], encoding="utf-8")
        command = [
            str(options.python), str(launcher), "serve", self.model, "--load-format", "dummy", "--host", "127.0.0.1",
            "--port", str(port), "--max-model-len", "4096", "--max-num-seqs", "4", "--dtype", "bfloat16",
            "--kv-cache-memory-bytes", str(1 << 29), "--no-enable-prefix-caching",
            "--enforce-eager", *way.get("flags", []),
        ]  # fmt: skip
        with self.log.open("wb") as log, huge_pages(way.get("thp")):
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
            try:
                self.wait()
                # Memory that is not touched yet comes as pages of the kind that is set now.
                self.ask(64, 2)
            except BaseException:
                self.end()
                raise

    def wait(self) -> None:
        """Until it serves."""
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} does not start:\n" + self.log.read_text(errors="replace")[-3000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.5)

    def ask(self, prompt: int, answer: int) -> float:
        """Seconds for so many tokens in and out."""
        # Nothing is asked twice.
        tokens = [random.randrange(100, 900) for _token in range(prompt)]
        body = {"model": self.model, "prompt": tokens, "max_tokens": answer, "ignore_eos": True, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        began = time.monotonic()
        urllib.request.urlopen(request, timeout=3600).read()
        return time.monotonic() - began

    def processes(self) -> list[str]:
        """Numbers of its processes: all of its session."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process.pid:
                    found.append(entry.name)
        return found

    def cpu(self) -> float:
        """CPU seconds of the processes that compute. Its scheduler waits awake, as long as they take."""
        total = 0
        for number in self.processes():
            name, _paren, rest = Path(f"/proc/{number}/stat").read_text().rpartition(")")
            if "VLLM::Worker" in name:
                fields = rest.split()
                total += int(fields[11]) + int(fields[12])
        return total / TICK

    def memory(self) -> dict[str, float]:
        """GiB: what it holds, and how much of that lies in huge pages."""
        found = {"Pss": 0, "AnonHugePages": 0}
        for number in self.processes():
            for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
                key = line.partition(":")[0]
                if key in found:
                    found[key] += int(line.split()[1])
        return {key: value / 2**20 for key, value in found.items()}

    def signal(self, number: int) -> None:
        """To all its processes."""
        os.killpg(self.process.pid, number)

    def turn(self, prompt: int, answer: int) -> dict[str, float]:
        """Tokens a second of a prompt and of an answer, by the clock and by the CPU time of what computes."""
        self.signal(signal.SIGCONT)
        # What the others pushed out of the caches is no part of it.
        self.ask(16, 2)
        marks = [self.cpu()]
        seconds = []
        for tokens in ((prompt, 1), (16, 1), (16, answer)):
            seconds.append(self.ask(*tokens))
            marks.append(self.cpu())
        self.signal(signal.SIGSTOP)
        used = [after - before for before, after in zip(marks, marks[1:])]
        return {
            "prefill": prompt / seconds[0],
            "decode": (answer - 1) / (seconds[2] - seconds[1]),
            "prefill by CPU time": prompt / used[0],
            "decode by CPU time": (answer - 1) / (used[2] - used[1]),
        }

    def end(self) -> None:
        """Nothing of it stays."""
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


@contextmanager
def huge_pages(mode: str | None) -> Iterator[None]:
    """The host's setting, for as long as an engine takes its memory."""
    before = THP.read_text().partition("[")[2].partition("]")[0] if mode else ""
    if mode:
        THP.write_text(mode)
    try:
        yield
    finally:
        if mode:
            THP.write_text(before)


@contextmanager
def load(count: int) -> Iterator[None]:
    """So many stand-ins for a busy gateway."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _number in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def make_model(entry: str, layers: int, folder: Path) -> None:
    """A catalogue entry's config.json with fewer layers, and a tokenizer that nobody needs."""
    for path in (ROOT / "catalog/models").glob("*.yml"):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if data["id"] == entry:
            break
    else:
        raise SystemExit(f"there is no {entry} in catalog/models")
    loopback = folder / "loopback"
    builder = ROOT / "roles/model_store/files/opt/modelhost/builders/loopback_model/build.py"
    subprocess.run([sys.executable, str(builder), str(loopback)], check=True, stdout=subprocess.DEVNULL)
    for path in loopback.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    config = {**data["config"], "num_hidden_layers": layers, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def report(engines: list[Engine], turns: dict[str, list[dict[str, float]]]) -> None:
    """Ratios to the first way: the median of those turn by turn with their range, and that of the best turns, which
    other work on the machine disturbed least."""
    base = turns[engines[0].name]
    for engine in engines:
        own, memory, words = turns[engine.name], engine.memory(), []
        for key in own[0]:
            ratios = sorted(one[key] / other[key] for one, other in zip(own, base))
            top = max(one[key] for one in own)
            words.append(
                f"{key:<19} {statistics.median(one[key] for one in own):8.2f} ×{statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f}–{ratios[-1]:.2f}), best {top:8.2f} ×{top / max(one[key] for one in base):.2f}"
            )
        words.append(f"{memory['Pss']:.1f} GiB, {memory['AnonHugePages']:.1f} in huge pages")
        print(f"{engine.name}:\n  " + "\n  ".join(words), flush=True)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("what", choices=sorted(ways({"tcmalloc": "", "iomp": ""}, [0])), help="what is compared")
    parser.add_argument("--python", type=Path, default=Path("/opt/modelhost/vllm/current/bin/python"), help="with vLLM")
    parser.add_argument("--model", default="qwen3-4b-instruct-2507", help="whose layers, an id of catalog/models")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=33, help="tokens of an answer")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", nargs="+", help="these ways alone")
    parser.add_argument("--load", type=int, default=0, help="stand-ins for a busy gateway, a third of a core each")
    parser.add_argument("--isa", choices=list(HELD_BACK), default="all", help="hold the engine back to these")
    parser.add_argument("--tcmalloc", default="/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")
    options = parser.parse_args()
    # Somebody who ends this ends its engines too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # A virtual environment keeps libiomp5 beside its Python; links are followed nowhere, or it would not be one.
    libraries = {"tcmalloc": options.tcmalloc, "iomp": str(options.python.parent.parent / "lib/libiomp5.so")}
    chosen = ways(libraries, sorted(os.sched_getaffinity(0)))[options.what]
    chosen = {name: way for name, way in chosen.items() if not options.only or name in options.only}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(options.model, options.layers, folder)
        engines: list[Engine] = []
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in chosen}
        try:
            for at, (way, settings) in enumerate(chosen.items()):
                engines.append(Engine(way, settings, options, folder, 18400 + at))
                engines[-1].signal(signal.SIGSTOP)
                print(f"{way} is up", file=sys.stderr)
            with load(options.load):
                for number in range(options.turns):
                    # Every other turn backwards, or one of them would always come after the same other.
                    for engine in engines if number % 2 == 0 else reversed(engines):
                        turns[engine.name].append(engine.turn(options.prompt, options.answer))
            report(engines, turns)
        finally:
            for engine in engines:
                engine.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
