# MIT licence (see LICENSE)
"""The model catalogue as a lookup."""

from __future__ import annotations

from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.modelhost.serving.plugins.module_utils import catalog

DOCUMENTATION = r"""
name: catalog
author: the modelhost authors
short_description: The model catalogue, by id
description:
  - Gives the entries of C(catalog/models/), and with O(own) a user's own entries, as one
    dictionary.
options:
  own:
    description: Entries of the same form that a user adds (C(vllm_models)).
    type: list
    elements: dict
    default: []
"""
EXAMPLES = r"""
__vllm_catalog: "{{ lookup('modelhost.serving.catalog', own=vllm_models) }}"
"""
RETURN = r"""
_raw:
  description: One dictionary, id to entry.
  type: list
"""


class LookupModule(LookupBase):
    """`modelhost.serving.catalog`."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[Any]:
        self.set_options(var_options=variables, direct=kwargs)
        return [catalog.entries(self.get_option("own"))]
