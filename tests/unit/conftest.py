"""Makes the collection importable from the checkout, as Ansible itself does."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

# The role copies the store's program as it lies here: no compiled files between its sources.
sys.dont_write_bytecode = True
init_plugin_loader([str(Path(__file__).resolve().parents[2] / ".collections")])
