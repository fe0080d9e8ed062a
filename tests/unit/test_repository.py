"""The repository itself: locks, links, roles' skeleton and documentation, inventories, the collection's tarball."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if (path / "tasks/main.yml").exists())
INVENTORIES = sorted(path for path in (ROOT / "inventories").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """Files that git knows or would add."""
    if not shutil.which("git"):
        pytest.skip("no git here")
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).exists() or (ROOT / name).is_symlink()]


def ansible(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# --- locks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requirements-uv", "requirements", "requirements-test"])
def test_every_requirement_is_locked_by_hash(name: str) -> None:
    text = (ROOT / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-zA-Z0-9])", "\n" + text)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[\w.\[\]-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("name", ["requirements-uv", "requirements", "requirements-test"])
def test_pins_are_what_is_locked(name: str) -> None:
    locked = (ROOT / f"{name}.txt").read_text(encoding="utf-8")
    for line in (ROOT / f"{name}.in").read_text(encoding="utf-8").splitlines():
        if "==" in line and not line.startswith("#"):
            assert re.search(rf"^{re.escape(line)}\b", locked, re.M), f"{line}: run ./run lock"


def test_uv_is_the_one_of_versions_yml() -> None:
    version = load(ROOT / "versions.yml")["uv"]["version"]
    assert f"uv=={version}" in (ROOT / "requirements-uv.in").read_text(encoding="utf-8")


# --- files -------------------------------------------------------------------------------------------------------


def test_links_stay_inside_the_repository() -> None:
    for path in tracked():
        if path.is_symlink():
            assert path.resolve().is_relative_to(ROOT), path
            assert path.exists(), f"{path} leads nowhere"


def test_scripts_with_a_first_line_are_executable() -> None:
    for path in tracked():
        if path.is_symlink() or not path.is_file() or "/plugins/modules/" in str(path) or "/files/" in str(path):
            continue
        if path.suffix == ".j2":
            continue
        with path.open("rb") as handle:
            if handle.read(2) == b"#!":
                assert path.stat().st_mode & 0o111, f"{path} has a first line for execution, but not the mode"


def test_no_key_lies_in_the_repository() -> None:
    pattern = re.compile(r"\bsk-[A-Za-z0-9_-]{32,}\b|-----BEGIN (?:RSA |EC |OPENSSH )?PRIVATE KEY-----")
    for path in tracked():
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 500_000 or path == Path(__file__):
            continue
        found = pattern.search(path.read_text(encoding="utf-8", errors="ignore"))
        # A test's own stand-in has hardly any different characters.
        assert not found or len(set(found.group(0))) < 12, f"{path}: {found and found.group(0)[:8]}…"


# --- clocks in tests ---------------------------------------------------------------------------------------------

CLOCK = r"\b(?:monotonic|perf_counter|time|time_ns)\(\)"
#: Ways to fail on a machine that is only slow.
OF_A_CLOCK = {
    "compares a clock": re.compile(rf"[<>].*{CLOCK}|{CLOCK}.*[<>]"),
    "compares seconds": re.compile(r"^\s*assert\b.*\b(?:seconds|took|elapsed|duration)\b.*<"),
    "sleeps": re.compile(r"\bsleep\((?!0\))"),
    "has a limit of its own": re.compile(r"\b(?:timeout|deadline|limit)=[\d(]|\.(?:join|wait)\(\d"),
}


def of_a_clock(text: str) -> list[str]:
    """Lines of a test that a slow machine could fail, and why. `# clock: reason` on the line allows one."""
    return [
        f"{number}: {why}"
        for number, line in enumerate(text.splitlines(), 1)
        for why, pattern in OF_A_CLOCK.items()
        if pattern.search(line) and "# clock: " not in line
    ]


def test_no_test_needs_a_quick_machine() -> None:
    """Growth is a ratio or a count, a wait is for an event, and patience.HANGS is the one limit: for what hangs."""
    wrong = []
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        # Benchmarks measure.
        if re.match(r"(tests/(?!benchmark/)|molecule/).*\.py$", name) and path != Path(__file__):
            wrong += [f"{name}:{line}" for line in of_a_clock(path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("assert time.monotonic() - began < 5", True),
        ("assert 0.3 < time.monotonic() - began < 2", True),
        ("while time.monotonic() < ends:", True),
        ('assert results["chat"]["seconds"] < 3', True),
        ("assert took < 60", True),
        ("time.sleep(0.1)", True),
        ("process.communicate(timeout=30)", True),
        ("thread.join(5)", True),
        ("began = time.monotonic()", False),
        ("process.communicate(timeout=HANGS)", False),
        ("assert growth(unit, asked) < 8", False),
        ("time.sleep(0.1)  # clock: the server is slow on purpose", False),
    ],
)
def test_a_clock_in_a_test_is_seen(line: str, found: bool) -> None:
    assert bool(of_a_clock(line)) is found


# --- roles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_argument_specs_and_defaults_agree(role: Path) -> None:
    """Same names and same values; what has no default is required or stands in the specs alone."""
    specs = load(role / "meta/argument_specs.yml")["argument_specs"]
    options = specs["main"].get("options", {})
    defaults = (load(role / "defaults/main.yml") or {}) if (role / "defaults/main.yml").exists() else {}
    public = {name: value for name, value in defaults.items() if not name.startswith("_")}
    assert set(public) <= set(options), f"in defaults only: {set(public) - set(options)}"
    for name, option in options.items():
        assert option.get("description"), f"{name} has no description"
        assert "type" in option, f"{name} has no type"
        if name in public and not (isinstance(public[name], str) and "{{" in public[name]):
            assert option.get("default") == public[name], f"{name}: {option.get('default')!r} != {public[name]!r}"
        elif name not in public:
            assert "default" not in option, f"{name} has a default in the specs that nothing sets"
    for name in options:
        assert name == role.name or name.startswith(f"{role.name}_"), f"{name} lacks the role's prefix"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_role_tells_what_it_is(role: Path) -> None:
    assert (role / "README.md").exists()
    assert (role / "meta/argument_specs.yml").exists()


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_task_names_are_sentences_with_their_files_prefix(role: Path) -> None:
    def names(tasks: Any) -> list[str]:
        found: list[str] = []
        for task in tasks or []:
            found.append(task.get("name", ""))
            for part in ("block", "rescue", "always"):
                found += names(task.get(part))
        return found

    for file in sorted((role / "tasks").glob("*.yml")):
        for name in names(load(file)):
            assert name, f"{file}: a task without a name"
            sentence = name.partition(" | ")[2] if " | " in name else name
            assert sentence[0].isupper() or sentence.startswith("{{"), f"{file}: {name}"
            if " | " in name:
                assert name.partition(" | ")[0] == file.stem, f"{file}: {name}"


def test_root_variables_are_wiring_only() -> None:
    """Root group_vars beat a user's inventory, so a name there must not be one that users are told to set."""
    wiring = {name for file in (ROOT / "group_vars").rglob("*.yml") for name in (load(file) or {})}
    for inventory in INVENTORIES:
        for file in inventory.rglob("*.yml"):
            content = load(file) or {}
            names = set(content) if "group_vars" in file.parts or "host_vars" in file.parts else set()
            assert not names & wiring, f"{file} sets {names & wiring}, which has no effect"


# --- inventories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_inventory_has_hosts_in_known_groups(inventory: Path) -> None:
    listed = json.loads(ansible("ansible-inventory", "-i", str(inventory), "--list"))
    assert listed["_meta"]["hostvars"]
    known = {"all", "ungrouped", "engines", "gateways", "clients", "monitoring", "testbed", "_meta"}
    top = {
        name for name in listed if name in known or any(name in listed.get(k, {}).get("children", []) for k in known)
    }
    assert "engines" in top


# --- the collection ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    ansible("ansible-galaxy", "collection", "build", "--output-path", str(folder), str(ROOT))
    (file,) = folder.glob("*.tar.gz")
    return file


def test_tarball_holds_what_it_should_and_no_more(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = archive.getnames()
    tops = {name.split("/")[0] for name in names}
    assert {"roles", "plugins", "playbooks", "versions.yml", "catalog", "MANIFEST.json"} <= tops
    unwanted = {".cache", ".git", ".collections", ".venv", ".github", ".ci", "tests", "molecule", "run", ".config"}
    assert not tops & unwanted
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_installed_collection_runs_by_name(tarball: Path, tmp_path: Path) -> None:
    """A play outside the repository uses a role and a plugin of the installed collection."""
    (tmp_path / "ansible.cfg").write_text("")
    (tmp_path / "play.yml").write_text(
        """
- name: Use the installed collection
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Read a pin through the lookup
      ansible.builtin.assert:
        that: lookup('modelhost.serving.pin', 'litellm.version') is match('[0-9]')
    - name: Prepare the host
      ansible.builtin.import_role:
        name: modelhost.serving.host_base
      tags: [never, host]
    - name: Run an engine
      ansible.builtin.import_role:
        name: modelhost.serving.vllm
      tags: [never, host]
""",
        encoding="utf-8",
    )
    environment = {
        "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"),
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
    }
    install = [
        "ansible-galaxy",
        "collection",
        "install",
        "--offline",
        "-p",
        str(tmp_path / "collections"),
        str(tarball),
    ]
    # Elsewhere than in the checkout, whose own ansible.cfg would say that the collection is there already.
    ansible(*install, cwd=tmp_path, env=environment)
    ansible("ansible-playbook", "-i", "localhost,", "--syntax-check", "play.yml", cwd=tmp_path, env=environment)
    ansible("ansible-playbook", "-i", "localhost,", "play.yml", cwd=tmp_path, env=environment)
