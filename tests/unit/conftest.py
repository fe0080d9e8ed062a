"""Makes the collection importable from the checkout, as Ansible itself does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

# The role copies the store's program as it lies here: no compiled files between its sources. `./run` keeps them apart.
sys.dont_write_bytecode = sys.pycache_prefix is None
# What a test tells of GPUs is its own: nothing points to this machine's toolkit or cards.
for name in [name for name in os.environ if name.startswith(("CUDA_", "NVIDIA_"))]:
    del os.environ[name]
init_plugin_loader([str(Path(__file__).resolve().parents[2] / ".collections")])
# Hosts that do not answer do so at once, also where there is no ssh.
os.environ["ANSIBLE_SSH_EXECUTABLE"] = str(Path(__file__).with_name("ssh_to_nobody"))
