#!/usr/bin/env python3
"""A signed apt repository of tiny packages: build.py --spec SPEC.yml --out DIR

For tests of everything that has to do with foreign apt repositories, their keys, pins and holds. README.md has the
form of SPEC.yml. Needs dpkg-deb and gpg, no root. The signing key is made for this repository and thrown away.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from email.utils import formatdate
from pathlib import Path
from typing import Any

import yaml

#: What a Release file lists of each index.
HASHES = {"MD5Sum": hashlib.md5, "SHA256": hashlib.sha256}
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
FLAT = "./"


def run(*command: str, **options: Any) -> str:
    """A program's output; fails with it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build_package(package: dict[str, Any], spec_dir: Path, pool: Path) -> Path:
    """One .deb file."""
    architecture = package.get("architecture", "all")
    control = {
        "Package": package["name"],
        "Version": str(package["version"]),
        "Architecture": architecture,
        "Maintainer": "nobody <nobody@localhost>",
        "Description": package.get("description", "stand-in for a test, does nothing"),
        **{field: ", ".join(value) if isinstance(value, list) else value for field, value in extra(package).items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        debian = root / "DEBIAN"
        debian.mkdir(parents=True)
        debian.joinpath("control").write_text(
            "".join(f"{name}: {value}\n" for name, value in control.items()), encoding="utf-8"
        )
        for name in SCRIPTS:
            if name in package.get("scripts", {}):
                script = debian / name
                script.write_text("#!/bin/sh\nset -e\n" + package["scripts"][name], encoding="utf-8")
                script.chmod(0o755)
        for path, wanted in package.get("files", {}).items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if "from" in wanted:
                shutil.copyfile(spec_dir / wanted["from"], target)
            else:
                target.write_text(wanted.get("content", ""), encoding="utf-8")
            target.chmod(int(wanted.get("mode", "0644"), 8))
        # Folders as a package has them, whatever this user's umask.
        for path in [root, *root.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        file = pool / f"{package['name']}_{control['Version'].replace(':', '%3a')}_{architecture}.deb"
        run("dpkg-deb", "--build", "--root-owner-group", "-Znone", str(root), str(file))
    return file


def extra(package: dict[str, Any]) -> dict[str, Any]:
    """Further fields of the control file: Depends, Conflicts, Provides, Recommends …"""
    fields: dict[str, Any] = package.get("fields", {})
    return fields


def digests(file: Path) -> dict[str, str]:
    """A file's digests by the name that apt has for them."""
    content = file.read_bytes()
    return {name: function(content).hexdigest() for name, function in HASHES.items()}


def index_of(files: list[Path], out: Path, architecture: str) -> str:
    """The text of a Packages file."""
    blocks = []
    for file in files:
        control = run("dpkg-deb", "--field", str(file))
        if f"Architecture: {architecture}\n" not in control and "Architecture: all\n" not in control:
            continue
        digest = digests(file)
        blocks.append(
            f"{control.rstrip()}\nFilename: {FLAT}{file.relative_to(out)}\nSize: {file.stat().st_size}\n"
            f"MD5sum: {digest['MD5Sum']}\nSHA256: {digest['SHA256']}\n"
        )
    return "\n".join(blocks)


def write_indexes(spec: dict[str, Any], files: list[Path], out: Path) -> Path:
    """Packages and Release below `dists/SUITE`, or beside the packages where the spec names no suite (a flat
    repository, as NVIDIA's are). Returns the folder of the Release file."""
    suite, component = spec.get("suite", ""), spec.get("component", "main")
    architecture = run("dpkg", "--print-architecture").strip()
    top = out / "dists" / suite if suite else out
    folder = top / component / f"binary-{architecture}" if suite else top
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "Packages"
    text = index_of(files, out, architecture)
    index.write_text(text.replace(f"Filename: {FLAT}", "Filename: ") if suite else text, encoding="utf-8")
    index.with_suffix(".gz").write_bytes(gzip.compress(index.read_bytes(), mtime=0))
    release = {
        "Origin": spec.get("origin", "modelhost-testbed"),
        "Label": spec.get("label", spec.get("origin", "modelhost-testbed")),
        "Suite": suite or "stable",
        "Codename": suite or "stable",
        "Date": formatdate(usegmt=True),
        "Architectures": f"{architecture} all",
        "Components": component if suite else "",
    }
    lines = [f"{name}: {value}" for name, value in release.items() if value]
    for name in HASHES:
        lines.append(f"{name}:")
        for path in (index, index.with_suffix(".gz")):
            lines.append(f" {digests(path)[name]} {path.stat().st_size} {path.relative_to(top)}")
    top.joinpath("Release").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return top


def sign(top: Path, out: Path, name: str) -> str:
    """Sign the Release file with a key of its own; leaves key.asc and fingerprint in `out`."""
    with tempfile.TemporaryDirectory(prefix="gpg") as home:
        gpg = ["gpg", "--batch", "--quiet", "--homedir", home]
        options = {"env": {**os.environ, "GNUPGHOME": home}}
        try:
            user = f"{name} (throw-away)"
            # RSA, because the apt of every supported system takes it.
            run(*gpg, "--passphrase", "", "--quick-gen-key", user, "rsa2048", "sign", "never", **options)
            listing = run(*gpg, "--with-colons", "--fingerprint", **options)
            fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
            run(*gpg, "--yes", "--clearsign", "--output", str(top / "InRelease"), str(top / "Release"), **options)
            run(*gpg, "--yes", "--armor", "--export", "--output", str(out / "key.asc"), fingerprint, **options)
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True)
    out.joinpath("fingerprint").write_text(fingerprint + "\n", encoding="utf-8")
    return fingerprint


def build(spec_file: Path, out: Path) -> str:
    """The whole repository; returns the key's fingerprint."""
    spec = yaml.safe_load(spec_file.read_text(encoding="utf-8"))
    pool = out / "pool"
    shutil.rmtree(pool, ignore_errors=True)
    pool.mkdir(parents=True)
    files = [build_package(package, spec_file.parent, pool) for package in spec["packages"]]
    return sign(write_indexes(spec, files, out), out, spec.get("origin", "modelhost-testbed"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spec", type=Path, required=True, help="what is in it (README.md has the form)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the repository")
    arguments = parser.parse_args()
    print(build(arguments.spec.resolve(), arguments.out.resolve()))


if __name__ == "__main__":
    main()
