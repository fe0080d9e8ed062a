#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: which packages a host lacks. The action plugin of this name installs them."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: packages
author: the modelhost authors
short_description: Install the distribution's packages that a host lacks
description:
  - Asks dpkg once which of these packages are not installed. Where none is missing nothing else runs on the host.
  - Missing ones are installed together by M(ansible.builtin.apt), without what they merely recommend.
  - In check mode it says what would be installed. A fresh host has no package lists then, so apt is not asked.
options:
  names:
    description: Names of packages, without versions. An empty list costs no round trip.
    type: list
    elements: str
    required: true
  update_cache:
    description: Fetch package lists first if a package is missing.
    type: bool
    default: false
"""
EXAMPLES = r"""
- name: Install what the engine is built with
  modelhost.serving.packages:
    names: [libnuma1, numactl]
    update_cache: true
"""
RETURN = r"""
missing:
  description: Packages that were not there.
  returned: always
  type: list
  elements: str
installed:
  description: Those that were installed now.
  returned: always
  type: list
  elements: str
"""


def present(listing: str, architecture: str) -> set:
    """Packages of this architecture that dpkg calls installed, from lines of state, architecture and name."""
    found = set()
    for line in listing.splitlines():
        state, built_for, name = line.split()
        if state == "installed" and built_for in (architecture, "all"):
            found.add(name)
    return found


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "update_cache": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    names = module.params["names"]
    _code, architecture, _err = module.run_command(["dpkg", "--print-architecture"], check_rc=True)
    form = "${db:Status-Status} ${Architecture} ${Package}\\n"
    code, listing, said = module.run_command(["dpkg-query", "--show", "--showformat", form, *names])
    # 1: dpkg does not know one of them.
    if code not in (0, 1):
        module.fail_json(msg="packages: dpkg-query cannot say what is installed: %s" % said.strip())
    found = present(listing, architecture.strip())
    missing = [name for name in names if name not in found]
    module.exit_json(changed=bool(missing), missing=missing, installed=[])


if __name__ == "__main__":
    main()
