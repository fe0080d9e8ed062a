"""The project's own YAML files mean the same by the fast parser and by the slow one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import own_files

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "versions.yml",
    "galaxy.yml",
    "catalog/*.yml",
    "catalog/models/*.yml",
    "group_vars/all/*.yml",
    "roles/*/meta/argument_specs.yml",
    "roles/*/vars/main.yml",
)
FILES = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_both_parsers_read_the_same(path: Path) -> None:
    assert own_files.read_yaml(path) == yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)


def test_the_fast_one_is_used_where_there_is_one() -> None:
    assert own_files.LOADER is (yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)


def test_a_broken_file_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text("key: [1,\n", encoding="utf-8")
    with pytest.raises(yaml.YAMLError):
        own_files.read_yaml(tmp_path / "broken.yml")
