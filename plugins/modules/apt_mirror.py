#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: the distribution's own archives in apt's sources, taken from a mirror; and back."""

from __future__ import annotations

import json
import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import secret_text

DOCUMENTATION = r"""
module: apt_mirror
author: the modelhost authors
short_description: Take the distribution's packages from a mirror
description:
  - Puts a mirror into the place of the distribution's own archives in C(sources.list), C(debian.sources) and
    C(ubuntu.sources), lines and deb822 stanzas alike. Other sources, comments and commented lines are left alone.
  - What stood there before is kept once, below O(keep). Without O(mirror) and O(security_mirror) it comes back, with
    what somebody changed in the meantime.
  - Archives are known by the last part of their address, C(debian), C(debian-security), C(ubuntu) or C(ubuntu-ports),
    whatever host holds them, and by C(security.debian.org). Those of C(ubuntu-ports) (ARM) are only replaced by a
    mirror whose address ends so too.
  - Fetches no package lists.
options:
  mirror:
    description: Address in place of the archive, such as V(https://mirrors.example/ubuntu), without a password (apt has
      C(/etc/apt/auth.conf.d) for these). Empty leaves the archive.
    type: str
    default: ""
  security_mirror:
    description: The same for security updates. Empty takes them from O(mirror) on Ubuntu, where one archive holds both,
      and leaves them where they are on Debian.
    type: str
    default: ""
  keyring:
    description: File of the host with the key that the mirror is signed with, for mirrors that sign anew. Empty trusts
      the key that the source named before.
    type: path
  keep:
    description: Folder for what the sources were before.
    type: path
    default: /etc/modelhost/apt
  apt_dir:
    description: Folder of apt's configuration.
    type: path
    default: /etc/apt
"""
EXAMPLES = r"""
- name: Take packages from the mirror
  modelhost.serving.apt_mirror:
    mirror: https://mirrors.example/debian
    security_mirror: https://mirrors.example/debian-security
- name: Take them from where they came before
  modelhost.serving.apt_mirror:
"""
RETURN = r"""
files:
  description: Sources that were changed.
  returned: always
  type: list
  elements: str
"""

#: Where distributions name their own archives.
SOURCES = ("sources.list", "sources.list.d/debian.sources", "sources.list.d/ubuntu.sources")
LINE = re.compile(r"^(\s*deb(?:-src)?\s+)(\[[^\]]*\]\s+)?(\S+)(\s+)(\S+)(.*)$")
#: A field of a deb822 stanza, with the lines that continue it.
FIELD = r"(?im)^(%s:)((?:.*)(?:\n[ \t].*)*)"


def archive(address: str, suites: list) -> tuple:
    """(distribution, whether these are its security updates) of an archive's address; nothing for any other address."""
    found = re.match(r"(?:mirror\+)?(?:https?|ftp|file)://(?:[^/@]*@)?([^/]*)/*(\S*?)/*$", address)
    if not found:
        return ()
    host, path = found.groups()
    if path.startswith("etc/apt/mirrors/"):  # Debian's cloud images
        path = os.path.basename(path).replace(".list", "")
    if host == "security.debian.org":
        path = "debian-security"
    if path not in ("debian", "debian-security", "ubuntu", "ubuntu-ports"):
        return ()
    updates = bool(suites) and all(re.search(r"-security$|/updates$", suite) for suite in suites)
    return path.replace("-security", ""), path == "debian-security" or updates


def instead(address: str, suites: list, mirror: str, security: str) -> str:
    """What takes the place of an address; nothing where it stays."""
    known = archive(address, suites)
    if not known:
        return ""
    distribution, updates = known
    wanted = (security or (mirror if distribution != "debian" else "")) if updates else mirror
    if (distribution == "ubuntu-ports") != wanted.rstrip("/").endswith("/ubuntu-ports"):
        return ""
    return wanted.rstrip("/")


def from_line(line: str, mirror: str, security: str, keyring: str) -> str:
    """One line of sources.list."""
    found = LINE.match(line)
    if not found:
        return line
    begin, options, address, space, suite, rest = found.groups()
    new = instead(address, [suite], mirror, security)
    if not new:
        return line
    if keyring:
        kept = re.sub(r"\bsigned-by=\S+", "", (options or "")[1:].partition("]")[0]).split()
        options = "[%s] " % " ".join([*kept, "signed-by=" + keyring])
    return begin + (options or "") + new + space + suite + rest


def from_stanza(stanza: str, mirror: str, security: str, keyring: str) -> str:
    """One stanza of a deb822 file."""
    suites = re.search(FIELD % "suites", stanza)
    named = suites.group(2).split() if suites else []
    changed = []

    def one(found: re.Match) -> str:
        new = instead(found.group(0), named, mirror, security)
        changed.append(new)
        return new or found.group(0)

    result = re.sub(FIELD % "uris", lambda field: field.group(1) + re.sub(r"\S+", one, field.group(2)), stanza)
    if keyring and any(changed):
        line = "Signed-By: " + keyring
        signed = re.search(FIELD % "signed-by", result)
        result = result.replace(signed.group(0) if signed else "URIs:", line if signed else line + "\nURIs:", 1)
    return result


def rewritten(path: str, text: str, mirrors: dict) -> str:
    """A file of sources with the mirrors in it."""
    arguments = (mirrors.get("mirror", ""), mirrors.get("security_mirror", ""), mirrors.get("keyring", ""))
    if path.endswith(".sources"):
        parts = re.split(r"(\n[ \t]*\n)", text)
        return "".join(part if not part.strip() else from_stanza(part, *arguments) for part in parts)
    return "\n".join(from_line(line, *arguments) for line in text.split("\n"))


def original(path: str, text: str, kept: str | None, *mirrors: dict) -> str:
    """A file of sources without the mirrors that stand in it: those of the last run, or of one that broke off."""
    if kept is None:
        return text
    if text == kept or any(text == rewritten(path, kept, item) for item in mirrors):
        return kept
    # Somebody changed it: theirs stays, and only the mirrors' addresses are turned back into those that stood there.
    known = [(found[1], address) for address in re.findall(r"\S+://\S+", kept) if (found := archive(address, []))]
    for name in ("security_mirror", "mirror"):
        url = mirrors[0].get(name, "").rstrip("/")
        there = sorted(known, key=lambda item: item[0] != (name == "security_mirror"))
        if url and there:
            text = re.sub(re.escape(url) + r"(?=/?\s)", there[0][1].rstrip("/"), text)
    return text


def write(module: AnsibleModule, path: str, text: str) -> None:
    """A file that everybody may read, and the folder for it."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    secret_text.write(module, path, text, private=False)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "mirror": {"type": "str", "default": ""},
            "security_mirror": {"type": "str", "default": ""},
            "keyring": {"type": "path", "no_log": False},
            "keep": {"type": "path", "default": "/etc/modelhost/apt"},
            "apt_dir": {"type": "path", "default": "/etc/apt"},
        },
        supports_check_mode=True,
    )
    params, keep = module.params, module.params["keep"]
    for name in ("mirror", "security_mirror"):
        if "@" in params[name].split("//", 1)[-1].split("/", 1)[0]:
            module.fail_json(
                msg=name + " holds a password, and everyone can read apt's sources: put it into auth.conf.d"
            )
    wanted = {name: params[name] for name in ("mirror", "security_mirror", "keyring") if params[name]}
    record = os.path.join(keep, "mirrors.json")
    before = json.loads(secret_text.read(record) or "{}")
    changed, diff = [], []
    for name in SOURCES:
        path, kept_path = os.path.join(params["apt_dir"], name), os.path.join(keep, name)
        text, kept = secret_text.read(path), secret_text.read(kept_path)
        if text is None:
            continue
        base = original(path, text, kept, before, wanted)
        new = rewritten(path, base, wanted)
        if not module.check_mode:
            # In this order a run that breaks off has lost nothing.
            if new != base and base != kept:
                write(module, kept_path, base)
            if new != text:
                write(module, path, new)
            if new == base and kept is not None:
                os.unlink(kept_path)
        if new != text:
            changed.append(path)
            diff.append({"before": text, "after": new, "before_header": path, "after_header": path})
    if not module.check_mode and wanted != before:
        if wanted:
            write(module, record, json.dumps(wanted, indent=2) + "\n")
        elif os.path.exists(record):
            os.unlink(record)
    module.exit_json(changed=bool(changed), files=changed, diff=diff)


if __name__ == "__main__":
    main()
