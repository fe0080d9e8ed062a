# MIT licence (see LICENSE)
"""The YAML files of this project itself, read on the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Every task runs in a process of its own and reads them again: libyaml takes a tenth of the time. A PyYAML that was
# built without it reads the same.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """What a file of this project holds."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
