# MIT licence (see LICENSE)
"""What goes into a bundle: platforms, wheels, packages, and how large it gets. Pure; runs on the controller.

docs/bundle.md describes the folder that comes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging import specifiers, tags, utils, version

#: Releases of distributions: what they are called, the minor number of their C library, their own Python.
RELEASES: dict[str, tuple[str, str, int, str]] = {
    "bionic": ("ubuntu", "18.04", 27, "3.6"),
    "focal": ("ubuntu", "20.04", 31, "3.8"),
    "jammy": ("ubuntu", "22.04", 35, "3.10"),
    "noble": ("ubuntu", "24.04", 39, "3.12"),
    "bullseye": ("debian", "11", 31, "3.9"),
    "bookworm": ("debian", "12", 36, "3.11"),
    "trixie": ("debian", "13", 41, "3.13"),
}
#: What the kernel calls an architecture, and what Debian and npm call it.
ARCHITECTURES = {"x86_64": ("amd64", "x64"), "aarch64": ("arm64", "arm64")}
#: C libraries that uv has a name for.
UV_GLIBC = (17, 28, *range(31, 41))
PLATFORM_KEYS = ("distribution", "codename", "architecture", "python")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class BundleError(Exception):
    """Why no bundle can be made: the variable, its value, the cause, and what to do."""

    def __init__(self, variable: str, value: Any, why: str, fix: str) -> None:
        super().__init__(why)
        self.variable, self.value, self.why, self.fix = variable, value, why, fix


@dataclass(frozen=True)
class File:
    """One file of the bundle that is fetched from an address. size 0 and sha256 "": not known before."""

    path: str
    url: str
    size: int
    sha256: str


# --- platforms ---------------------------------------------------------------------------------------------------


def codename(distribution: str, number: str) -> str:
    """`debian`, `12` → `bookworm`; nothing for others."""
    return next((name for name, it in RELEASES.items() if it[:2] == (distribution, number)), "")


def platform_of(facts: dict[str, Any]) -> dict[str, str]:
    """The platform of a host from its facts."""
    distribution, number = str(facts.get("distribution") or ""), str(facts.get("distribution_version") or "")
    name = codename(distribution, number)
    python = str((facts.get("system") or {}).get("system_python") or "")
    return {
        "distribution": distribution,
        "codename": name or number,
        "architecture": str(facts.get("architecture") or ""),
        "python": python or RELEASES.get(name, ("", "", 0, ""))[3],
    }


def facts_of(platform: dict[str, str], hardware: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A host's facts as roles ask for them: what is known of it, on this platform. entries: those of its models.

    A host of which nothing is known is taken for one with NVIDIA GPUs where its models need them.
    """
    _name, number, libc, python = RELEASES[platform["codename"]]
    assumed = {"nvidia_driver": "assumed", "nvidia_devices": 1} if not hardware and on_gpus(entries) else {}
    repository = {"distribution": platform["distribution"], "suite": platform["codename"]}
    return {
        **assumed,
        **hardware,
        "distribution": platform["distribution"],
        "distribution_version": number,
        "architecture": platform["architecture"],
        "glibc": f"2.{libc}",
        "system": {**(hardware.get("system") or {}), "system_python": platform.get("python") or python},
        "docker": {**(hardware.get("docker") or {}), "repository": repository},
    }


def on_gpus(entries: list[dict[str, Any]]) -> bool:
    """Whether models are such as run on GPUs."""
    return bool(entries) and all(
        "cuda" in (entry.get("runs_on") or ["cuda"]) and "builder" not in entry["source"] for entry in entries
    )


def checked(platform: Any) -> dict[str, str]:
    """An item of bundle_platforms that can be built for, with what it leaves out."""
    variable, known = "bundle_platforms", ", ".join(RELEASES)
    if not isinstance(platform, dict) or not set(platform) <= set(PLATFORM_KEYS):
        fix = "write {distribution: debian, codename: bookworm, architecture: x86_64, python: '3.11'}"
        raise BundleError(variable, platform, f"a platform has {', '.join(PLATFORM_KEYS)} and nothing else", fix)
    name = str(platform.get("codename") or "")
    if name not in RELEASES:
        raise BundleError(
            variable, platform, f"no bundle is made for this release; known are {known}", "name its codename"
        )
    distribution, _number, _glibc, python = RELEASES[name]
    found = {"distribution": distribution, "architecture": "x86_64", "python": python}
    found |= {key: str(value) for key, value in platform.items() if value}
    if found["distribution"] != distribution:
        raise BundleError(
            variable, platform, f"{name} is a release of {distribution}", f"set distribution: {distribution}"
        )
    if found["architecture"] not in ARCHITECTURES:
        why = f"there are builds for {' and '.join(ARCHITECTURES)} alone"
        raise BundleError(variable, platform, why, "name the architecture as `uname -m` prints it")
    if not re.fullmatch(r"3\.\d+(\.\d+)?", found["python"]):
        raise BundleError(variable, platform, "this is no version of Python", "quote it: python: '3.11'")
    return found


def debs_folder(platform: dict[str, str]) -> str:
    """Where a platform's packages lie."""
    return f"debs/{platform['codename']}-{ARCHITECTURES[platform['architecture']][0]}"


# --- wheels ------------------------------------------------------------------------------------------------------


def fits(python: str, wish: str) -> bool:
    """Whether a Python is what a role asks uv for: `>=3.11,<3.14`, `3.12`, or a path."""
    wish = wish.rpartition("/")[2].removeprefix("python")
    if re.fullmatch(r"\d+(\.\d+)*", wish):
        return (python + ".").startswith(wish + ".")
    # Of `3.11` alone nobody knows the last number; a distribution's own is past the first ones.
    return version.Version(python if python.count(".") > 1 else f"{python}.99") in specifiers.SpecifierSet(wish)


def minor(python: str) -> str:
    """`3.11.2` → `3.11`"""
    return ".".join(python.split(".")[:2])


def tag(python: str) -> str:
    """`3.11.2` → `cp311`"""
    return "cp" + minor(python).replace(".", "")


def glibc(name: str) -> int:
    """The minor number of a release's C library."""
    return RELEASES[name][2]


def uv_platform(architecture: str, number: int) -> str:
    """What uv calls it: the nearest older C library that it knows."""
    return f"{architecture}-manylinux_2_{max(it for it in UV_GLIBC if it <= max(number, UV_GLIBC[0]))}"


def rank(python: str, architecture: str, number: int) -> dict[tags.Tag, int]:
    """All tags that a platform takes, the best first."""
    platforms = [f"manylinux_2_{it}_{architecture}" for it in range(number, 4, -1)]
    for new, old in (("2_17", "2014"), ("2_12", "2010"), ("2_5", "1")):
        name = f"manylinux_{new}_{architecture}"
        if name in platforms:
            platforms.insert(platforms.index(name) + 1, f"manylinux{old}_{architecture}")
    platforms.append(f"linux_{architecture}")
    numbers = [int(part) for part in minor(python).split(".")]
    known = [*tags.cpython_tags(numbers, platforms=platforms)]
    known += tags.compatible_tags(numbers, interpreter=tag(python), platforms=platforms)
    return {it: place for place, it in enumerate(known)}


def wheels(pylock: str, folder: str, known: dict[tags.Tag, int]) -> tuple[list[File], list[str]]:
    """Of what uv resolved the best wheel of each package, and the names of those that have none."""
    # Only here: Pythons before 3.11 lack it, and can use a bundle all the same.
    import tomllib

    found, missing = [], []
    for package in tomllib.loads(pylock).get("packages", []):
        choices = []
        # A wheel that a lock names by its address is an archive to uv.
        for wheel in package.get("wheels", []) or [package["archive"]] * ("archive" in package):
            address = wheel.get("url") or "file://" + wheel["path"]
            name = unquote(urlsplit(address).path.rpartition("/")[2])
            places = [known[it] for it in utils.parse_wheel_filename(name)[3] if it in known]
            if places:
                file = File(f"{folder}/{name}", address, int(wheel.get("size") or 0), wheel["hashes"]["sha256"])
                choices.append((min(places), file))
        if choices:
            found.append(min(choices, key=lambda it: it[0])[1])
        else:
            missing.append(f"{package['name']} {package.get('version', '')}".strip())
    return found, missing


# --- packages of the distribution --------------------------------------------------------------------------------


def apt_uris(text: str) -> list[tuple[str, int, str]]:
    """Name below apt's archives, size and SHA-256 of each line of `apt-get --print-uris`."""
    return [
        (name, int(size), digest)
        for name, size, digest in re.findall(r"^'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})$", text, re.M)
    ]


def stanzas(text: str) -> dict[str, dict[str, str]]:
    """What `apt-cache show` tells, by SHA-256: `name` of the file and `text` for an index beside it."""
    found = {}
    for stanza in re.split(r"\n\s*\n", text.strip()):
        fields = dict(re.findall(r"^(\w[\w-]*): (.*)$", stanza, re.M))
        if "SHA256" in fields and "Filename" in fields:
            name = fields["Filename"].rpartition("/")[2]
            changed = re.sub(r"^Filename: .*$", lambda _it, name=name: f"Filename: ./{name}", stanza, flags=re.M)
            found[fields["SHA256"]] = {"name": name, "text": changed.strip() + "\n"}
    return found


# --- sizes -------------------------------------------------------------------------------------------------------


def human(size: float) -> str:
    """Bytes as people read them, in the units that disks and networks are sold in."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def split_bytes(text: Any) -> int:
    """bundle_split_size in bytes; 0 for none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(text or "0"), re.I)
    if not found:
        why, fix = "this is no size", "write it as 4G (for FAT: 4G is the most; decimal units)"
        raise BundleError("bundle_split_size", text, why, fix)
    return int(float(found.group(1)) * UNITS[found.group(2).upper()])
