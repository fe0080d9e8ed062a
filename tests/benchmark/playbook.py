#!/usr/bin/env python3
"""What a run of site.yml costs on test hosts over SSH, beside another revision of this project. See README.md.

Both revisions run the demo's site: the first host is engine, gateway and client, all others are clients. Each has hosts
of its own, and they take turns, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path

import yaml
from playbook_report import KINDS, Cost, report, wrong

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".cache/benchmark"
#: The last revision before roles wrote their files in one task each.
BEFORE = "a1b12b1"
#: Growth of the download cache, in MiB, that shows that a run had to download.
DOWNLOADED = 1
#: What the shared download cache is called on a test host (playbooks/testbed_create.yml).
CACHE = "/srv/modelhost-testbed/uv"


def run(*command: str, text: str = "", cwd: Path = ROOT) -> str:
    """What a command of this machine says; its error ends the benchmark."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout.strip()


# --- revisions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Revision:
    """A checkout that can run its site.yml. `name` is its column and part of its hosts' names."""

    name: str
    root: Path
    commit: str

    @property
    def bin(self) -> Path:
        """Its own tools: ansible-core's release is part of a revision."""
        return self.root / ".cache/venv/bin"

    def hosts(self, count: int) -> list[str]:
        return [f"modelhost-benchmark-{self.name}-{number}" for number in range(1, count + 1)]

    def inventory(self, count: int) -> Path:
        """The demo's site of this revision on hosts that are reached over SSH."""
        folder = PLACE / f"inventory-{self.name}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "group_vars").mkdir(parents=True)
        # Its own variables: an older revision does not know newer ones.
        (folder / "group_vars/all.yml").symlink_to(self.root / "inventories/demo/group_vars/all.yml")
        (folder / "machine.py").symlink_to(self.root / "testbed/machine.py")
        names = self.hosts(count)
        options = ["-i", PLACE / "key", "-o", f"UserKnownHostsFile={PLACE / 'known_hosts'}"]
        common = {
            "ansible_user": "root",
            "ansible_ssh_common_args": shlex.join(map(str, [*options, "-o", "StrictHostKeyChecking=yes"])),
        }
        children = {
            "engines": {"hosts": {names[0]: {}}},
            "gateways": {"hosts": {names[0]: {}}},
            "clients": {"hosts": {name: {"ansible_host": address(name)} for name in names}},
        }
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": common, "children": children}}), "utf-8")
        return folder


def other_revision(wanted: str) -> Revision:
    """Its files below .cache/benchmark, with its own tools."""
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"--against {wanted}: this checkout knows no such revision. A shallow clone lacks old ones "
            "(git fetch --unshallow); `--against none` measures this revision alone."
        )
    commit = done.stdout.strip()
    root = PLACE / commit
    if not (root / ".complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(root, filter="tar")
        (root / ".complete").touch()
    # `./run` of that revision makes its tools.
    run("./run", "ansible-playbook", "--version", cwd=root)
    return Revision(commit[:7], root, commit)


def this_revision() -> Revision:
    """The files as they are now, changed ones too."""
    commit = run("git", "rev-parse", "HEAD")
    changed = " with changes" if run("git", "status", "--porcelain", "--untracked-files=no") else ""
    return Revision("this", ROOT, commit + changed)


# --- hosts -------------------------------------------------------------------------------------------------------


def address(name: str) -> str:
    """Where a host answers: its address on Docker's own network."""
    return run("docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)


def make(names: list[str]) -> None:
    """Fresh hosts with an SSH server that knows our throw-away key. All come from this revision's test bed."""
    remove(names)
    inventory = PLACE / "testbed"
    shutil.rmtree(inventory, ignore_errors=True)
    inventory.mkdir(parents=True)
    (inventory / "machine.py").symlink_to(ROOT / "testbed/machine.py")
    settings = {
        "ansible_connection": "community.docker.docker",
        "testbed_name": "benchmark",
        "testbed_packages": ["openssh-server"],
        # The demo's client account.
        "testbed_accounts": ["dev"],
    }
    hosts = {"hosts": {name: {} for name in names}, "vars": settings}
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"testbed": hosts}), "utf-8")
    run(str(ROOT / ".cache/venv/bin/ansible-playbook"), "-i", str(inventory), "playbooks/testbed_create.yml")
    key = (PLACE / "key.pub").read_text("utf-8")
    with (PLACE / "known_hosts").open("a", encoding="utf-8") as known:
        for name in names:
            script = "umask 077; mkdir -p /root/.ssh && cat >/root/.ssh/authorized_keys && systemctl start ssh"
            run("docker", "exec", "-i", name, "sh", "-c", script, text=key)
            for public in ("rsa", "ecdsa", "ed25519"):
                shown = run("docker", "exec", name, "cat", f"/etc/ssh/ssh_host_{public}_key.pub").split()
                known.write(f"{address(name)} {shown[0]} {shown[1]}\n")


def remove(names: list[str]) -> None:
    """With their volumes; those that are not there are no mistake."""
    run("docker", "rm", "--force", "--volumes", *names)


def cached(name: str) -> int:
    """MiB in the download cache that all test hosts share."""
    return int(run("docker", "exec", name, "du", "-sm", CACHE).split()[0])


# --- runs --------------------------------------------------------------------------------------------------------


@contextmanager
def connections() -> Iterator[str]:
    """A folder for SSH's shared connections: each run makes its own, as a run on another day does."""
    # Not below the checkout: a socket's path has room for 107 characters.
    with tempfile.TemporaryDirectory(prefix="mhb-") as folder:
        yield folder
        for socket in Path(folder).iterdir():
            subprocess.run(
                ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "host"], capture_output=True, check=False
            )


def measure(side: Revision, count: int, kind: str, turn: int) -> Cost:
    """One run of its site.yml."""
    log = ROOT / f".cache/logs/benchmark-{side.name}-{count}-{kind}-{turn}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(side.bin / "ansible-playbook"), "-i", str(side.inventory(count)), "site.yml"]
    command += ["--check"] if kind == "check" else []
    with connections() as sockets, tempfile.TemporaryDirectory() as counted:
        environment = {
            **os.environ,
            "PATH": f"{side.bin}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(side.bin.parent),
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "testbed/callback"),
            "MODELHOST_EXECUTIONS": counted,
            "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
        }
        os.sync()  # What was left to be written is not this run's burden.
        with log.open("wb") as out:
            began = time.monotonic()
            process = subprocess.Popen(
                command, cwd=side.root, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
            try:
                _, state, used = os.wait4(process.pid, 0)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(state)
        found = [json.loads(path.read_text("utf-8")) for path in Path(counted).glob("*.json")]
    reason = f"exit code {process.returncode}" if process.returncode or len(found) != 1 else wrong(kind, found[0])
    if reason:
        last = log.read_text("utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{last}\n{side.name}, {count} hosts, {kind}: {reason}. All of its output: {log}")
    cost = Cost(side.name, count, kind, turn, seconds, used.ru_utime + used.ru_stime, found[0])
    print(
        f"    {side.name:8} {count} hosts  {kind:10} {cost.executions:5} executions {seconds:7.1f} s"
        f" {cost.cpu:7.1f} s of CPU",
        flush=True,
    )
    return cost


def first_run(side: Revision, count: int) -> Cost:
    """On fresh hosts. One that had to download filled the cache: it is done once more."""
    names = side.hosts(count)
    for _try in range(2):
        make(names)
        before = cached(names[0])
        cost = measure(side, count, "first", 0)
        grown = cached(names[0]) - before
        if grown <= DOWNLOADED:
            return cost
        print(f"    the download cache grew by {grown} MiB: this was no run from a warm cache", flush=True)
    raise SystemExit(f"{side.name}: the download cache grows with each first run; look at {CACHE} on {names[0]}")


def measure_all(sides: list[Revision], counts: list[int], kinds: list[str], turns: int) -> list[Cost]:
    """For each number of hosts: fresh hosts for each side, then the sides in turn, every other time backwards."""
    costs = []
    for count in counts:
        try:
            firsts = [first_run(side, count) for side in sides]
            costs += firsts if "first" in kinds else []
            for kind in (kind for kind in kinds if kind != "first"):
                for turn in range(turns):
                    for side in sides if turn % 2 == 0 else sides[::-1]:
                        costs.append(measure(side, count, kind, turn))
        finally:
            remove([name for side in sides for name in side.hosts(count)])
    return costs


# --- command line ------------------------------------------------------------------------------------------------


def numbers(text: str) -> list[int]:
    """1,2,4 as numbers of hosts."""
    found = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if not all(1 <= number <= 50 for number in found):
        raise argparse.ArgumentTypeError(f"{text}: say how many hosts, from 1 to 50, for example 1,2")
    return sorted(set(found))


def words(text: str) -> list[str]:
    """no-change,check as kinds of runs."""
    found = text.split(",")
    for word in found:
        if word not in KINDS:
            raise argparse.ArgumentTypeError(f"{word}: there is no such run; there are {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in found]


def times(text: str) -> int:
    """How often."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: say how often, 1 or more")
    return int(text)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="./run benchmark playbook", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--hosts", type=numbers, default=[1, 2, 4, 8], help="numbers of hosts (1,2,4,8)")
    parser.add_argument("--only", type=words, default=list(KINDS), help=f"kinds of runs ({','.join(KINDS)})")
    parser.add_argument("--runs", type=times, default=3, help="how often each run is measured, the first one once (3)")
    parser.add_argument("--against", default=BEFORE, help=f"the other revision ({BEFORE}), or none")
    return parser.parse_args(given)


def memory() -> float:
    """GiB of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def main() -> int:
    """Entry point."""
    given = arguments()
    # Hosts go away also when somebody ends this.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sides = [this_revision()]
    if given.against != "none":
        sides.append(other_revision(given.against))
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in ("key", "key.pub", "known_hosts"):
        (PLACE / name).unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "modelhost-benchmark", "-f", str(PLACE / "key"))
    when = datetime.now(timezone.utc)
    costs = measure_all(sides, given.hosts, given.only, given.runs)
    told = (
        f"{when:%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores ({platform.machine()}), {memory():.0f} GiB, load "
        f"{os.getloadavg()[2]:.1f} over the last 15 minutes; `./run benchmark playbook {shlex.join(sys.argv[1:])}`; "
        + ", ".join(f"{side.name} = {side.commit[:7]}{side.commit[40:]}" for side in sides)
    )
    text = report(costs, [side.name for side in sides], told)
    stem = PLACE / f"playbook-{when:%Y%m%dT%H%M%S}"
    stem.with_suffix(".md").write_text(text, "utf-8")
    data = {"about": told, "revisions": {side.name: side.commit for side in sides}, "costs": [asdict(c) for c in costs]}
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1), "utf-8")
    print(f"\n{text}\n{stem.relative_to(ROOT)}.md and .json hold this.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
