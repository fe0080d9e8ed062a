"""apt_signed_source: keys made on the spot, served over HTTP, and what it does with wrong ones."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.modules import apt_signed_source

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not shutil.which("gpg") or not shutil.which("dpkg"), reason="needs gpg and dpkg, which apt systems have"
)


class Key:
    """A key of a repository."""

    def __init__(self, home: Path, name: str) -> None:
        home.mkdir(mode=0o700)
        self.home = home
        self.gpg("--passphrase", "", "--quick-gen-key", name, "ed25519", "sign", "never")
        listed = self.gpg("--with-colons", "--list-keys").decode()
        self.fingerprint = listed.split("\nfpr:")[1].split("\n")[0].strip(":")
        self.binary = self.gpg("--export")
        self.armored = self.gpg("--armor", "--export")

    def gpg(self, *arguments: str) -> bytes:
        command = ["gpg", "--batch", "--quiet", "--homedir", str(self.home), *arguments]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Key, Key]]:
    # gpg's agent has a socket in this folder, and the name of a socket must be short.
    home = Path(tempfile.mkdtemp(prefix="gpg-"))
    made = (Key(home / "a", "Packages <packages@example.com>"), Key(home / "b", "Somebody Else <else@example.com>"))
    yield made
    for key in made:
        subprocess.run(["gpgconf", "--homedir", str(key.home), "--kill", "all"], check=False)
    shutil.rmtree(home)


class Server(http.server.ThreadingHTTPServer):
    """Answers what it was given, and counts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = self.server.content.get(self.path.partition("://")[2].partition("/")[2] or self.path)
        self.send_response(404 if data is None else 200)
        self.end_headers()
        self.wfile.write(data or b"<html>no such page</html>")

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


class Host:
    """A folder in the place of /etc/apt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keyring = path / "keyrings/modelhost-docker.gpg"
        self.source = path / "sources.list.d/modelhost-docker.sources"

    def run(self, check: bool = False, environment: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        """The module run as a program, as Ansible does it."""
        arguments = {
            "name": "docker",
            "uris": ["https://mirror.example/debian"],
            "suites": ["bookworm"],
            "components": ["stable"],
            "apt_dir": str(self.path),
            "environment_file": str(self.path / "download.env"),
            **options,
            "_ansible_check_mode": check,
            "_ansible_remote_tmp": str(self.path.parent),
        }
        plain = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(
            [sys.executable, str(ROOT / "plugins/modules/apt_signed_source.py")],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
            env={**plain, **(environment or {})},
        )  # fmt: skip
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def files(self) -> list[Path]:
        return [path for path in (self.keyring, self.source) if path.exists()]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "apt").mkdir()
    return Host(tmp_path / "apt")


@pytest.mark.parametrize("form", ["armored", "binary"])
def test_a_repository_with_the_right_key(host: Host, server: Server, keys: tuple[Key, Key], form: str) -> None:
    key = keys[0]
    server.content["/gpg"] = getattr(key, form)
    # As people copy it from a page: in groups of four.
    wanted: dict[str, Any] = {
        "key_url": f"{server.url}/gpg",
        "fingerprints": [apt_signed_source.spaced(key.fingerprint)],
    }
    first = host.run(**wanted)
    assert first["changed"], first
    assert first["update_needed"]
    assert first["fingerprints"] == [key.fingerprint]
    assert host.keyring.read_bytes() == key.binary
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    assert host.source.read_text().splitlines()[1:] == [
        "Types: deb",
        "URIs: https://mirror.example/debian",
        "Suites: bookworm",
        "Components: stable",
        f"Architectures: {architecture.strip()}",
        f"Signed-By: {host.keyring}",
    ]
    assert {oct(path.stat().st_mode & 0o777) for path in host.files()} == {"0o644"}
    assert server.asked == ["/gpg"]

    second = host.run(**wanted)
    assert not second["changed"]
    assert server.asked == ["/gpg"], "a keyring that fits is not fetched again"


def test_a_changed_address_keeps_the_keyring(host: Host, server: Server, keys: tuple[Key, Key]) -> None:
    server.content["/gpg"] = keys[0].armored
    wanted: dict[str, Any] = {"key_url": f"{server.url}/gpg", "fingerprints": [keys[0].fingerprint]}
    host.run(**wanted)
    changed = host.run(uris=["https://other.example/debian"], **wanted)
    assert changed["changed"]
    assert changed["update_needed"]
    assert "https://mirror.example/debian" in changed["diff"]["before"]
    assert "https://other.example/debian" in host.source.read_text()
    assert server.asked == ["/gpg"]


def test_a_wrong_fingerprint_is_told_and_nothing_written(host: Host, server: Server, keys: tuple[Key, Key]) -> None:
    server.content["/gpg"] = keys[0].armored
    result = host.run(key_url=f"{server.url}/gpg", fingerprints=[keys[1].fingerprint])
    assert result["failed"]
    for part in (f"{server.url}/gpg", *(apt_signed_source.spaced(key.fingerprint) for key in keys)):
        assert part in result["msg"]
    assert not host.files()


@pytest.mark.parametrize("form", ["armored", "binary"])
def test_a_foreign_key_beside_the_right_one_is_refused(
    host: Host, server: Server, keys: tuple[Key, Key], form: str
) -> None:
    server.content["/gpg"] = getattr(keys[0], form) + getattr(keys[1], form)
    result = host.run(key_url=f"{server.url}/gpg", fingerprints=[keys[0].fingerprint])
    assert result["failed"]
    assert apt_signed_source.spaced(keys[1].fingerprint) in result["msg"]
    assert not host.files()
    # Both named: both kept, one of them would have been enough.
    both = host.run(key_url=f"{server.url}/gpg", fingerprints=[key.fingerprint for key in keys])
    assert both["fingerprints"] == [key.fingerprint for key in keys]
    assert not host.run(key_url=f"{server.url}/gpg", fingerprints=[key.fingerprint for key in keys])["changed"]


def test_a_new_fingerprint_fetches_the_new_key(host: Host, server: Server, keys: tuple[Key, Key]) -> None:
    for key in keys:
        server.content["/gpg"] = key.armored
        assert host.run(key_url=f"{server.url}/gpg", fingerprints=[key.fingerprint])["changed"]
        assert host.keyring.read_bytes() == key.binary


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"<!DOCTYPE html><html>Log in to the network</html>", "holds no OpenPGP key; it begins with '<!DOCTYPE html>"),
        (b"", "holds no OpenPGP key"),
        (None, "answered 404"),
        (b"x" * (2 * 1024 * 1024), "is larger than any key"),
    ],
    ids=["page", "nothing", "missing", "huge"],
)
def test_what_is_no_key_is_told(
    host: Host, server: Server, keys: tuple[Key, Key], page: bytes | None, why: str
) -> None:
    if page is not None:
        server.content["/gpg"] = page
    result = host.run(key_url=f"{server.url}/gpg", fingerprints=[keys[0].fingerprint])
    assert result["failed"]
    assert why in result["msg"]
    assert not host.files()


def test_no_network_is_told_without_the_password(host: Host, server: Server, keys: tuple[Key, Key]) -> None:
    server.server_close()
    url = server.url.replace("//", "//me:geheim@")
    result = host.run(key_url=f"{url}/gpg", fingerprints=[keys[0].fingerprint])
    assert "could not be fetched" in result["msg"]
    assert "host_base_https_proxy" in result["msg"]
    assert "geheim" not in result["msg"]


def test_the_hosts_proxy_is_used(host: Host, server: Server, keys: tuple[Key, Key]) -> None:
    server.content["gpg"] = keys[0].armored
    (host.path / "download.env").write_text(f"# proxies\nexport http_proxy='{server.url}'\n")
    result = host.run(key_url="http://download.example/gpg", fingerprints=[keys[0].fingerprint])
    assert result["changed"], result
    assert server.asked == ["http://download.example/gpg"]


def test_check_mode_writes_nothing(host: Host, server: Server, keys: tuple[Key, Key], tmp_path: Path) -> None:
    server.content["/gpg"] = keys[0].armored
    wanted: dict[str, Any] = {"key_url": f"{server.url}/gpg", "fingerprints": [keys[0].fingerprint]}
    assert host.run(check=True, **wanted)["changed"]
    assert not host.files()
    # A wrong key is told in check mode as well.
    assert host.run(check=True, **{**wanted, "fingerprints": [keys[1].fingerprint]})["failed"]
    # A bare host has no gpg yet.
    bare = tmp_path / "bin"
    bare.mkdir()
    path = {"PATH": str(bare)}
    assert host.run(check=True, environment=path, **wanted)["changed"]
    host.run(**wanted)
    assert not host.run(check=True, **wanted)["changed"]


def test_a_key_in_a_file(host: Host, keys: tuple[Key, Key], tmp_path: Path) -> None:
    (tmp_path / "key.asc").write_bytes(keys[0].armored)
    wanted: dict[str, Any] = {"key_path": str(tmp_path / "key.asc"), "fingerprints": [keys[0].fingerprint]}
    assert host.run(**wanted)["changed"]
    assert not host.run(**wanted)["changed"]
    missing = host.run(key_path=str(tmp_path / "nothing"), fingerprints=[keys[1].fingerprint])
    assert "nothing" in missing["msg"]


def test_a_flat_repository(host: Host, keys: tuple[Key, Key], tmp_path: Path) -> None:
    (tmp_path / "key.asc").write_bytes(keys[0].armored)
    wanted: dict[str, Any] = {"key_path": str(tmp_path / "key.asc"), "fingerprints": [keys[0].fingerprint]}
    host.run(suites=["./"], components=[], architectures=["amd64", "arm64"], **wanted)
    assert "Suites: ./\nArchitectures: amd64 arm64\n" in host.source.read_text()


def test_absent_removes_both_files(host: Host, server: Server, keys: tuple[Key, Key]) -> None:
    server.content["/gpg"] = keys[0].armored
    host.run(key_url=f"{server.url}/gpg", fingerprints=[keys[0].fingerprint])
    (host.path / "sources.list.d/other.list").write_text("deb http://example stable main\n")
    assert host.run(check=True, state="absent")["changed"]
    assert len(host.files()) == 2
    assert host.run(state="absent")["changed"]
    assert not host.files()
    assert (host.path / "sources.list.d/other.list").exists()
    assert not host.run(state="absent")["changed"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fingerprints": ["0EBFCD88"]}, "is not a fingerprint of 40"),
        ({"fingerprints": []}, "fingerprints is empty"),
        ({"uris": ["https://me:geheim@mirror.example"]}, "everyone can read the list of sources"),
        ({"uris": ["https://mirror.example bookworm"]}, "white space"),
        ({"suites": ["./"]}, "flat repository"),
        ({"components": []}, "components is empty"),
        ({"key_path": "/key"}, "either key_url or key_path"),
        ({"name": "../docker"}, "small letters"),
    ],
)
def test_mistakes_are_told(host: Host, keys: tuple[Key, Key], options: dict[str, Any], why: str) -> None:
    wanted: dict[str, Any] = {"key_url": "http://127.0.0.1:1/gpg", "fingerprints": [keys[0].fingerprint], **options}
    result = host.run(**wanted)
    assert why in result["msg"]
    assert "geheim" not in result["msg"]
    assert not host.files()


def test_packages_from_a_bundle(host: Host, server: Server, keys: tuple[Key, Key]) -> None:
    """Nothing is asked, and a later run without it passes where the key is out of reach, but not with a wrong key."""
    out_of_reach: dict[str, Any] = {"key_url": "http://127.0.0.1:1/gpg", "fingerprints": [keys[0].fingerprint]}
    assert "127.0.0.1:1" in host.run(**out_of_reach)["msg"]
    assert not host.run(**out_of_reach, bundled=True, check=True)["changed"]
    assert host.run(**out_of_reach)["failed"]
    bundled = host.run(**out_of_reach, bundled=True)
    assert not bundled["changed"]
    assert not bundled["update_needed"]
    assert not host.files()
    later = host.run(**out_of_reach)
    assert not later["changed"]
    assert not later["update_needed"]
    assert "came from a bundle" in str(later["warnings"])
    server.content["/gpg"] = keys[1].binary
    assert "fingerprint" in host.run(key_url=f"{server.url}/gpg", fingerprints=[keys[0].fingerprint])["msg"]
    server.content["/gpg"] = keys[0].binary
    assert host.run(key_url=f"{server.url}/gpg", fingerprints=[keys[0].fingerprint])["changed"]
    assert host.run(state="absent")["changed"]
    assert list((host.path / "keyrings").iterdir()) == []
