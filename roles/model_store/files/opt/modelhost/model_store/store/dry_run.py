# MIT licence (see LICENSE)
"""python -m store.dry_run JOB.json

Prints in JSON what `stage` would download and from where. Asks the sources for their listings; writes nothing.
"""

from __future__ import annotations

import json
import sys
import types

from . import adopt, job, manifest, sources, stage


def look(wanted: dict, model: dict, origins: list) -> dict:
    """One model: source, files and bytes to download, and bytes that copies on this host save."""
    result = {"path": model["path"], "source": "", "files": 0, "bytes": 0, "local_bytes": 0, "error": ""}
    result["bound"] = bool(model["files_digest"])
    if stage.whole(model):
        return result
    try:
        found = stage.look_up(wanted, model, origins, types.SimpleNamespace(say=lambda _text: None))
    except job.JobError as error:
        return {**result, "error": str(error)}
    if stage.incomplete(model):
        wrong = dict(manifest.differences(model["path"], manifest.read(model["path"])))
        found.files = [item for item in found.files if item.path in wrong]
    elif wanted["adopt_mode"] != "never":
        places = [*wanted["adopt"], wanted["store"]]
        found.local = adopt.candidates(places, model, [item.entry() for item in found.files])
    files = [item for item in found.files if item.path not in found.local]
    need = sum(stage.absent(wanted, model, item) for item in files)
    local = sum(item.size for item in found.files if item.path in found.local)
    return {**result, "source": found.source, "files": len(files), "bytes": need, "local_bytes": local}


def main() -> None:
    """Entry point."""
    wanted = {**job.read(sys.argv[1]), "retries": 0}
    origins = sources.make(wanted["sources"])
    print(json.dumps([look(wanted, model, origins) for model in wanted["models"]]))


if __name__ == "__main__":
    main()
