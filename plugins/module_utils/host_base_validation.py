# MIT licence (see LICENSE)
"""What argument_specs cannot say of host_base's variables. Runs on the controller, before any connection."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

Problems = list[dict[str, Any]]

APT = ("host_base_apt_mirror", "host_base_apt_security_mirror")
PROXIES = ("host_base_apt_proxy", "host_base_http_proxy", "host_base_https_proxy")
LISTS = ("host_base_pip_extra_index_urls", "host_base_pip_find_links")
#: Other variables with one address.
OTHERS = ("host_base_pip_index_url", "host_base_npm_registry", "host_base_python_mirror")

#: Ends of addresses that belong to a variable's tools and not into the variable, with what they are.
TOO_LONG = {
    "host_base_apt_mirror": (r"/(dists|pool)(/.*)?$", "apt adds /dists and /pool itself"),
    "host_base_apt_security_mirror": (r"/(dists|pool)(/.*)?$", "apt adds /dists and /pool itself"),
    "host_base_pip_index_url": (r"/simple/[^/]+/?$", "pip and uv add the package's name themselves"),
}


def problems(host: str, variables: Any) -> Problems:
    """Everything that is wrong with host_base's variables of one host; those of a wrong type are left out before."""
    found = []
    for name in (*APT, *PROXIES, *OTHERS):
        value = variables.get(name)
        if isinstance(value, str) and value:
            found += address_problems(host, name, value)
    for name in LISTS:
        for index, value in enumerate(texts(variables.get(name))):
            if "://" in value or name != "host_base_pip_find_links":
                found += address_problems(host, f"{name}[{index}]", value)
            elif not value.startswith("/"):
                why = "this is neither an absolute path on the host nor a URL"
                found.append(problem(host, f"{name}[{index}]", value, why, "write it as /path or https://…"))
    found += mirror_problems(host, variables)
    found += certificate_problems(host, texts(variables.get("host_base_extra_ca_certificates")))
    found += key_problems(host, variables.get("host_base_apt_mirror_key"), variables.get("host_base_apt_mirror"))
    return found + exception_problems(host, variables)


def masked(address: str) -> str:
    """An address without its password, as it may be shown."""
    return re.sub(r"//[^/@\s]+@", "//…@", address)


def texts(value: Any) -> list[str]:
    """The texts of a list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


# --- addresses ---------------------------------------------------------------------------------------------------


def address_problems(host: str, name: str, value: str) -> Problems:
    """One address of a mirror or a proxy."""
    proxy = name in PROXIES
    schemes = ("http", "https", "socks5h") if proxy else ("http", "https", "file")
    try:
        part = urlsplit(value)
        port, known = part.port, part.scheme in schemes
    except ValueError as error:
        return [problem(host, name, value, f"this is no URL: {error}", "write it as https://name:port/path")]
    if not known or not (part.hostname or part.scheme == "file"):
        # A name that ends in _url and the like was judged with the types already.
        return [problem(host, name, value, "this is no URL", f"write it as {' or '.join(f'{x}://…' for x in schemes)}")]
    if re.search(r"[\s\"'\\<>{}]", value):
        why = "an address cannot hold spaces, quotes, braces or backslashes"
        return [problem(host, name, value, why, "write such characters of a password as %22, %20 and so on")]
    found = []
    if proxy and (part.path.strip("/") or part.query):
        fix = f"set it to {part.scheme}://{part.hostname}{f':{port}' if port else ''}"
        found.append(problem(host, name, value, "a proxy's address has no path", fix))
    if re.search(r"\s", unquote((part.username or "") + (part.password or ""))):
        why = "apt and npm cannot take a name or password with spaces in it"
        found.append(problem(host, name, value, why, "choose another password"))
    pattern, why = TOO_LONG.get(name, ("$^", ""))
    if re.search(pattern, value):
        short = re.sub(pattern, "/simple" if name == "host_base_pip_index_url" else "", value)
        found.append(problem(host, name, value, why, f"set it to {masked(short)}"))
    return found


def mirror_problems(host: str, variables: Any) -> Problems:
    """Mirrors of apt that can only be a mistake."""
    found = []
    main, security = (str(variables.get(name) or "") for name in APT)
    if main.rstrip("/").endswith("/debian-security"):
        why = "this holds Debian's security updates only"
        fix = "name the mirror of debian here, and this one in host_base_apt_security_mirror"
        found.append(problem(host, APT[0], main, why, fix))
    if security.rstrip("/").endswith("/debian"):
        why = "this holds no security updates: Debian has them in debian-security"
        found.append(problem(host, APT[1], security, why, f"set it to {masked(security.rstrip('/'))}-security"))
    if main.rstrip("/").endswith("/debian") and not security:
        why = "security updates still come from Debian's own server"
        own = f"{masked(main.rstrip('/'))}-security"
        fix = f"set it to {own} if the mirror has that, or leave it if this host reaches Debian"
        found.append(problem(host, APT[1], None, why, fix, "warning"))
    return found


def exception_problems(host: str, variables: Any) -> Problems:
    """host_base_no_proxy, which every program reads in its own way; all of them understand names and domains."""
    name = "host_base_no_proxy"
    value = variables.get(name)
    if not isinstance(value, str) or not any(variables.get(proxy) for proxy in PROXIES):
        return []
    found = []
    if re.search(r"\s", value.strip()):
        why = "most programs do not look for spaces here, and would miss what follows one"
        found.append(problem(host, name, value, why, "set it to " + re.sub(r"[,\s]+", ",", value.strip())))
    for item in filter(None, re.split(r"[,\s]+", value)):
        try:
            network = "/" in item and ipaddress.ip_network(item, strict=False)
        except ValueError:
            network = False
        if network:
            why = f"curl, pip, npm and apt know no networks ({item}); they would go to the proxy with such addresses"
            found.append(problem(host, name, value, why, "name the hosts, or their domain (.corp.example)", "warning"))
        elif "/" in item or "://" in item:
            why = f"{item} is neither a name nor a domain nor an address"
            found.append(problem(host, name, value, why, "write names without http:// and without a path"))
        elif "*" in item.lstrip("*"):
            why = f"no program knows a * within a name ({item})"
            found.append(problem(host, name, value, why, "name the domain (.corp.example)"))
        elif item.startswith("*."):
            why = f"not every program knows {item}"
            found.append(problem(host, name, value, why, f"write {item[1:]}", "warning"))
    return found


# --- files of the controller -------------------------------------------------------------------------------------


def certificate_problems(host: str, paths: list[str]) -> Problems:
    """CA certificates that cannot be copied, or should not be."""
    found = []
    names: dict[str, int] = {}
    for index, path in enumerate(paths):
        place = f"host_base_extra_ca_certificates[{index}]"
        found += file_problems(host, place, path) or content_problems(host, place, path)
        first = names.setdefault(Path(path).stem, index)
        if first != index:
            why = f"the host would have one file for this and {paths[first]}"
            found.append(problem(host, place, path, why, "rename one of the two, or take one out"))
    return found


def file_problems(host: str, place: str, path: str) -> Problems:
    """A file of the controller that cannot be read."""
    file = Path(path).expanduser()
    if not file.is_absolute():
        why = "it is not clear below which folder a relative path is meant"
        fix = "write the whole path, for example {{ inventory_dir }}/files/ca.pem"
        return [problem(host, place, path, why, fix)]
    if not file.is_file():
        return [problem(host, place, path, "this machine, which runs Ansible, has no such file", "copy it there")]
    return []


def content_problems(host: str, place: str, path: str) -> Problems:
    """A file that holds something else than certificates."""
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        return [problem(host, place, path, f"it cannot be read: {error.strerror}", "make it readable for you")]
    if b"PRIVATE KEY-----" in data:
        why = "this file holds a private key, and everybody on the host could read it"
        return [problem(host, place, path, why, "name a file with the certificate alone")]
    if b"-----BEGIN CERTIFICATE-----" in data and b"-----END CERTIFICATE-----" in data:
        return []
    if data[:1] == b"\x30":
        why = "this is a certificate in DER, and hosts want PEM"
        fix = f"openssl x509 -inform der -in {path} -out {Path(path).with_suffix('.pem')}"
        return [problem(host, place, path, why, fix)]
    why = "this is no certificate in PEM: there is no line -----BEGIN CERTIFICATE-----"
    return [problem(host, place, path, why, "export the certificate of the CA as PEM (Base64)")]


def key_problems(host: str, path: Any, mirror: Any) -> Problems:
    """The key of a mirror that signs anew."""
    name = "host_base_apt_mirror_key"
    if not isinstance(path, str) or not path:
        return []
    found = file_problems(host, name, path)
    if not mirror:
        why = "there is no mirror that it could be for"
        found.append(problem(host, name, None, why, "set host_base_apt_mirror as well, or take this out"))
    if Path(path).suffix not in (".asc", ".gpg"):
        why = "apt tells by the end of the name what kind of file it is"
        found.append(problem(host, name, None, why, "call it .asc if it begins with -----BEGIN PGP, else .gpg"))
    elif not found:
        armored = Path(path).expanduser().read_bytes().lstrip()[:14] == b"-----BEGIN PGP"
        if armored != (Path(path).suffix == ".asc"):
            why = "it is armored" if armored else "it is not armored"
            found.append(
                problem(
                    host, name, None, f"{why}, and apt would not read it", f"call it .{'asc' if armored else 'gpg'}"
                )
            )
    return found
