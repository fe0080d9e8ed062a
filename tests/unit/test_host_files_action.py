"""host_files on the controller: sources are found, rendered and packed; what is wrong with a set is said before."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

#: Task → (its files, what its error says; "" where it works). {root} stands for the test's folder on the host.
TASKS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "works": (
        [
            {"path": "{root}", "state": "directory"},
            {"path": "{root}/named.conf", "src": "app/named.conf.j2", "vars": {"shade": "{{ colour }} and white"}},
            {"path": "{root}/lib", "src": "opt/lib", "prune": "*", "mode": "0755", "directory_mode": "0750"},
            {"path": "{root}/{name}.key", "each": "{{ users }}", "generate": "sk-{}"},
            {"path": "{root}/{name}.conf", "each": "{{ users }}", "src": "app/user.conf.j2"},
            {"path": "{root}/{item}.old", "each": ["x", "y"], "state": "absent"},
            {"path": "{root}/token", "content": "{{ hidden }}\n", "secret": True},
            {"path": "{root}/to", "link": "lib"},
        ],
        "",
    ),
    "found by its path": ([{"path": "/tmp/modelhost-found-by-its-path.conf"}], ""),
    "found by its path, gone": ([{"path": "/tmp/modelhost-found-by-its-path.conf", "state": "absent"}], ""),
    "no source": (
        [{"path": "/tmp/nothing.conf"}],
        "there is neither templates/tmp/nothing.conf.j2 nor files/tmp/nothing.conf",
    ),
    "misspelt": ([{"path": "/tmp/x", "contents": "x"}], "contents"),
    "relative": ([{"path": "etc/x", "content": "x"}], "path is to be absolute"),
    "dots": ([{"path": "/etc/../x", "content": "x"}], "path is to be absolute"),
    "two sources": ([{"path": "/tmp/x", "content": "x", "link": "y"}], "content and link exclude each other"),
    "folder with content": ([{"path": "/tmp/x", "state": "directory", "content": "y"}], "a folder has no content"),
    "no place for the secret": ([{"path": "/tmp/x", "generate": "KEY"}], "generate needs {}"),
    "no place for the file": ([{"path": "/tmp/x", "content": "x", "validate": "true"}], "validate needs %s"),
    "decimal mode": ([{"path": "/tmp/x", "content": "x", "mode": "rw"}], "mode is 'rw'; write it in octal"),
    "twice": ([{"path": "/tmp/x", "content": "x"}, {"path": "/tmp/x", "state": "absent"}], "/tmp/x: named twice"),
    "template in error": ([{"path": "/tmp/x", "src": "app/broken.conf.j2"}], "not_defined_anywhere"),
    "secret template in error": (
        [{"path": "/tmp/x", "src": "app/broken.conf.j2", "secret": True}],
        "cannot be rendered",
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A role with a task for each case: run in check mode, for real, and again. Its output and results are kept."""
    folder = tmp_path_factory.mktemp("world")
    role = folder / "roles/app"
    sources = {
        "templates/app/named.conf.j2": "{{ ansible_managed | comment }}\nshade = {{ shade }}\n"
        "{% include '_part.j2' %}\n",
        "templates/app/_part.j2": "who = {{ inventory_hostname }}\n",
        "templates/app/user.conf.j2": "user = {{ item.name }} ({{ item.role | default('none') }})\n",
        "templates/app/broken.conf.j2": "{{ hidden }} {{ not_defined_anywhere }}\n",
        "templates/tmp/modelhost-found-by-its-path.conf.j2": "found\n",
        "files/opt/lib/a.py": "a\n",
        "files/opt/lib/sub/b.py": "b\n",
        "files/opt/lib/__pycache__/a.pyc": "no\n",
    }
    for name, text in sources.items():
        (role / name).parent.mkdir(parents=True, exist_ok=True)
        (role / name).write_text(text)
    tasks: list[dict[str, Any]] = [
        {
            "name": name,
            "modelhost.serving.host_files": {
                "files": json.loads(json.dumps(files).replace("{root}", str(folder / "host")))
            },
            "register": f"result_{at}",
            "ignore_errors": True,
        }
        for at, (name, (files, _error)) in enumerate(TASKS.items())
    ]
    every = {name: f"{{{{ result_{at} }}}}" for at, name in enumerate(TASKS)}
    keep = {"content": "{{ every | to_json }}", "dest": "{{ into }}", "mode": "0600"}
    tasks.append({"ansible.builtin.copy": keep, "vars": {"every": every}, "check_mode": False, "diff": False})
    (role / "tasks").mkdir()
    (role / "tasks/main.yml").write_text(yaml.safe_dump(tasks))
    variables = {
        "colour": "red",
        "hidden": "hush-hush-hush",
        "users": [{"name": "ann", "role": "lead"}, {"name": "bob"}],
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    }
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "roles": ["app"]}
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    for name, how in {"check": ["--check", "--diff"], "first": [], "second": ["-vvv", "--diff"]}.items():
        command = ["ansible-playbook", "-i", "localhost,", "-c", "local", "-e", f"into={folder / name}.json", *how]
        done = subprocess.run(
            [*command, str(folder / "play.yml")],
            cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        )  # fmt: skip
        (folder / f"{name}.out").write_text(done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def results(world: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world / f"{name}.json").read_text())
    return found


def test_the_set_is_brought_about(world: Path) -> None:
    host = world / "host"
    assert (host / "named.conf").read_text() == "#\n# Ansible managed\n#\nshade = red and white\nwho = localhost\n"
    assert sorted(str(path.relative_to(host)) for path in host.rglob("*")) == [
        "ann.conf", "ann.key", "bob.conf", "bob.key", "lib", "lib/a.py", "lib/sub", "lib/sub/b.py", "named.conf", "to",
        "token",
    ]  # fmt: skip
    assert (host / "ann.conf").read_text() == "user = ann (lead)\n"
    assert (host / "bob.conf").read_text() == "user = bob (none)\n"
    assert (host / "token").read_text() == "hush-hush-hush\n"
    assert (host / "ann.key").read_text() != (host / "bob.key").read_text()
    modes = {
        name: f"{(host / name).stat().st_mode & 0o7777:04o}"
        for name in ("token", "ann.key", "lib", "lib/a.py", "named.conf")
    }
    assert modes == {"token": "0600", "ann.key": "0600", "lib": "0750", "lib/a.py": "0755", "named.conf": "0644"}


def test_check_mode_tells_what_the_run_then_does(world: Path) -> None:
    check, first, second = (results(world, name) for name in ("check", "first", "second"))
    assert check["works"]["changes"] == first["works"]["changes"]
    assert {item["path"] for item in first["works"]["changes"]} >= {
        f"{world}/host/ann.key",
        f"{world}/host/lib/sub/b.py",
    }
    assert first["works"]["changed"] is True
    assert second["works"]["changed"] is False
    assert second["works"]["changes"] == []
    assert first["found by its path"]["changed"] is True
    assert not Path("/tmp/modelhost-found-by-its-path.conf").exists()


@pytest.mark.parametrize("name", TASKS)
def test_what_is_wrong_with_a_set_is_said(world: Path, name: str) -> None:
    result, error = results(world, "first")[name], TASKS[name][1]
    assert result.get("failed", False) is bool(error)
    if error:
        assert error in result["msg"]
        assert not Path("/tmp/x").exists()


def test_no_secret_is_shown(world: Path) -> None:
    for name in ("check", "first", "second"):
        assert "hush" not in (world / f"{name}.out").read_text()
        assert "hush" not in (world / f"{name}.json").read_text()
    key = (world / "host/ann.key").read_text().strip()
    assert key not in (world / "second.out").read_text()
    assert "shade = red and white" in (world / "check.out").read_text(), "what is no secret is in the diff"
