#!/usr/bin/env python3
"""Build a bundle for an inventory's test host: build.py INVENTORY FOLDER. Only what is missing is fetched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from hub.server import Hub  # noqa: E402 - it lies in the tests

#: As the inventory names it.
REPO, REVISION = "Modelhost/Loopback", "5ca1ab1e" * 5


def main(inventory: Path, folder: Path) -> None:
    """Entry point."""
    tools = Path(sys.executable).parent
    hosts = subprocess.run(
        [tools / "ansible-inventory", "-i", inventory, "--list"], capture_output=True, text=True, check=True
    )
    (host,) = json.loads(hosts.stdout)["testbed"]["hosts"]
    # A host is made of what can be had here: Ubuntu's image, or Debian's packages.
    told = subprocess.run(
        ["docker", "exec", host, "cat", "/etc/os-release"], capture_output=True, text=True, check=True
    )
    release = dict(line.replace('"', "").split("=", 1) for line in told.stdout.splitlines() if "=" in line)

    repositories = folder.parent / "hub"
    model = repositories / REPO
    if not model.exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        builder = ROOT / "roles/model_store/files/opt/modelhost/builders/loopback_model/build.py"
        subprocess.run([sys.executable, builder, model], check=True)
        (model / ".hub.json").write_text(json.dumps({"revision": REVISION}), encoding="utf-8")
    with Hub(repositories) as hub:
        variables = {
            "bundle_dir": str(folder),
            "bundle_platforms": [{"codename": release["VERSION_CODENAME"]}],
            "hf_mirror_sources": [{"type": "hub", "url": hub.url}],
        }
        subprocess.run(
            [tools / "ansible-playbook", ROOT / "playbooks/bundle.yml", "-i", inventory, "-e", json.dumps(variables)],
            cwd=ROOT,
            check=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
