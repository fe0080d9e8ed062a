#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: an apt repository whose key was checked by its fingerprint."""

from __future__ import annotations

import os
import re
import shlex
import ssl
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: apt_signed_source
author: the modelhost authors
short_description: An apt repository with a keyring of its own, checked by fingerprint
description:
  - Makes C(/etc/apt/keyrings/modelhost-<name>.gpg) and C(/etc/apt/sources.list.d/modelhost-<name>.sources), which
    trusts exactly that keyring (C(Signed-By)). The rest is apt's own checking of signatures; nothing else is trusted.
  - The key is fetched with the proxies and CA certificates of C(/etc/modelhost/download.env), and its fingerprint is
    looked at before anything is written. A keyring that is there and fits is kept, and nothing is fetched. To follow a
    repository to a new key, name the new fingerprint alone.
  - Needs the package C(gpg). Does not fetch package lists; see RV(update_needed).
options:
  name:
    description: What the two files are called after C(modelhost-).
    type: str
    required: true
  uris:
    description: Addresses of the repository, without a password (apt has C(/etc/apt/auth.conf.d) for these).
    type: list
    elements: str
    default: []
  suites:
    description: Suites, such as C(bookworm); of a flat repository its folder, such as C(./).
    type: list
    elements: str
    default: []
  components:
    description: Components, such as C(stable). Flat repositories have none.
    type: list
    elements: str
    default: []
  architectures:
    description: Architectures in dpkg's names. Empty means the host's own.
    type: list
    elements: str
    default: []
  key_url:
    description: Where the repository's key can be fetched, armored or binary.
    type: str
  key_path:
    description: The key as a file of the host, in place of O(key_url).
    type: path
  fingerprints:
    description: >-
      Fingerprints (40 hexadecimal digits, spaces allowed) of the keys that may stand in the file. Every primary key in
      it has to be one of these; the file need not hold all of them.
    type: list
    elements: str
    default: []
  state:
    description: V(absent) removes source and keyring.
    choices: [present, absent]
    type: str
    default: present
  bundled:
    description: The repository's packages come from a bundle in this run. Nothing is fetched, and all that is written
      down is that a later run may find the key out of reach.
    type: bool
    default: false
  environment_file:
    description: File with lines C(export NAME=value) that give proxies and CA certificates. It may be missing.
    type: path
    default: /etc/modelhost/download.env
  apt_dir:
    description: Folder of apt's configuration.
    type: path
    default: /etc/apt
"""
EXAMPLES = r"""
- name: Name Docker's repository
  modelhost.serving.apt_signed_source:
    name: docker
    uris: [https://download.docker.com/linux/debian]
    suites: [bookworm]
    components: [stable]
    key_url: https://download.docker.com/linux/debian/gpg
    fingerprints: ["9DC8 5822 9FC7 DD38 854A E2D8 8D81 803C 0EBF CD88"]
  register: source
"""
RETURN = r"""
keyring:
  description: The keyring's path.
  returned: always
  type: str
source:
  description: The path of the list of sources.
  returned: always
  type: str
fingerprints:
  description: Fingerprints of the keys in the keyring.
  returned: when the state is present
  type: list
  elements: str
update_needed:
  description: >-
    Whether C(apt-get update) is due. It follows what lies on disk, so an interrupted run forgets nothing.
  returned: when the state is present
  type: bool
"""

#: Seconds for the key's server.
TIMEOUT = 60
#: No keyring of a repository is larger, in bytes.
MOST = 1024 * 1024


class BadKeyError(Exception):
    """What is wrong with a key, as a sentence."""


class OutOfReachError(BadKeyError):
    """Nobody could be asked for it."""


def environment(text: str) -> dict:
    """The variables of lines `export NAME=value`."""
    found = {}
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if len(words) == 2 and words[0] == "export" and "=" in words[1]:
            name, _sep, value = words[1].partition("=")
            found[name] = value
    return found


def read(path: str) -> str | None:
    """A file's text, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def masked(url: str) -> str:
    """An address without its password."""
    return re.sub(r"//[^/@\s]+@", "//…@", url)


def spaced(fingerprint: str) -> str:
    """A fingerprint in groups of four, as people compare it."""
    return " ".join(re.findall("....", fingerprint))


def plain(fingerprints: list) -> list:
    """Fingerprints as 40 capital digits; ValueError for anything else."""
    found = []
    for item in fingerprints:
        digits = re.sub(r"\s", "", item).upper()
        if not re.match(r"[0-9A-F]{40}$", digits):
            raise ValueError("fingerprints: '%s' is not a fingerprint of 40 hexadecimal digits" % item)
        found.append(digits)
    return found


def mistakes(params: dict) -> list:
    """What is wrong with the options, in sentences."""
    found = []
    for name in ("uris", "suites", "fingerprints"):
        if not params[name]:
            found.append("%s is empty" % name)
    for name in ("uris", "suites", "components", "architectures"):
        for value in params[name]:
            if not value or re.search(r"\s", value):
                found.append("%s: %r is empty or holds white space" % (name, value))
    if not re.match(r"[a-z0-9][a-z0-9-]*$", params["name"]):
        found.append("name: %r is not made of small letters, digits and dashes" % params["name"])
    for uri in params["uris"]:
        if "@" in uri.split("//", 1)[-1].split("/", 1)[0]:
            found.append(
                "uris: %s holds a password, and everyone can read the list of sources; put it into a file below "
                "/etc/apt/auth.conf.d" % masked(uri)
            )
    flat = [suite.endswith("/") for suite in params["suites"]]
    if any(flat) and params["components"]:
        found.append("components: a flat repository (a suite that ends in /) has none")
    if not all(flat) and not params["components"]:
        found.append("components is empty; only a flat repository (a suite that ends in /) has none")
    if bool(params["key_url"]) == bool(params["key_path"]):
        found.append("give either key_url or key_path")
    return found


def entry(params: dict, architectures: list, keyring: str) -> str:
    """The list of sources in apt's newer form (deb822)."""
    fields = [
        ("Types", ["deb"]),
        ("URIs", params["uris"]),
        ("Suites", params["suites"]),
        ("Components", params["components"]),
        ("Architectures", architectures),
        ("Signed-By", [keyring]),
    ]
    lines = ["%s: %s" % (name, " ".join(values)) for name, values in fields if values]
    return "\n".join(["# Made by Ansible (modelhost.serving.apt_signed_source).", *lines]) + "\n"


def download(url: str, settings: dict) -> bytes:
    """What an address holds. Proxies and CA certificates are those of the settings."""
    os.environ.update(settings)
    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or None)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=TIMEOUT) as response:
            data: bytes = response.read(MOST + 1)
            return data
    except urllib.error.HTTPError as error:
        raise BadKeyError("%s answered %s %s" % (masked(url), error.code, error.reason)) from error
    except urllib.error.URLError as error:
        raise OutOfReachError(unreachable(url, error.reason)) from error
    except (OSError, ValueError) as error:
        raise OutOfReachError(unreachable(url, error)) from error


def unreachable(url: str, why: object) -> str:
    """A sentence for an address that does not answer."""
    return (
        "%s could not be fetched (%s). In a closed network name a mirror of the repository, a proxy in "
        "host_base_https_proxy, or an extra CA in host_base_extra_ca_certificates" % (masked(url), why)
    )


class Gpg:
    """gpg with a home of its own, which knows no key at first."""

    def __init__(self, module: AnsibleModule, home: str) -> None:
        self.module = module
        self.home = home
        self.count = 0

    def run(self, *arguments: str) -> tuple:
        """Exit status, output, complaints."""
        folder = "%s/gpg-%d" % (self.home, self.count)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        command = ["gpg", "--batch", "--no-tty", "--no-autostart", "--quiet", "--homedir", folder, *arguments]
        code, out, err = self.module.run_command(command, environ_update={"LC_ALL": "C"}, encoding=None)
        return code, out, err

    def primary(self, *arguments: str) -> list:
        """Fingerprints of the primary keys that a listing shows."""
        _code, out, _err = self.run("--with-colons", "--with-fingerprint", *arguments)
        return re.findall(r"^pub:.*\n(?:(?!fpr:).*\n)*fpr:+([0-9A-F]{40}):", out.decode("utf-8", "replace"), re.M)

    def inside(self, path: str) -> list:
        """Fingerprints of the primary keys in a file."""
        return self.primary("--import-options", "show-only", "--import", path)

    def keyring(self, data: bytes) -> tuple:
        """The keys of a file, armored or not, as one binary keyring, and their fingerprints."""
        self.count += 1
        path = "%s/key-%d" % (self.home, self.count)
        with open(path, "wb") as handle:
            handle.write(data)
        self.run("--import", path)
        # What gpg took in is looked at and written, and not what was sent: nothing can hide between the two.
        return self.run("--export")[1], self.primary("--list-keys")


def checked(found: list, wanted: list, where: str, data: bytes) -> None:
    """Raises unless every key is a wanted one."""
    if not found:
        start = data[:60].decode("utf-8", "replace").strip()
        raise BadKeyError("%s holds no OpenPGP key; it begins with %r" % (where, start))
    foreign = [key for key in found if key not in wanted]
    if foreign:
        raise BadKeyError(
            "%s holds a key that is not the expected one, so nothing was written. Found: %s. Wanted: %s. Somebody may "
            "stand between this host and the repository; or the repository has a new key: compare with what its makers "
            "publish before you change the fingerprint"
            % (where, ", ".join(map(spaced, found)), " or ".join(map(spaced, wanted)))
        )


def update_needed(module: AnsibleModule, source: str) -> bool:
    """Whether package lists of this source are missing or older than it."""
    try:
        written = os.path.getmtime(source)
    except OSError:
        return True
    code, out, _err = module.run_command(
        ["apt-get", "indextargets", "--format", "$(SOURCESENTRY)\t$(FILENAME)", "Created-By: Packages"]
    )
    lists = [line.split("\t")[1] for line in out.splitlines() if line.startswith(source + ":")]
    if code or not lists:
        return True
    # apt leaves the date of a list as the server gives it, but the list's folder is touched whenever one arrives.
    return not all(os.path.exists(path) for path in lists) or os.path.getmtime(os.path.dirname(lists[0])) < written


def mark(keyring: str) -> str:
    """Stands for a repository whose packages came from a bundle."""
    return keyring + ".bundled"


def present(module: AnsibleModule, source: str, keyring: str) -> None:
    """The state `present`."""
    params, result = module.params, {"source": source, "keyring": keyring, "changed": False}
    found = mistakes(params)
    try:
        wanted = plain(params["fingerprints"])
    except ValueError as error:
        found.append(str(error))
    if found:
        module.fail_json(msg="; ".join(found), **result)
    if not module.get_bin_path("gpg"):
        if module.check_mode:
            # A bare host; the role installs it first.
            module.exit_json(**dict(result, changed=True, fingerprints=wanted, update_needed=True))
        module.fail_json(msg="gpg is needed to look at the key: install the package gpg", **result)

    gpg = Gpg(module, module.tmpdir)
    keys = gpg.inside(keyring) if os.path.exists(keyring) else []
    if not keys or set(keys) - set(wanted):
        where = params["key_url"] or params["key_path"]
        try:
            if params["key_url"]:
                data = download(where, environment(read(params["environment_file"]) or ""))
            else:
                with open(where, "rb") as handle:
                    data = handle.read(MOST + 1)
            if len(data) > MOST:
                raise BadKeyError("%s is larger than any key (%d bytes)" % (masked(where), MOST))
            binary, keys = gpg.keyring(data)
            checked(keys, wanted, masked(where), data)
        except BadKeyError as error:
            if isinstance(error, OutOfReachError) and os.path.exists(mark(keyring)):
                module.warn("%s. Its packages came from a bundle and stay as they are" % error)
                module.exit_json(fingerprints=[], update_needed=False, **result)
            module.fail_json(msg=str(error), **result)
        except OSError as error:
            module.fail_json(msg="%s: %s" % (where, error), **result)
        write(module, keyring, binary)
        result["changed"] = True

    architectures = params["architectures"] or [
        module.run_command(["dpkg", "--print-architecture"], check_rc=True)[1].strip()
    ]
    before, after = read(source), entry(params, architectures, keyring)
    if before != after:
        write(module, source, after.encode())
        result["changed"] = True
        result["diff"] = {"before": before or "", "after": after, "before_header": source, "after_header": source}
    for path in (keyring, source):
        if not module.check_mode or os.path.exists(path):
            result["changed"] = module.set_fs_attributes_if_different(
                {"path": path, "owner": "root", "group": "root", "mode": "0644", "secontext": [], "attributes": None}
                if os.geteuid() == 0
                else {"path": path, "owner": None, "group": None, "mode": "0644", "secontext": [], "attributes": None},
                result["changed"],
            )
    module.exit_json(fingerprints=keys, update_needed=result["changed"] or update_needed(module, source), **result)


def write(module: AnsibleModule, path: str, data: bytes) -> None:
    """All of a file or nothing; its folder where it is missing."""
    if module.check_mode:
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = os.path.join(module.tmpdir, "part")
    with open(temporary, "wb") as handle:
        handle.write(data)
    module.atomic_move(temporary, path)


def main() -> None:
    """Entry point."""
    texts = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "uris": texts,
            "suites": texts,
            "components": texts,
            "architectures": texts,
            "key_url": {"type": "str", "no_log": False},
            "key_path": {"type": "path", "no_log": False},
            "fingerprints": texts,
            "state": {"choices": ["present", "absent"], "default": "present"},
            "bundled": {"type": "bool", "default": False},
            "environment_file": {"type": "path", "default": "/etc/modelhost/download.env"},
            "apt_dir": {"type": "path", "default": "/etc/apt"},
        },
        supports_check_mode=True,
    )
    name = "modelhost-" + module.params["name"]
    source = os.path.join(module.params["apt_dir"], "sources.list.d", name + ".sources")
    keyring = os.path.join(module.params["apt_dir"], "keyrings", name + ".gpg")
    if module.params["state"] == "present":
        if module.params["bundled"]:
            write(module, mark(keyring), b"")
            module.exit_json(changed=False, source=source, keyring=keyring, fingerprints=[], update_needed=False)
        present(module, source, keyring)
    # The source first: what is left of an interrupted run is a keyring that nothing refers to.
    there = [path for path in (source, keyring, mark(keyring)) if os.path.exists(path)]
    if not module.check_mode:
        for path in there:
            os.unlink(path)
    module.exit_json(changed=bool(there), source=source, keyring=keyring)


if __name__ == "__main__":
    main()
