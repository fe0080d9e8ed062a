"""docker_engine: whose keys are whose in daemon.json, what a change needs, where the engine comes from, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.filter import docker_engine
from ansible_collections.modelhost.serving.plugins.module_utils import (
    docker_daemon,
    docker_engine_validation,
    preflight_docker,
    probe_docker,
)
from ansible_collections.modelhost.serving.plugins.modules import docker_daemon_config, docker_daemon_running
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]

LOGS = {"log-driver": "json-file", "log-opts": {"max-size": "50m", "max-file": "3"}}
LIVE = {"live-restore": True}


# --- keys --------------------------------------------------------------------------------------------------------


def merge(present: dict, record: dict, options: dict | None = None, defaults: tuple = ()) -> tuple[dict, dict]:
    data, keys = docker_daemon.merged(present, record, options or {}, list(defaults))
    return data, keys


def test_keys_of_the_owner_stay_and_ours_go_when_unwanted() -> None:
    owner = {"debug": True, "log-opts": {"tag": "x"}}
    first, record = merge(owner, {}, {"registry-mirrors": ["https://a"]}, (LOGS, LIVE))
    assert first == {
        "debug": True,
        "log-driver": "json-file",
        "log-opts": {"tag": "x", "max-size": "50m", "max-file": "3"},
        "live-restore": True,
        "registry-mirrors": ["https://a"],
    }
    # The owner adds a key between two runs; we want less than before.
    second, record = merge({**first, "mtu": 1400}, record, {}, (LIVE,))
    assert second == {**owner, "mtu": 1400, "live-restore": True}
    assert docker_daemon.foreign(second, record) == {**owner, "mtu": 1400}


def test_what_we_wrote_over_comes_back() -> None:
    owner = {"registry-mirrors": ["https://mine"], "features": {"buildkit": True}}
    data, record = merge(owner, {}, {"registry-mirrors": ["https://ours"], "features": {"cdi": True}})
    assert data == {"registry-mirrors": ["https://ours"], "features": {"buildkit": True, "cdi": True}}
    assert merge(data, record) == (owner, {"keys": []})


def test_a_key_that_somebody_changed_since_is_theirs() -> None:
    data, record = merge({}, {}, {"mtu": 1400})
    assert docker_daemon.foreign({"mtu": 9000}, record) == {"mtu": 9000}
    # Still wanted: ours again, and theirs comes back later.
    data, record = merge({"mtu": 9000}, record, {"mtu": 1400})
    assert data == {"mtu": 1400}
    assert docker_daemon.foreign(data, record) == {"mtu": 9000}


@pytest.mark.parametrize(
    ("owner", "added"),
    [
        ({}, {"log-driver", "log-opts", "live-restore"}),
        ({"log-driver": "journald"}, {"live-restore"}),
        ({"log-driver": "json-file"}, {"log-opts", "live-restore"}),
        ({"log-opts": {"max-size": "10m"}}, {"live-restore"}),
        ({"live-restore": False}, {"log-driver", "log-opts"}),
    ],
)
def test_defaults_give_way_to_the_owner(owner: dict, added: set) -> None:
    data, _record = merge(owner, {}, {}, (LOGS, LIVE))
    assert {key: value for key, value in data.items() if key not in added} == owner
    assert set(data) - set(owner) == added


def test_defaults_give_way_to_options() -> None:
    data, _record = merge({}, {}, {"log-driver": "local"}, (LOGS,))
    assert data == {"log-driver": "local"}


def test_an_object_where_the_file_has_none_is_told() -> None:
    with pytest.raises(docker_daemon.ConfigError, match="log-opts is no object"):
        merge({"log-opts": []}, {}, {"log-opts": {"max-size": "1m"}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


@given(OBJECTS, OBJECTS, OBJECTS)
def test_any_file_comes_back_as_its_owner_wrote_it(owner: dict, first: dict, second: dict) -> None:
    """Two runs with different wishes, then absent; wishes that a file contradicts are refused whole."""
    data: dict = owner
    record: dict = {}
    for options in (first, second):
        try:
            data, record = merge(data, record, options)
        except docker_daemon.ConfigError:
            return
        assert docker_daemon.leaves(options).items() <= docker_daemon.leaves(data).items()
        assert merge(data, record, options) == (data, record)
    assert docker_daemon.foreign(data, record) == owner


@pytest.mark.parametrize(
    ("before", "after", "needs"),
    [
        ({}, {"registry-mirrors": ["https://a"]}, {"registry-mirrors": "reload"}),
        ({"live-restore": False}, {"live-restore": True}, {"live-restore": "reload"}),
        ({"registry-mirrors": ["https://a"]}, {}, {"registry-mirrors": "restart"}),
        ({"max-concurrent-downloads": 5}, {}, {"max-concurrent-downloads": "reload"}),
        ({"data-root": "/a"}, {"data-root": "/b"}, {"data-root": "restart"}),
        ({"features": {}}, {"features": {"cdi": True}}, {"features": "restart"}),
        ({"log-opts": {"a": "1"}}, {"log-opts": {"a": "1"}}, {}),
    ],
)  # fmt: skip
def test_what_a_running_daemon_needs(before: dict, after: dict, needs: dict) -> None:
    assert docker_daemon.actions(before, after) == needs


# --- what the daemon started with --------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """daemon.json, a file it depends on, and the record; the daemon started at 1000."""
    monkeypatch.setattr(docker_daemon, "started", lambda _state: 1000.0)
    config, bundle = tmp_path / "daemon.json", tmp_path / "bundle"
    config.write_text('{"debug": true}')
    bundle.write_text("a")
    for path in (config, bundle):
        os.utime(path, (500, 500))
    return config, bundle, tmp_path / "record" / "applied.json"


def test_older_files_are_what_the_daemon_started_with(files: tuple[Path, Path, Path]) -> None:
    config, bundle, record = files
    found = docker_daemon.applied({"InvocationID": "x"}, str(config), [str(bundle)], str(record))
    assert found["config"] == {"debug": True}
    assert found["files"][str(bundle)] == docker_daemon.digest(str(bundle))
    docker_daemon.save(str(record), found)
    assert record.stat().st_mode & 0o077 == 0
    # Written later: the same daemon still has what it had.
    config.write_text("{}")
    bundle.write_text("b")
    assert docker_daemon.applied({"InvocationID": "x"}, str(config), [str(bundle)], str(record)) == found


def test_younger_files_are_unknown_unless_seen_before(files: tuple[Path, Path, Path]) -> None:
    config, bundle, record = files
    for path in (config, bundle):
        os.utime(path, (2000, 2000))
    found = docker_daemon.applied({"InvocationID": "x"}, str(config), [str(bundle)], str(record))
    assert found["config"] is None
    assert found["files"][str(bundle)] is None
    # A certificate bundle that was only written anew, after a reboot: nothing changed.
    docker_daemon.save(
        str(record),
        {"invocation": "w", "config": {"debug": True}, "files": {str(bundle): docker_daemon.digest(str(bundle))}},
    )
    found = docker_daemon.applied({"InvocationID": "x"}, str(config), [str(bundle)], str(record))
    assert found["config"] == {"debug": True}
    assert found["files"][str(bundle)]


def test_a_record_that_was_cut_off_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "record").write_text('{"keys": [')
    assert docker_daemon.load(str(tmp_path / "record")) == {}


def test_systemd_is_told_of_a_drop_in_whose_folder_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "docker.service.d"
    monkeypatch.setattr(docker_daemon_running, "DROP_INS", str(folder))
    state = {"NeedDaemonReload": "no", "DropInPaths": "/lib/systemd/system/docker.service.d/x.conf"}
    assert not docker_daemon_running.needs_reading(state)
    folder.mkdir()
    (folder / "a.conf").touch()
    assert docker_daemon_running.needs_reading(state)
    assert not docker_daemon_running.needs_reading({**state, "DropInPaths": str(folder / "a.conf")})
    (folder / "a.conf").unlink()
    assert docker_daemon_running.needs_reading({**state, "DropInPaths": str(folder / "a.conf")})


def test_why_a_daemon_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_daemon, "started", lambda _state: 1000.0)
    unit, bundle = tmp_path / "docker.service", tmp_path / "bundle"
    for path in (unit, bundle):
        path.write_text("a")
        os.utime(path, (500, 500))

    class Module:
        params = {"path": "/etc/docker/daemon.json"}

    state = {"FragmentPath": str(unit), "DropInPaths": "", "MainPID": str(os.getpid())}
    same = {"config": {"debug": True}, "files": {str(bundle): docker_daemon.digest(str(bundle))}}

    def reasons(found: dict, wanted: dict) -> tuple:
        why: tuple = docker_daemon_running.reasons(Module(), state, found, wanted)
        return why

    assert reasons(same, {"debug": True}) == ("none", [])
    assert reasons(same, {"debug": False}) == ("reload", ["debug"])
    assert reasons(same, {"debug": False, "mtu": 1}) == ("restart", ["mtu"])
    assert reasons({**same, "config": None}, {})[0] == "restart"
    bundle.write_text("b")
    assert reasons(same, {"debug": True}) == ("restart", [f"{bundle} is not what the daemon started with"])
    bundle.write_text("a")
    os.utime(unit, (2000, 2000))
    assert reasons(same, {"debug": True}) == ("restart", [f"{unit} is younger than the daemon"])


# --- the module that writes --------------------------------------------------------------------------------------

#: dockerd as it was before 23.0, and as it is since: what they print, and what they refuse.
OLD = """#!/bin/sh
case "$*" in *--help*) echo "  --config-file string"; exit 0;; esac
for last; do :; done
grep -q unknown "$last" && { echo "unable to configure the Docker daemon with file $last: the following directives don't
 match any configuration option: unknown" >&2; exit 1; }
grep -q '"log-level"' "$last" && { echo "log-level: (from flag: modelhost-check, from file: x)" >&2; exit 1; }
echo "$@" >> "$(dirname "$0")/asked"
case "$*" in *modelhost-check*) echo "unable to parse logging level: modelhost-check" >&2; exit 1;; esac
echo "IT RAN"; exit 0
"""
NEW = """#!/bin/sh
case "$*" in *--help*) echo "  --validate  Validate daemon configuration and exit"; exit 0;; esac
for last; do :; done
case "$*" in *"-H fd://"*) grep -q '"hosts"' "$last" && { echo "unable to \
configure the Docker daemon with file $last: the following directives are specified both as a flag and in the \
configuration file: hosts" >&2; exit 1; };; esac
echo "$@" >> "$(dirname "$0")/asked"
echo "configuration OK"
"""
SYSTEMCTL = """#!/bin/sh
case "$*" in
*is-active*) exit 3;;
*ExecStart*) cat <<'END'
ExecStart={ path=@folder@/bin/dockerd ; argv[]=@folder@/bin/dockerd -H fd:// --containerd=/run/c.sock $DOCKER_OPTS ; }
EnvironmentFiles=@folder@/docker (ignore_errors=yes)
END
;; esac
"""


class Daemon:
    """A folder with a daemon.json and stand-ins for the programs that the module asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "etc/daemon.json"
        self.record = folder / "record/daemon.json"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.path.parent.mkdir()
        self.program("systemctl", SYSTEMCTL.replace("@folder@", str(folder)))

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def asked(self) -> str:
        return (self.bin / "asked").read_text() if (self.bin / "asked").exists() else ""

    def run(self, check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {"path": str(self.path), "record": str(self.record), **options}
        arguments |= {"_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": str(self.folder)}
        done = subprocess.run(
            [sys.executable, str(ROOT / "plugins/modules/docker_daemon_config.py")],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": f"{self.bin}:/usr/bin:/bin", "PYTHONPATH": str(ROOT / ".collections")},
        )  # fmt: skip
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def content(self) -> Any:
        return json.loads(self.path.read_text())


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


def test_a_fresh_host_gets_a_file_and_loses_it_again(daemon: Daemon) -> None:
    assert daemon.run(check=True, defaults=[LIVE])["changed"]
    assert not daemon.path.exists()
    first = daemon.run(defaults=[LIVE])
    assert first["changed"]
    assert first["actions"] == {"live-restore": "reload"}
    assert daemon.content() == LIVE
    assert not daemon.run(defaults=[LIVE])["changed"]
    assert daemon.run(state="absent")["changed"]
    assert not daemon.path.exists()
    assert not daemon.run(state="absent")["changed"]


def test_a_foreign_file_is_kept_once(daemon: Daemon) -> None:
    text = '{"debug": true,\n\n "mtu": 1400}'
    daemon.path.write_text(text)
    first = daemon.run(options={"mtu": 9000})
    assert Path(first["backup"]).read_text() == text
    daemon.run(options={"mtu": 8000})
    assert Path(first["backup"]).read_text() == text
    daemon.run(state="absent")
    assert daemon.content() == {"debug": True, "mtu": 1400}
    assert not Path(first["backup"]).exists()


@pytest.mark.parametrize("text", ['{"debug": true', "[]", '{"debug": true,}'])
def test_broken_json_is_told_and_left_alone(daemon: Daemon, text: str) -> None:
    daemon.path.write_text(text)
    result = daemon.run(options={"mtu": 9000})
    assert result["failed"]
    assert str(daemon.path) in result["msg"]
    assert daemon.path.read_text() == text
    assert not daemon.record.exists()


def test_an_older_engine_is_asked_by_a_start_that_fails(daemon: Daemon) -> None:
    daemon.program("dockerd", OLD)
    (daemon.folder / "docker").write_text("# defaults\nDOCKER_OPTS='--log-level warn --dns 1.1.1.1'\n")
    daemon.path.write_text('{"log-level": "warn"}')
    assert daemon.run(options={"mtu": 9000})["validated"] == "refused start"
    flags = "-H fd:// --containerd=/run/c.sock --dns 1.1.1.1 --log-level modelhost-check"
    assert daemon.asked().startswith(f"{flags} --config-file ")
    assert daemon.content() == {"log-level": "warn", "mtu": 9000}
    refused = daemon.run(options={"unknown": 1})
    assert "match any configuration option: unknown" in refused["msg"]
    assert daemon.content() == {"log-level": "warn", "mtu": 9000}


def test_a_newer_engine_validates_with_the_units_flags(daemon: Daemon) -> None:
    daemon.program("dockerd", NEW)
    assert daemon.run(options={"mtu": 9000})["validated"] == "dockerd --validate"
    daemon.path.write_text('{"hosts": ["tcp://0.0.0.0:2375"]}')
    refused = daemon.run(options={"mtu": 8000})
    assert "both as a flag and in the configuration file: hosts" in refused["msg"]
    assert "docker_engine_daemon_options" in refused["msg"]
    assert "with file daemon.json: the" in refused["msg"]
    assert daemon.content() == {"hosts": ["tcp://0.0.0.0:2375"]}


def test_passwords_are_not_shown(daemon: Daemon) -> None:
    daemon.path.write_text(
        '{"proxies": {"http-proxy": "http://me:geheim@proxy"}, "registry-mirrors": ["https://a:geheim@b"]}'
    )
    result = daemon.run(options={"mtu": 9000})
    assert result["changed"]
    assert "geheim" not in json.dumps(result)
    assert "geheim" in daemon.path.read_text()


def plant(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def test_a_data_root_with_data_is_not_left_behind(tmp_path: Path, daemon: Daemon) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    daemon.path.write_text(json.dumps({"data-root": str(old)}))
    plant(old, "containers", "volumes", "image/overlay2/imagedb/content/sha256")
    # Empty: nothing is lost.
    docker_daemon_config.check_root({"data-root": str(old)}, {"data-root": str(new)})
    plant(old, "containers/c0ffee")
    refused = daemon.run(options={"data-root": str(new)})
    assert "rsync -aHAX" in refused["msg"]
    assert str(old) in refused["msg"]
    assert daemon.content() == {"data-root": str(old)}
    plant(new, "containers/c0ffee")
    assert daemon.run(options={"data-root": str(new)})["changed"]
    # And back again, when the variable is gone.
    assert daemon.run()["changed"]
    assert daemon.content() == {"data-root": str(old)}


# --- facts -------------------------------------------------------------------------------------------------------

INFO = {
    "ServerVersion": "29.8.2",
    "LiveRestoreEnabled": True,
    "ContainersRunning": 2,
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "CgroupVersion": "2",
    "DockerRootDir": "/var/lib/docker",
    "RegistryConfig": {"Mirrors": ["https://a/"]},
    "Swarm": {"LocalNodeState": "active"},
    "SecurityOptions": ["name=seccomp,profile=builtin"],
}
NOBLE = 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n'


def facts(answers: dict[str, tuple[int, str]], files: dict[str, str]) -> dict[str, Any]:
    def run(command: list[str]) -> tuple[int, str]:
        return next((answer for name, answer in answers.items() if name in " ".join(command)), (-1, "no such program"))

    return probe_docker.facts(run, lambda path: files.get(path, ""))


def test_a_host_without_docker() -> None:
    found = facts({}, {"/etc/os-release": "ID=debian\nVERSION_CODENAME=bookworm\n"})
    assert found["version"] == ""
    assert not found["running"]
    assert found["repository"] == {"distribution": "debian", "suite": "bookworm"}
    assert found["packages"] == {}
    assert not found["snap"]
    assert not found["podman"]


def test_a_running_engine() -> None:
    listed = "docker-ce 5:29.8.2-1~ubuntu.24.04~noble hold ok installed\ndocker.io 1 deinstall ok config-files\n"
    found = facts(
        {"info": (0, json.dumps(INFO)), "dpkg-query": (1, listed)},
        {"/etc/os-release": NOBLE, "/etc/docker/daemon.json": '{"proxies": {"http-proxy": "http://a:geheim@b"}}'},
    )
    assert found["version"] == "29.8.2"
    assert found["packages"] == {"docker-ce": "5:29.8.2-1~ubuntu.24.04~noble"}
    assert found["image_store"] == "containerd"
    assert found["swarm"]
    assert found["config_keys"] == ["proxies"]
    assert "geheim" not in json.dumps(found)


def test_an_engine_that_does_not_run_and_a_broken_file() -> None:
    found = facts(
        {"dockerd --version": (0, "Docker version 20.10.24+dfsg1, build 297e128")}, {"/etc/docker/daemon.json": "{"}
    )
    assert found["version"] == "20.10.24"
    assert not found["running"]
    assert found["config_error"]


@pytest.mark.parametrize("answer", ["[]", "null", "not json", '{"ServerVersion": null}', ""])
def test_no_answer_breaks_the_probe(answer: str) -> None:
    assert facts({"info": (0, answer)}, {"/etc/docker/daemon.json": "null"})["version"] == ""


# --- where it comes from, what is refused ------------------------------------------------------------------------

SETTINGS = {
    "source": "auto",
    "version": "",
    "packages": {},
    "repository_url": "https://mirror.example/linux/",
    "key_url": "",
    "nvidia": False,
}
BARE: dict[str, Any] = {
    "version": "",
    "packages": {},
    "ours": [],
    "repository": {"distribution": "debian", "suite": "bookworm"},
}


def plan(docker: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return docker_engine.docker_engine_plan({**BARE, **docker}, {**SETTINGS, **settings})


def test_a_bare_host_gets_the_pinned_packages_of_docker() -> None:
    found = plan({})
    assert found["source"] == "docker"
    assert found["repository_url"] == "https://mirror.example/linux/debian"
    assert found["key_url"] == "https://mirror.example/linux/debian/gpg"
    pins = preflight_docker.pinned("bookworm")
    assert found["packages"][0] == f"docker-ce=5:{pins['version']}-*"
    assert found["names"] == [
        "docker-ce",
        "docker-ce-cli",
        "containerd.io",
        "docker-buildx-plugin",
        "docker-compose-plugin",
    ]
    assert all("=" in name for name in found["packages"])


def test_versions_of_ones_own() -> None:
    found = plan({}, version="28.5.1", packages={"containerd.io": ""})
    assert found["packages"][:3] == ["docker-ce=5:28.5.1-*", "docker-ce-cli=5:28.5.1-*", "containerd.io"]


@pytest.mark.parametrize(("suite", "version"), [("focal", "28.1.1"), ("bionic", "24.0.2"), ("noble", None)])
def test_older_systems_have_their_own_pins(suite: str, version: str | None) -> None:
    found = plan({"repository": {"distribution": "ubuntu", "suite": suite}})
    wanted = version or preflight_docker.pinned("")["version"]
    assert found["packages"][0] == f"docker-ce=5:{wanted}-*"


@pytest.mark.parametrize(
    ("docker", "wish", "source"),
    [
        ({"version": "27.1.0", "packages": {"docker-ce": "1"}}, "auto", "keep"),
        ({"version": "20.10.24", "packages": {"docker.io": "1"}}, "auto", "keep"),
        # Ours stays ours, and follows the pin.
        ({"version": "27.1.0", "packages": {"docker-ce": "1"}, "ours": ["docker-ce", "runc"]}, "auto", "docker"),
        ({"version": "20.10.24", "ours": ["containerd", "docker.io"]}, "auto", "distribution"),
        ({"version": "27.1.0"}, "distribution", "distribution"),
    ],
)
def test_what_auto_means(docker: dict[str, Any], wish: str, source: str) -> None:
    found = plan(docker, source=wish)
    assert found["source"] == source
    assert bool(found["packages"]) == (source != "keep")


def host_problems(docker: dict[str, Any], **variables: Any) -> list[dict[str, Any]]:
    variables = {"docker_engine_nvidia": False, **variables}
    return preflight_docker.problems("box", {"docker": {**BARE, **docker}}, variables)


@pytest.mark.parametrize(
    ("docker", "variables", "variable", "words"),
    [
        ({"snap": True}, {}, "Docker", "snap remove docker"),
        ({"podman": True}, {}, "Docker", "podman-docker"),
        ({"rootless": True, "version": "29.0.0"}, {}, "Docker", "root's rights"),
        ({"version": "19.03.8"}, {}, "Docker", "20.10 or later"),
        ({"version": "24.0.7"}, {"docker_engine_nvidia": True}, "Docker", "25.0 or later"),
        ({}, {"docker_engine_nvidia": True, "docker_engine_source": "distribution"}, "docker_engine_source", "CDI"),
        (
            {"repository": {"distribution": "ubuntu", "suite": "bionic"}},
            {"docker_engine_nvidia": True},
            "docker_engine_version",
            "25.0 or later",
        ),
        (
            {"version": "20.10.24", "packages": {"docker.io": "1"}},
            {"docker_engine_source": "docker"},
            "docker_engine_source",
            "apt-get remove docker.io",
        ),
        (
            {"version": "27.0.0", "packages": {"docker-ce": "1"}},
            {"docker_engine_source": "distribution"},
            "docker_engine_source",
            "cannot stand beside it",
        ),
        ({"config_error": "Expecting ','"}, {}, "/etc/docker/daemon.json", "Expecting ','"),
        ({"version": "27.0.0", "swarm": True}, {}, "docker_engine_live_restore", "swarm"),
        ({"repository": {"distribution": "fedora", "suite": ""}}, {}, "operating system", "Debian and Ubuntu"),
        ({"repository": {"distribution": "debian", "suite": ""}}, {}, "docker_engine_source", "VERSION_CODENAME"),
    ],
)  # fmt: skip
def test_what_stands_against_a_host(
    docker: dict[str, Any], variables: dict[str, Any], variable: str, words: str
) -> None:
    found = host_problems(docker, **variables)
    assert [(item["variable"], item["level"]) for item in found] == [(variable, "error")], found
    assert words in found[0]["problem"] + found[0]["fix"]
    assert found[0]["fix"]


@pytest.mark.parametrize(
    ("docker", "variables"),
    [
        ({}, {}),
        ({"version": "29.8.2", "packages": {"docker-ce": "1"}}, {"docker_engine_nvidia": True}),
        ({"version": "20.10.24", "packages": {"docker.io": "1"}}, {}),
        ({"version": "27.0.0", "repository": {"distribution": "fedora", "suite": ""}}, {}),
        ({"version": "27.0.0", "swarm": True}, {"docker_engine_live_restore": False}),
        # A stub of a test may have both; apt has settled it.
        ({"packages": {"docker.io": "1", "docker-ce": "1"}}, {"docker_engine_source": "docker"}),
    ],
)
def test_what_does_not(docker: dict[str, Any], variables: dict[str, Any]) -> None:
    assert host_problems(docker, **variables) == []


def test_warnings_do_not_stop_the_role() -> None:
    docker = {**BARE, "version": "29.0.0", "storage_driver": "vfs", "image_store": "containerd"}
    found = host_problems(docker, docker_engine_data_root="/data/docker")
    assert [item["level"] for item in found] == ["warning", "warning"]
    assert docker_engine.docker_engine_problems({"docker_engine_data_root": "/data/docker"}, "box", docker) == ""


def test_preflight_works_out_by_itself_whether_gpus_go_into_containers() -> None:
    probe = {"docker": {**BARE, "version": "24.0.7"}, "nvidia_devices": 1, "glibc": "2.35", "systemd": "249"}
    instance = {"name": "coder", "model": "x"}
    groups = {"engines": ["box"], "gateways": ["box"]}
    for variables, expected in (
        ({"vllm_instances": [{**instance, "runtime": "docker"}]}, ["Docker"]),
        ({"vllm_instances": [instance], "vllm_runtime": "docker", "vllm_variant": "cpu"}, []),
        ({"vllm_instances": [instance], "litellm_runtime": "docker"}, []),
    ):
        found = preflight_docker.problems("box", probe, variables, groups)
        assert [item["variable"] for item in found] == expected


def test_probes_of_earlier_releases_say_nothing_of_docker() -> None:
    assert preflight_docker.problems("box", {"distribution": "ubuntu"}, {}, {"engines": ["box"]}) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"docker_engine_daemon_options": {"hosts": ["tcp://0.0.0.0:2375"]}}, "-H fd://"),
        ({"docker_engine_daemon_options": {"data-root": "/data"}}, "docker_engine_data_root"),
        ({"docker_engine_daemon_options": {"registry-mirrors": []}}, "docker_engine_registry_mirrors"),
        ({"docker_engine_daemon_options": {"proxies": {"http-proxy": "http://a:geheim@b"}}}, "host_base_http_proxy"),
        ({"docker_engine_daemon_options": {"log-opts": {"max-file": 3}}}, 'max-file: "3"'),
        ({"docker_engine_daemon_options": {"log-opts": "none"}}, "object of options"),
        ({"docker_engine_registry_mirrors": ["https://mirror.example/v2/"]}, "https://mirror.example"),
        ({"docker_engine_registry_mirrors": ["mirror.example"]}, "https://host[:port]"),
        ({"docker_engine_registry_mirrors": ["https://me:geheim@mirror.example"]}, "user's name"),
        ({"docker_engine_repository_url": "https://download.docker.com/linux/ubuntu"}, "https://download.docker.com/linux"),
        ({"docker_engine_repository_url": "mirror.example"}, "no address"),
        ({"docker_engine_version": "5:29.8.2-1~ubuntu.24.04~noble"}, "29.8.2"),
        ({"docker_engine_repository_fingerprints": ["0EBFCD88"]}, "40 hexadecimal digits"),
        ({"docker_engine_log_max_size": "50 MB"}, "50m"),
        ({"docker_engine_log_max_file": 0}, "at least one"),
        ({"docker_engine_data_root": "docker"}, "/data/docker"),
        ({"docker_engine_data_root": "/var/"}, "/data/docker"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(variables: dict[str, Any], words: str) -> None:
    found = docker_engine_validation.problems("box", variables)
    assert len(found) == 1, found
    assert words in found[0]["problem"] + found[0]["fix"]
    assert next(iter(variables)) in found[0]["variable"]
    assert "geheim" not in docker_engine.docker_engine_problems(variables, "box")


def test_settings_that_work() -> None:
    variables = {
        "docker_engine_daemon_options": {"log-driver": "local", "log-opts": {"max-size": "1g"}, "mtu": 1400},
        "docker_engine_registry_mirrors": ["https://mirror.example:5000", "http://10.0.0.1/"],
        "docker_engine_repository_url": "https://mirrors.aliyun.com/docker-ce/linux",
        "docker_engine_repository_fingerprints": ["9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88"],
        "docker_engine_version": "29.8.2",
        "docker_engine_log_max_size": "50m",
        "docker_engine_log_max_file": 3,
        "docker_engine_data_root": "/data/docker",
    }
    assert docker_engine_validation.problems("box", variables) == []
