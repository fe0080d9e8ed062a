"""Engine and gateway in containers: the same service as without, and what can happen to containers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from patience import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "molecule" / "containers" / "inventory"
ENGINE, GATEWAY = "vllm@coder.service", "litellm@main.service"
TOOL = {
    "name": "Bash",
    "description": "Run a command",
    "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
}


#: Where a kernel says which NUMA nodes there are.
NODES = "/sys/devices/system/node"


def inside(container: str, script: str) -> str:
    """What a script prints that runs on the host."""
    done = subprocess.run(
        ["docker", "exec", container, "bash", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def inspect(container: str, name: str) -> dict[str, Any]:
    """What the host's Docker says of a container of its own."""
    (found,) = json.loads(inside(container, f"docker inspect {name}"))
    assert isinstance(found, dict)
    return found


def active(container: str, unit: str) -> bool:
    """Whether a unit is active; `active` means that it answers."""
    return inside(container, f"systemctl is-active {unit} || true") == "active"


def site(*arguments: str) -> str:
    """Run site.yml on the scenario's inventory and return what it printed."""
    command = ["ansible-playbook", "-i", str(INVENTORY), "site.yml", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def ask(url: str, key: str, path: str, body: dict[str, Any]) -> Any:
    """An answer of the gateway."""
    answer = requests.post(url + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=HANGS)
    assert answer.status_code == 200, answer.text
    return answer.json()


def answers(url: str, key: str) -> list[Any]:
    """What the site says to a few requests, without what differs from request to request."""
    call = '@call Bash {"command": "echo it\'s \\"quoted\\" $HOME"}'
    openai_tool = {"type": "function", "function": {"name": "Bash", "parameters": TOOL["input_schema"]}}
    found = []
    for text in ("@say fine", call, "What is this?"):
        body: dict[str, Any] = {"model": "local-claude-coder", "max_tokens": 300, "temperature": 0}
        body["messages"] = [{"role": "user", "content": text}]
        message = ask(url, key, "/v1/messages", {**body, "tools": [TOOL]})
        content = [{name: part.get(name) for name in ("type", "text", "name", "input")} for part in message["content"]]
        usage = {name: message["usage"][name] for name in ("output_tokens",)}
        found.append([content, message["stop_reason"], message["model"], usage])
        chat = ask(url, key, "/v1/chat/completions", {**body, "tools": [openai_tool]})
        (choice,) = chat["choices"]
        calls = [part["function"] for part in choice["message"].get("tool_calls") or []]
        found.append([choice["message"]["content"], calls, choice["finish_reason"], chat["usage"]["completion_tokens"]])
    return found


def test_what_runs_is_the_image_with_the_rights_that_are_said(container: str) -> None:
    image = json.loads(inside(container, "cat /var/lib/modelhost/images/vllm/*.json"))["id"]
    for name, account, capabilities in (("vllm-coder", "vllm", ["SYS_NICE"]), ("litellm-main", "litellm", None)):
        found = inspect(container, name)
        assert found["Image"] == image
        uid = inside(container, f"id -u {account}")
        assert found["Config"]["User"].split(":")[0] == uid
        rights = found["HostConfig"]
        assert rights["ReadonlyRootfs"]
        assert not rights["Privileged"]
        assert rights["CapDrop"] == ["ALL"]
        assert [item.removeprefix("CAP_") for item in rights["CapAdd"] or []] == (capabilities or [])
        assert "no-new-privileges" in rights["SecurityOpt"]
        writable = [mount["Destination"] for mount in found["Mounts"] if mount["RW"] and mount["Type"] == "bind"]
        assert all(place.startswith(("/var/lib/modelhost/", "/var/cache/modelhost/")) for place in writable), writable
        assert "/var/lib/modelhost/models" not in " ".join(writable)
        if name == "vllm-coder":
            # One NUMA node: the engine asks the machine how much memory there is. A container is made for the look,
            # because `docker exec` in a Docker within Docker needs rights that not every machine gives.
            hidden = [mount for mount in rights["Mounts"] if mount["Target"] == NODES]
            assert [mount["Type"] for mount in hidden] == ["tmpfs"]
            look = f"docker run --rm --network none --mount type=tmpfs,target={NODES} --entrypoint ls {image} -A"
            assert inside(container, f"{look} {NODES}") == ""
            assert inside(container, f"ls -A {NODES}") != ""
        # Its processes hold none of these rights.
        status = inside(container, f"cat /proc/{found['State']['Pid']}/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert int(fields["CapEff"], 16) == 0
        assert fields["Uid"].split()[0] == uid


def test_the_engine_listens_on_loopback_and_keys_are_on_no_command_line(container: str, user_key: str) -> None:
    listening = inside(container, "ss -Hltn 'sport = :8000'").split()
    assert listening[3] == "127.0.0.1:8000"
    lines = inside(container, "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done")
    keys = [user_key, *inside(container, "cat /etc/modelhost/vllm/coder.key /etc/modelhost/litellm/keys/*").split()]
    assert not [key for key in keys if key in lines]
    assert "sk-" not in inside(container, "systemctl cat vllm@coder litellm@main")


def test_the_gateway_cannot_read_users_keys(container: str) -> None:
    mounts = {mount["Destination"]: mount for mount in inspect(container, "litellm-main")["Mounts"]}
    assert mounts["/etc/modelhost/litellm"]["RW"] is False
    assert mounts["/etc/modelhost/litellm/keys"]["Type"] == "tmpfs"


def test_containers_outlive_the_docker_daemon(container: str, gateway_url: str, user_key: str) -> None:
    before = {name: inspect(container, name)["State"] for name in ("vllm-coder", "litellm-main")}
    pids = inside(container, f"systemctl show -P MainPID {ENGINE} {GATEWAY}")
    inside(container, "systemctl restart docker")
    wait_until(lambda: inside(container, "docker info >/dev/null 2>&1 && echo yes || true"), "Docker answers")
    moment = inside(container, "date '+%F %T'")
    assert ask(gateway_url, user_key, "/v1/messages", said("still here"))["content"][0]["text"] == "still here"
    assert inside(container, f"systemctl show -P MainPID {ENGINE} {GATEWAY}") == pids
    after = {name: inspect(container, name)["State"] for name in ("vllm-coder", "litellm-main")}
    assert {name: state["StartedAt"] for name, state in after.items()} == {
        name: state["StartedAt"] for name, state in before.items()
    }
    # What a container prints goes on to its unit's journal: the engine says every ten seconds how fast it was.
    journal = f"journalctl -q --no-pager -o cat -u {ENGINE} --since '{moment}' | grep -c throughput || true"
    wait_until(lambda: inside(container, journal) != "0", "the journal goes on")


def said(text: str) -> dict[str, Any]:
    """A request whose answer is known."""
    messages = [{"role": "user", "content": f"@say {text}"}]
    return {"model": "local-claude-coder", "max_tokens": 300, "temperature": 0, "messages": messages}


@pytest.mark.parametrize("how", ["docker kill litellm-main", "systemctl kill -s KILL --kill-whom=main litellm@main"])
def test_what_dies_comes_back(container: str, gateway_url: str, user_key: str, how: str) -> None:
    before = inspect(container, "litellm-main")["Id"]
    inside(container, how)

    def back() -> bool:
        other = inside(container, "docker ps -q --no-trunc --filter name=litellm-main")
        return bool(other) and other != before and active(container, GATEWAY)

    wait_until(back, "a new container")
    assert ask(gateway_url, user_key, "/v1/messages", said("again"))["content"][0]["text"] == "again"


def test_a_stop_lets_an_answer_end(container: str, gateway_url: str, user_key: str) -> None:
    words = " ".join(["drain"] * 150)
    text, stopped = "", None
    body = {**said(words), "max_tokens": 1024, "stream": True}
    headers = {"Authorization": f"Bearer {user_key}"}
    with requests.post(f"{gateway_url}/v1/messages", json=body, headers=headers, timeout=HANGS, stream=True) as stream:
        for line in stream.iter_lines(chunk_size=1, decode_unicode=True):
            if not line.startswith("data: "):
                continue
            event = json.loads(line[6:])
            text += (event.get("delta") or {}).get("text") or ""
            if text and stopped is None:
                stopped = subprocess.Popen(["docker", "exec", container, "systemctl", "stop", ENGINE])
    assert text == words
    assert stopped is not None
    assert stopped.wait(timeout=HANGS) == 0
    assert inside(container, f"systemctl show -P Result {ENGINE}") == "success"
    assert inside(container, "docker ps -aq --filter name=vllm-coder") == ""
    inside(container, f"systemctl start {ENGINE}")
    assert active(container, ENGINE)


def test_both_runtimes_give_the_same_answers_and_a_switch_loses_nothing(
    container: str, user_key: str, request: pytest.FixtureRequest
) -> None:
    """One variable there, the same one back."""

    def url() -> str:
        address = subprocess.run(["docker", "port", container, "4000/tcp"], capture_output=True, text=True, check=True)
        return f"http://{address.stdout.splitlines()[0]}"

    kept = "sha256sum /etc/modelhost/vllm/coder.key /etc/modelhost/litellm/keys/*; ls -i /var/lib/modelhost/models/*/*"
    keys = inside(container, kept)
    in_containers = answers(url(), user_key)
    arguments = "tr '\\0' '\\n' </proc/$(pgrep -of 'bin/vllm serve')/cmdline | sed '1,/^serve$/d'"
    flags = inside(container, arguments)

    site("-e", "vllm_runtime=venv", "-e", "litellm_runtime=venv")
    try:
        assert inside(container, "docker ps -aq --filter label=modelhost.unit") == ""
        # The words of its command line: the release's own `vllm`, in no container.
        process = f"tr '\\0' ' ' </proc/$(systemctl show -P MainPID {ENGINE})/cmdline"
        assert "/opt/modelhost/vllm/current/bin/vllm serve" in inside(container, process)
        assert inside(container, arguments) == flags
        assert inside(container, kept) == keys
        assert answers(url(), user_key) == in_containers
    finally:
        out = site()
    # The images were still there.
    assert "loading /" not in out
    assert inside(container, "docker ps -q --filter label=modelhost.unit | wc -l") == "2"
    assert inside(container, kept) == keys
    assert answers(url(), user_key) == in_containers
