#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: the addresses behind names, as this host sees them."""

from __future__ import annotations

import ipaddress
import re
import socket

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: network_addresses
author: the modelhost authors
short_description: Look up the addresses that a service may talk to
description:
  - Turns names into addresses on the host itself, for systemd's C(IPAddressAllow=), which takes none. Where a name is
    among them, the host's resolvers are added, because the service will ask them too.
  - Changes nothing.
options:
  names:
    description: Host names, addresses and networks.
    type: list
    elements: str
    required: true
  resolv_conf:
    description: Where the resolvers stand.
    type: path
    default: /etc/resolv.conf
"""
EXAMPLES = r"""
- name: Look up the engines
  modelhost.serving.network_addresses:
    names: [10.0.0.11, gpu-2.internal]
"""
RETURN = r"""
addresses:
  description: Addresses and networks, each once and sorted; those of the host's own loopback are left out.
  returned: always
  type: list
  elements: str
"""


def network(text: str) -> str | None:
    """An address or a network in its usual form; None for a name."""
    try:
        found = ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None
    return str(found.network_address) if found.num_addresses == 1 else str(found)


def resolvers(text: str) -> list[str]:
    """The name servers of a resolv.conf."""
    named = re.findall(r"(?m)^\s*nameserver\s+(\S+)", text)
    return [found for found in (network(item.partition("%")[0]) for item in named) if found]


def looked_up(names: list[str], resolv_conf: str) -> list[str]:
    """All addresses; raises OSError for a name that has none."""
    found, by_name = [], False
    for name in names:
        address = network(name)
        if address:
            found.append(address)
            continue
        by_name = True
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise OSError("%s has no address on this host: %s" % (name, error)) from error
        found += [str(answer[4][0]).partition("%")[0] for answer in answers]
    if by_name:
        with open(resolv_conf, encoding="utf-8", errors="replace") as handle:
            found += resolvers(handle.read())
    return sorted({item for item in found if not ipaddress.ip_network(item).is_loopback})


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "resolv_conf": {"type": "path", "default": "/etc/resolv.conf"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, addresses=looked_up(module.params["names"], module.params["resolv_conf"]))
    except OSError as error:
        module.fail_json(
            msg="%s. Names come from `litellm_reachable`, and from `vllm_bind_address`, `vllm_advertise_address` or "
            "`ansible_host` of the engines' hosts: set an address there, or a name that this host can look up." % error
        )


if __name__ == "__main__":
    main()
