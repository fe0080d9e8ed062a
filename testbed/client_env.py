#!/usr/bin/env python3
"""Turn the demo's Claude Code settings into a file to `source` on this machine.

client_env.py FOLDER URL: FOLDER holds settings.json as the role claude_code wrote it for the demo's
account, and the user's key. Claude Code's own folder is set to FOLDER/claude, so that the settings of
whoever tries the demo stay as they are.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path


def main(folder: Path, url: str) -> None:
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    environment = {key: str(value) for key, value in settings.get("env", {}).items()}
    environment["ANTHROPIC_BASE_URL"] = url
    environment["CLAUDE_CONFIG_DIR"] = str(folder / "claude")
    environment.pop("ANTHROPIC_AUTH_TOKEN", None)
    print("# Points Claude Code and the SDKs at the demo, in this shell only.")
    for key, value in sorted(environment.items()):
        print(f"export {key}={shlex.quote(value)}")
    print(f'ANTHROPIC_AUTH_TOKEN="$(cat {shlex.quote(str(folder / "key"))})"')
    print("export ANTHROPIC_AUTH_TOKEN")
    permissions = {"permissions": settings["permissions"]} if "permissions" in settings else {}
    (folder / "claude" / "settings.json").write_text(json.dumps(permissions, indent=2), encoding="utf-8")
    # The first start of a fresh folder asks the vendor's servers otherwise.
    state = folder / "claude" / ".claude.json"
    if not state.exists():
        state.write_text(json.dumps({"hasCompletedOnboarding": True}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
