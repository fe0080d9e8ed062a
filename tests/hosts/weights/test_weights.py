"""One download for a rack: a hub, a mirror and two hosts that stage from it (molecule/weights/README.md).

One story in order: what converge left, the mirror as a stranger and as a client see it, interruptions, and removal.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from patience import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = os.environ.get("MODELHOST_INVENTORY", str(ROOT / "molecule/weights/inventory"))
STAGE = str(ROOT / "molecule/weights/converge.yml")
HUB, MIRROR, A, B = (f"modelhost-weights-{name}" for name in ("hub", "mirror", "a", "b"))
STORE, REPO, OLD, NEW = "/var/lib/modelhost/models", "Org/Small", "1" * 40, "2" * 40
TOKEN, OTHER_TOKEN = "hf_Ruisdael1670", "hf_Hobbema1689"
#: Bytes of what an engine needs of a revision.
SIZE = 4 * (2 << 20) + 34 + 2
CLIENT = "$(echo /opt/modelhost/hf/releases/*/bin)"


@dataclass
class Run:
    """How ansible-playbook ended."""

    code: int
    output: str

    def count(self, host: str, what: str) -> int:
        """A number of the recap: changed, failed, …"""
        return sum(int(number) for number in re.findall(rf"^{host} .*\b{what}=(\d+)", self.output, re.M))


def command(hosts: list[str], *arguments: str, **variables: Any) -> list[str]:
    limit = ["--limit", ",".join([*hosts, "localhost"])]
    return ["ansible-playbook", "-i", INVENTORY, STAGE, *limit, *arguments, "-e", json.dumps(variables)]


ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "false"}


def stage(hosts: list[str], *arguments: str, check: bool = True, **variables: Any) -> Run:
    """The roles of weights on these hosts."""
    arguments = ("--tags", "hf_mirror,model_store", *arguments)
    done = subprocess.run(
        command(hosts, *arguments, **variables), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return Run(done.returncode, done.stdout + done.stderr)


def shell(host: str, script: str, check: bool = True) -> str:
    """A script on a host."""
    done = subprocess.run(["docker", "exec", host, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def address(host: str) -> str:
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return subprocess.run(
        ["docker", "inspect", "-f", form, host], capture_output=True, text=True, check=True
    ).stdout.strip()


def url() -> str:
    return f"http://{address(MIRROR)}:8090"


def status(host: str, path: str, *options: str) -> str:
    """The status of an answer of the mirror, asked from a host, and its X-Error-Code."""
    form = "-w '%{http_code} %header{x-error-code}'"
    return shell(
        host, f"curl -s -o /dev/null --path-as-is {form} {' '.join(options)} '{url()}{path}'", check=False
    ).strip()


def hub(path: str, method: str = "GET", body: Any = None) -> Any:
    """The test's hub itself."""
    data = f"-d '{json.dumps(body)}'" if body is not None else ""
    return json.loads(shell(HUB, f"curl -sf -X {method} {data} http://127.0.0.1:8091/{path}") or "null")


def downloaded() -> dict[str, int]:
    """Bytes of each file that the hub has sent."""
    found: dict[str, int] = {}
    for item in hub("_requests")["requests"]:
        if item["method"] == "GET" and item["where"] in ("resolve", "cdn") and item["status"] in (200, 206):
            found[item["subject"]] = found.get(item["subject"], 0) + item["sent"]
    return found


def forget() -> None:
    """Count what the hub sends from here on."""
    hub("_requests", "DELETE")


def remove(host: str, revision: str = OLD) -> None:
    shell(host, f"rm -rf {STORE}/{REPO}/{revision} {STORE}/.staging/*")


def content(host: str, revision: str = OLD) -> str:
    """The hashes of a staged model's files."""
    return shell(
        host, f"cd {STORE}/{REPO}/{revision} && find . -type f ! -name .modelhost.json | sort | xargs sha256sum"
    )


def source(host: str, revision: str = OLD) -> str:
    """Where a host has a model from, by its manifest."""
    told = json.loads(shell(host, f"cat {STORE}/{REPO}/{revision}/.modelhost.json"))
    return str(told["source"])


def journal(host: str, unit: str = "hf-mirror") -> str:
    return shell(host, f"journalctl --no-pager -o cat -u {unit}")


@contextmanager
def undone(host: str, script: str) -> Iterator[None]:
    """What a test changed on a host is set right again, also when it fails."""
    try:
        yield
    finally:
        shell(host, script)


# --- what converge left ------------------------------------------------------------------------------------------


def test_one_download_for_all() -> None:
    sent = downloaded()
    assert sum(sent.values()) == SIZE, sent
    # The second run, of `idempotence`, asked nobody.
    assert [item["where"] for item in hub("_requests")["requests"]].count("api") == 1
    assert not [name for name in sent if name.endswith((".bin", ".pth"))]
    log = journal(MIRROR)
    for host in (A, B):
        assert source(host) == f"hub {url()}"
        assert log.count(f'{address(host)} "GET /{REPO}/resolve/{OLD}/model-') == 4, log
        assert content(host) == content(MIRROR)
    # As the hub has them.
    files = shell(HUB, f"cd /srv/hub/{REPO}@{OLD} && sha256sum *.safetensors").split("\n")
    assert set(files) <= set(content(A).replace("./", "").split("\n"))


# --- the mirror --------------------------------------------------------------------------------------------------


def test_nothing_else_listens() -> None:
    listening = re.findall(r"^\S+ +\d+ +\d+ +(\S+)", shell(MIRROR, "ss -Hltn"), re.M)
    assert listening == [f"{address(MIRROR)}:8090"]
    assert shell(MIRROR, "systemctl is-active nginx || true") == "inactive"
    users = set(shell(MIRROR, "ps -C nginx -o user=").split())
    assert users, "no process of the server"
    assert "root" not in users


def test_the_hubs_own_client_uses_the_mirror() -> None:
    clean = "rm -rf /tmp/dl /tmp/home"
    with undone(A, clean):
        download = f"HF_ENDPOINT={url()} HF_HOME=/tmp/home {CLIENT}/hf download {REPO} --local-dir /tmp/dl --revision"
        for revision in (OLD, "main"):
            shell(A, f"{clean}; {download} {revision}")
            assert shell(A, f"diff -r -x .cache -x .modelhost.json /tmp/dl {STORE}/{REPO}/{OLD} && echo same") == "same"
        script = (
            "from huggingface_hub import HfApi, HfFileSystem; from huggingface_hub.errors import *\n"
            f"api = HfApi(); found = {{f.path: f for f in api.list_repo_tree('{REPO}', revision='{OLD}')}}\n"
            "assert found['model-00001-of-00004.safetensors'].lfs.size == 2 << 20, found\n"
            f"assert api.model_info('{REPO}').sha == '{OLD}'\n"
            f"assert len(HfFileSystem().glob('{REPO}/*.safetensors')) == 4\n"
            f"assert api.file_exists('{REPO}', 'config.json') and not api.file_exists('{REPO}', 'config.yml')\n"
            f"assert not api.revision_exists('{REPO}', '{NEW}') and not api.repo_exists('Org/Other')\n"
        )
        shell(A, f'HF_ENDPOINT={url()} HF_HOME=/tmp/home {CLIENT}/python -c "{script}"')


def test_a_download_goes_on_where_it_was_cut_off() -> None:
    name = "model-00002-of-00004.safetensors"
    with undone(A, "rm -f /tmp/part"):
        shell(A, f"head -c 1000000 {STORE}/{REPO}/{OLD}/{name} >/tmp/part")
        shell(A, f"curl -sf -C - -o /tmp/part {url()}/{REPO}/resolve/{OLD}/{name}")
        assert shell(A, f"cmp /tmp/part {STORE}/{REPO}/{OLD}/{name} && echo same") == "same"
        assert "206 1097152 B" in journal(MIRROR)
        tag = shell(A, f"curl -sI {url()}/{REPO}/resolve/{OLD}/{name} | tr -d '\\r\"' | sed -n 's/^ETag: //p'")
        assert tag in content(A), "the hub's name of a large file is its SHA-256"


def test_what_is_not_served() -> None:
    shell(MIRROR, f"mkdir -p {STORE}/.staging/Org/Half/{OLD} && touch {STORE}/.staging/Org/Half/{OLD}/config.json")
    shell(MIRROR, f"touch {STORE}/{REPO}/{OLD}/beside.json")
    with undone(MIRROR, f"rm -rf {STORE}/.staging/Org/Half {STORE}/{REPO}/{OLD}/beside.json"):
        top = f"/{REPO}/resolve/{OLD}"
        assert status(A, f"{top}/config.json") == "200"
        for path in (f"{top}/beside.json", f"{top}/.modelhost.json", f"{top}/%2e%2e/x"):
            assert status(A, path).startswith("404"), path
        for path in (
            "/", f"/{REPO}/{OLD}/config.json", f"/.staging/Org/Half/{OLD}/config.json",
            f"/.staging/Org/resolve/{OLD}/config.json", f"/Org/Half/resolve/{OLD}/config.json", "/etc/passwd",
            "/locations.conf", "/api/models/Org/Half/revision/main",
        ):  # fmt: skip
            assert status(A, path) == "404 RepoNotFound", path
        assert status(A, f"{top}/../../../../../../etc/passwd").split()[0] in ("400", "404")
        assert status(A, f"{top}/nothing.json") == "404 EntryNotFound"
        assert status(A, f"/{REPO}/resolve/v1/config.json") == "404 RevisionNotFound"
        assert status(A, f"/api/models/{REPO}/tree/{NEW}?recursive=true") == "404 RevisionNotFound"
        for method in ("POST", "PUT", "DELETE", "PATCH", "MKCOL"):
            for path in ("/", f"{top}/config.json", f"/api/models/{REPO}"):
                assert status(A, path, "-X", method, "-d", "x") == "405"
        assert shell(MIRROR, f"stat -c %s {STORE}/{REPO}/{OLD}/config.json") == "34"


def test_strangers_learn_nothing() -> None:
    for path in ("/", "/health", f"/{REPO}/resolve/{OLD}/config.json", f"/api/models/{REPO}", "/Org/Other"):
        assert status(HUB, path) == "403", path
        assert status(HUB, path, "-X", "POST") == "403", path


# --- tokens ------------------------------------------------------------------------------------------------------


def test_tokens_are_nowhere_but_in_files_of_root() -> None:
    done = stage([MIRROR, A], "-vvv", "--diff", weights_token=OTHER_TOKEN)
    assert done.count(A, "changed") >= 1, "the sources hold the new token"
    assert TOKEN not in done.output
    assert OTHER_TOKEN not in done.output
    for host in (MIRROR, A):
        for token in (TOKEN, OTHER_TOKEN):
            # The bracket keeps the search from finding itself.
            pattern = f"[h]{token[1:]}"
            places = "/etc /run /tmp /root /opt/modelhost/model_store /var/lib/modelhost /var/log /var/cache/modelhost"
            found = shell(host, f"grep -rlsI '{pattern}' {places} || true").split()
            assert (token == OTHER_TOKEN) == bool(found), f"{host}: {token} in {found}"
            for path in found:
                assert shell(host, f"stat -c '%a %U' {path}") == "600 root", f"{host}: {path}"
            units = "hf-mirror.service model-store@stage.service"
            for script in (f"systemctl show {units}", f"systemctl cat {units}", "journalctl --no-pager"):
                assert shell(host, f"({script}) 2>/dev/null | grep -c '{pattern}' || true") == "0", script


# --- interruptions -----------------------------------------------------------------------------------------------


def test_a_killed_controller_stops_nothing() -> None:
    remove(MIRROR)
    forget()
    hub("_settings", "POST", {"rate": 100_000})
    try:
        arguments = command([MIRROR], "--tags", "hf_mirror,model_store")
        running = subprocess.Popen(
            arguments, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        # In the middle of the files, of which all come at the same time.
        wait_until(lambda: sum(downloaded().values()) > 1_000_000, "a download is under way")
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        assert shell(MIRROR, f"test -e {STORE}/{REPO}/{OLD} || echo hidden") == "hidden"
        before = sum(downloaded().values())
        wait_until(lambda: sum(downloaded().values()) > before + 300_000, "the download goes on by itself")
        assert status(A, f"/{REPO}/resolve/{OLD}/config.json").startswith("404"), "nothing of it is served"
    finally:
        hub("_settings", "POST", {"rate": 0})
    done = stage([MIRROR])
    assert sum(downloaded().values()) == SIZE, "the next run follows it, and no byte comes twice"
    assert content(MIRROR) == content(A)
    assert status(A, f"/{REPO}/resolve/{OLD}/config.json") == "200", done.output


def test_a_mirror_that_is_down_is_passed_over() -> None:
    remove(B)
    forget()
    shell(MIRROR, "systemctl stop hf-mirror")
    with undone(MIRROR, "systemctl start hf-mirror"):
        stage([B], model_store_retries=1)
    assert source(B) == f"hub http://{address(HUB)}:8091"
    assert sum(downloaded().values()) == SIZE
    assert content(B) == content(A)


def test_the_mirror_is_not_asked_by_way_of_a_proxy() -> None:
    remove(B)
    forget()
    file = "/etc/modelhost/download.env"
    shell(
        B, f"cp -p {file} /tmp/kept; echo 'export http_proxy=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9' >>{file}"
    )
    with undone(B, f"mv /tmp/kept {file}"):
        stage([B])
    assert source(B) == f"hub {url()}"
    assert downloaded() == {}


def test_a_killed_server_comes_back() -> None:
    shell(MIRROR, "systemctl kill -s KILL hf-mirror")
    wait_until(lambda: status(A, "/health") == "200", "systemd starts it again")


# --- models come and go ------------------------------------------------------------------------------------------


def main_pid() -> str:
    return shell(MIRROR, "systemctl show -P MainPID hf-mirror")


def test_another_revision_is_served_without_letting_go_of_clients() -> None:
    pid = main_pid()
    name = f"{REPO}/resolve/{OLD}/model-00001-of-00004.safetensors"
    # A client that takes the first bytes, and the others when it is told to.
    curl = f"curl -sfN {url()}/{name}; echo $? >/tmp/slow.rc"
    take = "head -c 1000; until [ -e /tmp/slow.on ]; do sleep 0.2; done; cat"
    slow = subprocess.Popen(["docker", "exec", A, "sh", "-c", f"{{ {curl}; }} | {{ {take}; }} >/tmp/slow"])
    wait_until(lambda: shell(A, "test -s /tmp/slow && echo begun", check=False), "the first bytes are there")
    done = stage([MIRROR], weights_revision=NEW)
    assert done.count(MIRROR, "changed") > 0
    assert main_pid() == pid, "reloaded, not restarted"
    assert status(A, f"/{REPO}/resolve/{NEW}/config.json") == "200"
    assert status(A, f"/{REPO}/resolve/{OLD}/config.json") == "200"
    told = shell(A, f"curl -sf {url()}/api/models/{REPO}")
    assert json.loads(told)["sha"] == NEW, "main is what came last"
    assert slow.poll() is None
    shell(A, "touch /tmp/slow.on")
    slow.wait(timeout=HANGS)
    with undone(A, "rm -f /tmp/slow /tmp/slow.rc /tmp/slow.on"):
        assert (
            shell(A, f"cat /tmp/slow.rc; cmp /tmp/slow {STORE}/{name.replace('resolve/', '')} && echo same")
            == "0\nsame"
        )


def test_a_model_that_is_damaged_or_gone_is_no_longer_served() -> None:
    shell(MIRROR, f"truncate -s 1000 {STORE}/{REPO}/{NEW}/model-00003-of-00004.safetensors")
    done = stage([MIRROR])
    assert done.count(MIRROR, "changed") > 0
    assert "model-00003-of-00004.safetensors: 1000 bytes instead of 2097152" in done.output
    assert status(A, f"/{REPO}/resolve/{NEW}/config.json") == "404 RevisionNotFound"
    assert shell(MIRROR, "grep -rc 2222222 /var/cache/modelhost/hf_mirror | grep -v ':0$' || true") == ""
    assert status(A, f"/api/models/{REPO}/revision/main") == "200"
    remove(MIRROR, NEW)


# --- removal -----------------------------------------------------------------------------------------------------


def role(host: str, entry: str, **variables: Any) -> bool:
    """The role alone on a host; whether it changed something."""
    arguments = f"name=modelhost.serving.hf_mirror tasks_from={entry}"
    done = subprocess.run(
        ["ansible", host, "-i", INVENTORY, "-b", "-m", "include_role", "-a", arguments, "-e", json.dumps(variables)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return " | CHANGED" in done.stdout


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
def test_a_mirror_is_removed_and_its_weights_stay(again: bool) -> None:
    assert role(MIRROR, "main", hf_mirror_state="absent") is not again
    gone = (
        "/etc/systemd/system/hf-mirror.service /etc/systemd/system/nginx.service /etc/modelhost/hf_mirror "
        "/var/cache/modelhost/hf_mirror /usr/sbin/nginx /etc/nginx"
    )
    assert shell(MIRROR, f"ls -d {gone} 2>/dev/null || true") == ""
    assert shell(MIRROR, "ss -Hltn; systemctl list-units --all --plain --no-legend 'nginx*' 'hf-mirror*'") == ""
    assert content(MIRROR) == content(A)


def test_an_nginx_of_the_hosts_owner_is_left_alone() -> None:
    shell(
        B,
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx",
    )
    settings = {"hf_mirror_bind_address": address(B), "hf_mirror_serves": True, "hf_mirror_allowed_addresses": ["auto"]}
    role(B, "serve", **settings)
    asked = f"curl -s -o /dev/null -w '%{{http_code}}' http://{address(B)}:8090/{REPO}/resolve/main/config.json"
    assert shell(A, asked) == "200"
    # A host that is a mirror no longer, by its inventory.
    role(B, "main", hf_mirror_serves=False)
    assert shell(B, "systemctl is-active nginx; systemctl is-enabled nginx") == "active\nenabled"
    assert shell(A, asked, check=False) == "000"
    assert shell(B, "ls /etc/modelhost/hf_mirror") == "sources.json"
