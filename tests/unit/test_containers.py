"""Containers: how they are chosen, what follows `docker run`, the supervisor, pulling, loading."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.action.container_image import refusal
from ansible_collections.modelhost.serving.plugins.module_utils import (
    catalog,
    containers,
    containers_validation,
    runtime,
    vllm_flags,
)
from patience import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "roles/host_base/files/opt/modelhost/bin"
DIGEST = "sha256:" + "0123456789abcdef" * 4

# --- which runtime -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "engine", "gateway"),
    [
        ({}, "venv", "venv"),
        ({"glibc": "2.39", "systemd": "255"}, "venv", "venv"),
        ({"glibc": "2.36", "systemd": "252"}, "venv", "venv"),
        # Ubuntu 20.04: the gateway's builds would run, its unit would not.
        ({"glibc": "2.31", "systemd": "245"}, "docker", "docker"),
        # Debian 11
        ({"glibc": "2.31", "systemd": "247"}, "docker", "venv"),
        ({"glibc": "2.27", "systemd": "237"}, "docker", "docker"),
        # Another C library
        ({"glibc": "", "systemd": "255"}, "docker", "docker"),
    ],
)
def test_auto_takes_the_virtual_environment_where_it_can_run(facts: dict[str, str], engine: str, gateway: str) -> None:
    variables = {"vllm_instances": [{"name": "coder", "model": "loopback"}]}
    assert runtime.of_engines(facts, variables) == {"coder": engine}
    assert runtime.of_gateway(facts, variables) == gateway


def test_what_an_instance_says_wins_over_the_host() -> None:
    instances = [{"name": "a"}, {"name": "b", "runtime": "venv"}]
    variables: dict[str, Any] = {"vllm_runtime": "docker", "vllm_instances": instances}
    assert runtime.of_engines({}, variables) == {"a": "docker", "b": "venv"}
    variables = {"vllm_runtime": "docker", "vllm_instances": [{"name": "a", "runtime": "auto"}]}
    assert runtime.of_engines({"glibc": "2.39"}, variables) == {"a": "venv"}


@pytest.mark.parametrize(
    ("variables", "groups", "expected"),
    [
        ({}, {"engines": ["box"]}, {"docker": False, "nvidia": False}),
        ({"vllm_runtime": "docker"}, {"engines": ["box"]}, {"docker": True, "nvidia": True}),
        # A host that runs no engine needs nothing for one.
        ({"vllm_runtime": "docker"}, {"engines": []}, {"docker": False, "nvidia": False}),
        ({"litellm_runtime": "docker"}, {"gateways": ["box"]}, {"docker": True, "nvidia": False}),
        ({"vllm_runtime": "docker", "vllm_variant": "cpu"}, {"engines": ["box"]}, {"docker": True, "nvidia": False}),
    ],
)
def test_what_containers_need(
    variables: dict[str, Any], groups: dict[str, list[str]], expected: dict[str, bool]
) -> None:
    facts = {"glibc": "2.39", "systemd": "255", "nvidia_devices": 4}
    variables = {**variables, "host_preflight_probe": facts, "vllm_instances": [{"name": "coder"}]}
    assert runtime.needs(variables, "box", groups) == expected


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("infinity", 0), ("24G", 24 * 2**30), ("1.5G", 3 * 2**29), ("50%", 32 * 2**30), ("512", 512), ("", 0)],
)
def test_memory_limits(text: str, expected: int) -> None:
    assert containers.memory_bytes(text, 64 * 2**30) == expected


def test_paths_that_flags_name() -> None:
    flags = {
        "chat_template": "/srv/a.jinja",
        "lora_modules": ["one=/srv/lora", {"name": "two", "path": "/srv/two"}],
        "served_model_name": ["coder"],
        "max_model_len": 65536,
        "hf_overrides": {"rope_parameters": {"factor": 4.0}},
        "again": "/srv/a.jinja",
    }
    assert containers.paths_in(flags.values()) == ["/srv/a.jinja", "/srv/lora", "/srv/two"]


def effective(instance: dict[str, Any], kind: str = "docker", **options: Any) -> dict[str, Any]:
    """An item as the role makes it."""
    return vllm_flags.effective_instances(
        [instance],
        catalog.entries([]),
        "0.32.0",
        environment={"HF_HUB_OFFLINE": "1", "HOME": "/var/lib/modelhost/vllm"},
        release_environment={"PATH": "/opt/modelhost/vllm/current/bin", "LD_PRELOAD": "/usr/lib/x.so"},
        runtimes={instance["name"]: kind},
        **options,
    )[0]


SETTINGS = {
    "variant": "cpu",
    "wsl": False,
    "memory_max": "infinity",
    "memory_total": 64 * 2**30,
    "stop_timeout": 60,
    "state_dir": "/var/lib/modelhost/vllm",
    "cache_dir": "/var/cache/modelhost/vllm",
}


def values_of(line: list[str], option: str) -> list[str]:
    """What an option is given, each time that it stands there."""
    return [line[at + 1] for at, word in enumerate(line) if word == option]


def test_an_engine_gets_the_same_flags_and_no_more_rights_than_said() -> None:
    instance = {"name": "coder", "model": "qwen2.5-coder-32b-instruct", "port": 8001}
    item = effective(instance, accepted_dir="/etc/modelhost/vllm/accepted")
    line = containers.engine(item, DIGEST, SETTINGS)
    at = line.index(DIGEST)
    assert line[at + 1 :] == ["serve", *effective(instance, "venv")["argv"]]
    assert values_of(line, "--network") == ["host"]
    assert values_of(line, "--cap-drop") == ["ALL"]
    assert values_of(line, "--cap-add") == ["SYS_NICE"]
    assert values_of(line, "--security-opt") == ["no-new-privileges"]
    assert "--read-only" in line
    assert "--privileged" not in line
    assert values_of(line, "--label") == ["modelhost.unit=vllm@coder.service"]
    assert values_of(line, "--shm-size") == [str(32 * 2**30)]
    mounts = values_of(line, "--mount")
    assert f"type=bind,source={item['model_path']},target={item['model_path']},readonly" in mounts
    assert [mount for mount in mounts if not mount.endswith(",readonly")] == [
        "type=bind,source=/var/lib/modelhost/vllm,target=/var/lib/modelhost/vllm",
        "type=bind,source=/var/cache/modelhost/vllm,target=/var/cache/modelhost/vllm",
    ]
    # Our template and parser of this model, and the guard.
    assert sum("/opt/modelhost/vllm/share/" in mount for mount in mounts) == 3
    # The folder and not the file, which is replaced when keys are exchanged.
    accepted = "/etc/modelhost/vllm/accepted/coder"
    assert f"type=bind,source={accepted},target={accepted},readonly" in mounts


def test_files_that_the_environment_names_are_there_to_read() -> None:
    environment = {"TIKTOKEN_ENCODINGS_BASE": "/srv/harmony", "VLLM_CACHE_ROOT": "/var/cache/modelhost/vllm"}
    item = effective({"name": "coder", "model": "loopback", "environment": environment})
    mounts = values_of(containers.engine(item, DIGEST, SETTINGS), "--mount")
    assert "type=bind,source=/srv/harmony,target=/srv/harmony,readonly" in mounts
    assert len([mount for mount in mounts if "/var/cache/modelhost/vllm" in mount]) == 1


def test_values_of_variables_stand_on_no_command_line() -> None:
    item = effective({"name": "coder", "model": "loopback", "environment": {"SOME_TOKEN": "s3cret"}})
    line = containers.engine(item, DIGEST, SETTINGS)
    assert not [word for word in line if "s3cret" in word]
    assert {"VLLM_API_KEY", "SOME_TOKEN", "HF_HUB_OFFLINE"} <= set(values_of(line, "--env"))


def test_what_names_a_release_stays_out_of_an_image() -> None:
    assert "PATH" in effective({"name": "coder", "model": "loopback"}, "venv")["environment"]
    assert not {"PATH", "LD_PRELOAD"} & effective({"name": "coder", "model": "loopback"})["environment"].keys()


def test_gpus_by_cdi() -> None:
    settings = {**SETTINGS, "variant": "cuda"}
    item = effective({"name": "coder", "model": "loopback", "devices": [2, 3]})
    line = containers.engine(item, DIGEST, settings)
    assert values_of(line, "--device") == ["nvidia.com/gpu=2", "nvidia.com/gpu=3"]
    assert "CUDA_VISIBLE_DEVICES" not in values_of(line, "--env")
    assert values_of(line, "--cap-add") == []
    line = containers.engine(effective({"name": "coder", "model": "loopback"}), DIGEST, settings)
    assert values_of(line, "--device") == ["nvidia.com/gpu=all"]
    # Windows hands over all of its GPUs as one device; which are used is said as elsewhere.
    line = containers.engine(item, DIGEST, {**settings, "wsl": True})
    assert values_of(line, "--device") == ["nvidia.com/gpu=all"]
    assert "CUDA_VISIBLE_DEVICES" in values_of(line, "--env")


def test_a_memory_limit_has_no_swap_beside_it() -> None:
    item = effective({"name": "coder", "model": "loopback"})
    line = containers.engine(item, DIGEST, {**SETTINGS, "memory_max": "24G"})
    assert values_of(line, "--memory") == values_of(line, "--memory-swap") == [str(24 * 2**30)]


def test_the_gateway_sees_no_users_key() -> None:
    settings = {
        "unit": "litellm@main.service",
        "memory_max": "4G",
        "memory_total": 0,
        "stop_timeout": 60,
        "state_dir": "/var/lib/modelhost/litellm",
        "lib_dir": "/opt/modelhost/litellm/lib",
        "config_dir": "/etc/modelhost/litellm",
        "keys_dir": "/etc/modelhost/litellm/keys",
        "environment": {"PYTHONPATH": "/opt/modelhost/litellm/lib"},
        "hidden": ["LITELLM_MASTER_KEY", "BACKEND_KEY_BOX"],
    }
    line = containers.gateway(settings, DIGEST)
    assert line[-3:] == ["--entrypoint", "litellm", DIGEST]
    assert "type=tmpfs,target=/etc/modelhost/litellm/keys,tmpfs-mode=0000,tmpfs-size=4096" in values_of(line, "--mount")
    assert {"LITELLM_MASTER_KEY", "BACKEND_KEY_BOX", "PYTHONPATH"} == set(values_of(line, "--env"))
    assert values_of(line, "--cap-add") == []


# --- what inventories say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "place", "words"),
    [
        ({"vllm_image": "vllm/vllm-openai:v0.32.0"}, "vllm_image", "set vllm/vllm-openai@sha256:"),
        ({"vllm_image": "harbor.lan:5000/vllm"}, "vllm_image", "set harbor.lan:5000/vllm@sha256:"),
        (
            {"vllm_image_archive": "/nowhere/x.tar", "vllm_image_archive_remote_src": True},
            "vllm_image_archive_sha256",
            "sha256sum /nowhere/x.tar",
        ),
        (
            {"vllm_image_archive": "/nowhere/x.tar", "vllm_image_archive_sha256": "a" * 64},
            "vllm_image_archive",
            "the controller has no such file",
        ),
        ({"vllm_runtime": "docker"}, "vllm_runtime", "./run pins --write"),
        ({"litellm_runtime": "docker"}, "litellm_runtime", "set litellm_image: ghcr.io/berriai/litellm@sha256:"),
    ],
)
def test_images_that_nothing_pins_are_refused(variables: dict[str, Any], place: str, words: str) -> None:
    variables = {"vllm_instances": [{"name": "coder", "model": "loopback"}], **variables}
    pins = {
        "image_cpu": "docker.io/vllm/vllm-openai-cpu@unverified",
        "image_cuda": "docker.io/vllm/vllm-openai@unverified",
        "image_litellm": "ghcr.io/berriai/litellm@unverified",
    }
    found = containers_validation.problems("box", variables, {"engines": ["box"], "gateways": ["box"]}, pins)
    assert [item["variable"] for item in found] == [place]
    assert words in found[0]["problem"] + found[0]["fix"]


@pytest.mark.parametrize(
    "variables",
    [
        {"vllm_image": f"docker.io/vllm/vllm-openai@{DIGEST}"},
        {"vllm_image": DIGEST},
        {"vllm_runtime": "docker", "vllm_image": f"harbor.lan/vllm:v0.32.0@{DIGEST}"},
        {
            "vllm_image_archive": "/srv/x.tar",
            "vllm_image_archive_sha256": "A" * 64,
            "vllm_image_archive_remote_src": True,
        },
        {"vllm_runtime": "venv"},
    ],
)
def test_pinned_images_pass(variables: dict[str, Any]) -> None:
    variables = {"vllm_instances": [{"name": "coder", "model": "loopback"}], **variables}
    pins = {"image_cpu": "x@unverified", "image_cuda": "y@unverified"}
    assert containers_validation.problems("box", variables, {"engines": ["box"]}, pins) == []


def test_auto_is_judged_when_the_host_is_known() -> None:
    variables = {"vllm_instances": [{"name": "coder", "model": "loopback"}]}
    pins, groups = {"image_cpu": "x@unverified", "image_cuda": f"y@{DIGEST}"}, {"engines": ["box"]}
    assert containers_validation.problems("box", variables, groups, pins) == []
    old = {"glibc": "2.31", "systemd": "245", "nvidia_driver": "", "nvidia_devices": 0}
    found = containers_validation.problems("box", variables, groups, pins, old)
    assert [item["variable"] for item in found] == ["vllm_runtime"]
    assert containers_validation.problems("box", variables, groups, pins, {**old, "nvidia_driver": "580.95.05"}) == []


# --- the supervisor ----------------------------------------------------------------------------------------------

FAKE_DOCKER = """#!/usr/bin/env python3
# Stands in for the docker command: a container is a process, the daemon is up unless the file `down` is there.
import json, os, subprocess, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
def path(name): return os.path.join(folder, name)
with open(path("calls"), "a") as handle: handle.write(json.dumps(sys.argv[1:]) + "\\n")
if os.path.exists(path("down")): sys.exit("Cannot connect to the Docker daemon")
verb = sys.argv[1]
if verb == "run":
    if os.path.exists(path("refuse")): sys.exit("no such image")
    child = subprocess.Popen(["sh", path("program")], stdout=open(path("log"), "w"), stderr=subprocess.STDOUT,
                             start_new_session=True)
    open(path("pid"), "w").write(str(child.pid))
    if os.fork() == 0:
        code = child.wait()
        os._exit(0)
    print("0123")
elif verb == "inspect":
    if "{{.State.Pid}}" in sys.argv: print(open(path("pid")).read())
    else: print(open(path("code")).read() if os.path.exists(path("code")) else "0 false ")
elif verb == "logs":
    shown = 0
    while True:
        text = open(path("log")).read()
        sys.stdout.write(text[shown:]); sys.stdout.flush(); shown = len(text)
        if os.path.exists(path("down")): sys.exit(1)
        try: os.kill(int(open(path("pid")).read()), 0)
        except OSError: break
        time.sleep(0.05)  # clock: between two looks
"""


class Supervised:
    """run-container with a docker command that stands in."""

    def __init__(self, folder: Path, program: str, patience: float) -> None:
        self.folder = folder
        (folder / "docker").write_text(FAKE_DOCKER)
        (folder / "docker").chmod(0o755)
        (folder / "program").write_text(program)
        text = (BIN / "run-container").read_text().replace("/usr/bin/docker", str(folder / "docker"))
        for name, seconds in {"RETRY": 0.1, "INTERVAL": 0.05, "PATIENCE": patience}.items():
            text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {seconds}", text)
            assert count == 1, name
        (folder / "run-container").write_text(text)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """Begin, with root as the account because it is everywhere."""
        command = [sys.executable, str(self.folder / "run-container"), "vllm-coder", "root", "image", "serve"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return self.process

    def calls(self) -> list[list[str]]:
        """What docker was asked."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def asked_again(self, times: int = 3) -> None:
        """Until it has looked for the daemon, or at its output, a few times more."""
        before = len(self.calls())

        def asked() -> bool:
            made = self.calls()[before:]
            up = not (self.folder / "down").exists()
            return len(made) >= times or (up and "logs" in [call[0] for call in made])

        wait_until(asked, lambda: str(self.calls()))

    def wait_for(self, name: str) -> None:
        """Until a file is there and not empty."""
        wait_until(lambda: (self.folder / name).exists() and (self.folder / name).read_text(), name)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Any]:
    made: list[Supervised] = []

    def make(program: str, patience: float = HANGS) -> Supervised:
        made.append(Supervised(tmp_path, program, patience))
        return made[-1]

    yield make
    for item in made:
        if item.process and item.process.poll() is None:
            item.process.kill()
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int((item.folder / "pid").read_text()), signal.SIGKILL)


def test_a_container_that_ends_ends_the_unit_with_its_status(supervised: Any) -> None:
    item = supervised("echo loading; exit 3")
    (item.folder / "code").write_text("3 false ")
    process = item.start()
    out, _err = process.communicate(timeout=HANGS)
    assert process.returncode == 3
    assert "loading" in out
    verbs = [call[0] for call in item.calls()]
    assert verbs.index("rm") < verbs.index("run"), "what a crash left is in the way"
    assert verbs[-1] == "rm"
    run = next(call for call in item.calls() if call[0] == "run")
    assert run == ["run", "--detach", "--name", "vllm-coder", "--user", "0:0", "image", "serve"]


def test_a_stop_reaches_the_container_and_is_no_fault(supervised: Any) -> None:
    item = supervised("trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    (item.folder / "code").write_text("143 false ")
    process = item.start()
    item.wait_for("log")
    process.send_signal(signal.SIGTERM)
    out, _err = process.communicate(timeout=HANGS)
    assert process.returncode == 0
    assert "drained" in out


def test_a_restart_of_the_daemon_leaves_the_unit_running(supervised: Any) -> None:
    item = supervised("echo up; while [ ! -e $0.end ]; do sleep 0.05; done; echo bye")
    process = item.start()
    item.wait_for("log")
    (item.folder / "down").touch()
    item.asked_again()
    assert process.poll() is None
    (item.folder / "down").unlink()
    item.asked_again()
    (item.folder / "program.end").touch()
    out, _err = process.communicate(timeout=HANGS)
    assert process.returncode == 0
    assert out.count("bye") == 1


def test_a_refused_container_and_an_absent_daemon_say_why(supervised: Any) -> None:
    item = supervised("exit 0", patience=1)
    (item.folder / "refuse").touch()
    out, _err = item.start().communicate(timeout=HANGS)
    assert "no such image" in out
    (item.folder / "down").touch()
    process = item.start()
    out, _err = process.communicate(timeout=HANGS)
    assert "the Docker daemon does not answer: Cannot connect" in out
    assert process.returncode == 1


def test_the_memory_limit_is_named_where_it_was_the_cause(supervised: Any) -> None:
    item = supervised("exit 137")
    (item.folder / "code").write_text("137 true ")
    process = item.start()
    out, _err = process.communicate(timeout=HANGS)
    assert "its memory limit was reached" in out
    assert process.returncode == 137


# --- pulling -----------------------------------------------------------------------------------------------------


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Docker's API for one request, on a socket of its own."""

    daemon_threads = True
    answer: tuple[int, list[dict[str, Any]]] = (200, [])
    asked: list[tuple[str, str]]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a pull."""

    server: Daemon

    def do_POST(self) -> None:
        """Tell what was prepared."""
        self.server.asked.append((self.path, self.headers.get("X-Registry-Auth", "")))
        status, events = self.server.answer
        body = "".join(json.dumps(event) + "\r\n" for event in events).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Nothing."""

    def address_string(self) -> str:
        """A Unix socket has none."""
        return ""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    server = Daemon(str(tmp_path / "docker.sock"), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pull(daemon: Daemon, reference: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program against the daemon that stands in."""
    settings = {"MODELHOST_DOCKER_SOCKET": str(daemon.server_address), "MODELHOST_PULL_INTERVAL": "0", **environment}
    command = [sys.executable, str(BIN / "pull-image"), reference]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)


def test_a_pull_tells_bytes(daemon: Daemon) -> None:
    half, whole = 512 * 2**20, 2**30
    daemon.answer = (
        200,
        [
            {"status": "Pulling from vllm/vllm-openai", "id": DIGEST},
            {"status": "Pulling fs layer", "progressDetail": {}, "id": "aaa"},
            {"status": "Pulling fs layer", "progressDetail": {}, "id": "bbb"},
            {"status": "Downloading", "progressDetail": {"current": half, "total": whole}, "id": "aaa"},
            {"status": "Download complete", "id": "aaa"},
            {"status": "Downloading", "progressDetail": {"current": half, "total": half}, "id": "bbb"},
            {"status": "Pull complete", "id": "aaa"},
            {"status": "Pull complete", "id": "bbb"},
            {"status": f"Digest: {DIGEST}"},
        ],
    )
    done = pull(daemon, f"docker.io/vllm/vllm-openai@{DIGEST}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "512 MiB of 1.0 GiB known so far; 0 of 2 layers complete" in done.stdout
    assert done.stdout.splitlines()[-1] == "1.5 GiB of 1.5 GiB; 2 of 2 layers complete"
    assert daemon.asked[0][0] == (
        "/images/create?fromImage=docker.io%2Fvllm%2Fvllm-openai&tag=" + DIGEST.replace(":", "%3A")
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, [{"message": "no basic auth credentials"}]), "no basic auth credentials"),
        ((200, [{"errorDetail": {"message": "x"}, "error": "toomanyrequests: rate limit"}]), "toomanyrequests"),
    ],
)
def test_a_refused_pull_says_what_the_daemon_said(daemon: Daemon, answer: Any, words: str) -> None:
    daemon.answer = answer
    done = pull(daemon, f"vllm/vllm-openai@{DIGEST}")
    assert done.returncode == 1
    assert words in done.stdout


def test_a_login_of_roots_is_used(daemon: Daemon, tmp_path: Path) -> None:
    text = (BIN / "pull-image").read_text().replace('os.path.expanduser("~root/.docker/config.json")', "sys.argv.pop()")
    (tmp_path / "pull-image").write_text(text)
    auth = base64.b64encode(b"robot:s3cret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"harbor.lan:5000": {"auth": auth}}}))
    environment = {**os.environ, "MODELHOST_DOCKER_SOCKET": str(daemon.server_address)}
    reference = f"harbor.lan:5000/vllm@{DIGEST}"
    command = [sys.executable, str(tmp_path / "pull-image"), reference, str(tmp_path / "config.json")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    told = json.loads(base64.urlsafe_b64decode(daemon.asked[0][1]))
    assert told == {"username": "robot", "password": "s3cret", "serveraddress": "harbor.lan:5000"}


# --- the module --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "archive", "checksum", "words"),
    [
        ("", "", "", "neither"),
        ("vllm/vllm-openai:v0.32.0", "", "", "names no digest"),
        (f"vllm/vllm-openai@{DIGEST}", "/x.tar", "a" * 64, ""),
        ("vllm/vllm-openai:v0.32.0", "/x.tar", "a" * 64, "names no digest"),
        ("", "/x.tar", "", "needs `archive_sha256`"),
        ("", "/x.tar", "a" * 64, ""),
        (DIGEST, "", "", ""),
    ],
)
def test_what_the_action_refuses(image: str, archive: str, checksum: str, words: str) -> None:
    said = refusal(image, archive, checksum)
    assert words in said
    assert bool(words) == bool(said)


LOADING_DOCKER = """#!/usr/bin/env python3
import os, sys
folder = os.path.dirname(os.path.abspath(__file__))
have = os.path.join(folder, "have")
if sys.argv[1] == "load":
    sys.stdin.buffer.read()
    open(have, "w").write("x")
    print(open(os.path.join(folder, "says")).read())
elif sys.argv[1:3] == ["image", "inspect"]:
    if not os.path.exists(have): sys.exit(1)
    print("sha256:" + "b" * 64)
"""


def load(tmp_path: Path, says: str, checksum: str = "", docker: str = LOADING_DOCKER, **more: Any) -> dict[str, Any]:
    """Run the module's `load` with a docker command that stands in."""
    (tmp_path / "docker").write_text(docker)
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "says").write_text(says)
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"layers")
    wanted = checksum or hashlib.sha256(b"layers").hexdigest()
    source = (ROOT / "plugins" / "modules" / "container_image.py").read_text()
    module = tmp_path / "container_image.py"
    module.write_text(source.replace("/var/lib/modelhost/images", str(tmp_path / "kept")))
    arguments = {"component": "vllm", "archive": str(archive), "archive_sha256": wanted, "load": True, **more}
    done = subprocess.run(
        [sys.executable, str(module)],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout or "{}")
    assert isinstance(result, dict), done.stderr
    return result


def test_an_archive_is_loaded_once_and_only_with_the_right_checksum(tmp_path: Path) -> None:
    assert load(tmp_path, "Loaded image: x:1", checksum="c" * 64)["failed"]
    assert not (tmp_path / "have").exists()
    first = load(tmp_path, "Loaded image: modelhost-test/engine:1")
    assert (first["changed"], first["id"]) == (True, "sha256:" + "b" * 64)
    second = load(tmp_path, "Loaded image: modelhost-test/engine:1")
    assert (second["changed"], second["id"]) == (False, first["id"])


def test_an_image_is_found_by_its_reference_after_its_archive_was_loaded(tmp_path: Path) -> None:
    """docker load forgets the digest by which a registry knows an image; a later run names nothing else."""
    reference = f"vllm/vllm-openai@{DIGEST}"
    # The stand-in knows every reference once it has loaded something, as Docker does not.
    stubborn = LOADING_DOCKER.replace(
        "if not os.path.exists(have)", f"if not os.path.exists(have) or '{reference}' in sys.argv"
    )
    assert stubborn != LOADING_DOCKER
    first = load(tmp_path, "Loaded image ID: sha256:" + "b" * 64, docker=stubborn, image=reference)
    assert (first["changed"], first["id"]) == (True, "sha256:" + "b" * 64)
    later = load(tmp_path, "", docker=stubborn, image=reference, archive="", archive_sha256="", load=False)
    assert (later["changed"], later["id"]) == (False, first["id"])


def test_an_archive_of_several_images_is_refused(tmp_path: Path) -> None:
    result = load(tmp_path, "Loaded image: one:1\nLoaded image: two:1")
    assert "holds 2 images" in result["msg"]
