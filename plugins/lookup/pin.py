# MIT licence (see LICENSE)
"""Read a pin from versions.yml."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml

DOCUMENTATION = r"""
name: pin
author: the modelhost authors
short_description: A version, checksum or lock file from versions.yml
description:
  - Reads C(versions.yml) of this collection, the only place where versions, checksums and
    lock files are written down. It lies two folders above this plugin, so that the roles of
    an installed collection find it too.
options:
  _terms:
    description: Dotted paths into the file, such as C(litellm.version).
    required: true
    type: list
    elements: str
  as_content:
    description: Give the content of the file that the pin names (a lock), not its name.
    type: bool
    default: false
"""
EXAMPLES = r"""
litellm_version: "{{ lookup('modelhost.serving.pin', 'litellm.version') }}"
__litellm_lock: "{{ lookup('modelhost.serving.pin', 'litellm.lock', as_content=true) }}"
"""
RETURN = r"""
_raw:
  description: The values found, in the order asked for.
  type: list
"""

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def pins() -> dict[str, Any]:
    """The whole of versions.yml as a dictionary."""
    data = read_yaml(ROOT / "versions.yml")
    assert isinstance(data, dict)
    return data


def pin(path: str) -> Any:
    """The value at a dotted path; KeyError names the part that is missing."""
    value: Any = pins()
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            raise KeyError(part)
        value = value[part]
    return value


class LookupModule(LookupBase):
    """`modelhost.serving.pin`."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[Any]:
        self.set_options(var_options=variables, direct=kwargs)
        found = []
        for term in terms:
            try:
                value = pin(term)
            except KeyError as error:
                raise AnsibleError(f"versions.yml has no '{term}' ({error} is missing)") from error
            if self.get_option("as_content"):
                value = (ROOT / value).read_text(encoding="utf-8")
            found.append(value)
        return found
