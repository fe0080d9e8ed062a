# MIT licence (see LICENSE)
"""Holds what lies on the disk against the manifests, byte for byte, and repairs just what is damaged."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import stat

from . import adopt, manifest
from .job import JobError, staging

#: States of models that engines may load: as they were, or by what was done.
SOUND = ("ok", "adopted", "repaired", "staged")
REPAIR = "run playbooks/verify_models.yml with -e model_store_repair=true to fetch just that"


def verify(job: dict, status) -> None:
    """Every file of every model. Raises stage.Failed with a line for each model that is not as it should be."""
    from .stage import Failed

    os.nice(10)
    workers = max(1, min(job["workers"], os.cpu_count() or 1))
    problems = []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for model in job["models"]:
            result = look(job, model, pool, status)
            if result["state"] not in SOUND and job["repair"]:
                result = repaired(job, model, result, status)
            if result["state"] != "staged":  # stage has told
                status.result(**result)
            status.say(line(result))
            if result["state"] not in SOUND:
                problems.append(line(result))
    if problems:
        raise Failed("\n".join(problems + ([] if job["repair"] else [REPAIR])))


def look(job: dict, model: dict, pool, status) -> dict:
    """What is wrong with one model: its state is ok, adopted, absent, no manifest or damaged."""
    from . import stage

    result = {"id": model["id"], "path": model["path"], "state": "ok", "why": ""}
    result.update(missing=[], damaged={}, extra=[])
    if not os.path.isdir(model["path"]):
        return {**result, "state": "absent", "why": "it is not there"}
    try:
        found = manifest.read(model["path"])
    except manifest.ManifestError as error:
        return {**result, "state": "no manifest", "why": str(error)}
    made = None
    if found is None:
        try:
            made = expected(job, model, status)
            adopt.own(model["path"], [item["path"] for item in made["files"]])
        except adopt.Unfit as error:
            return {**result, "state": "no manifest", "why": "it is not taken over as it is: %s" % error}
        except JobError as error:
            return {**result, "state": "no manifest", "why": "nobody says what it should hold: %s" % error}
        found = made
    elif stage.unbound(model, found):
        return {**result, "state": "no manifest", "why": "its manifest is not used: " + stage.unbound(model, found)}
    files = found["files"]
    result["extra"] = extra(model["path"], {item["path"] for item in files})
    status.expect(sum(item["size"] for item in files))
    digests = list(pool.map(lambda item: digest(os.path.join(model["path"], item["path"]), item, status), files))
    for item, (sha256, why) in zip(files, digests):
        if why == "missing":
            result["missing"].append(item["path"])
        elif why:
            result["damaged"][item["path"]] = why
        item["sha256"] = sha256
    if result["missing"] or result["damaged"]:
        result["state"] = "no manifest" if made else "damaged"
    elif made:
        found = manifest.make(model["repo"], model["revision"], made["source"], made["verified"], files)
        manifest.write(model["path"], found)
        result.update(state="adopted", why="all as %s says; it had no manifest and has one now" % made["source"])
    return result


def expected(job: dict, model: dict, status) -> dict:
    """What a folder without a manifest should hold (an earlier release or a person filled it). Raises JobError."""
    from . import sources, stage

    # The client's own records in the folder count as well, where no source answers.
    places = {**job, "adopt": [*job["adopt"], model["path"]]}
    found = stage.look_up(places, model, sources.make(job["sources"]), status)
    if found.verified == "recorded":
        raise JobError("%s has no hashes either" % found.source)
    return {"source": found.source, "verified": found.verified, "files": [item.entry() for item in found.files]}


def digest(path: str, item: dict, status) -> tuple:
    """SHA-256 of a file and what is wrong with it. Reads from the disk, not from what memory still holds of it."""
    try:
        handle = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        status.passed(item["size"])
        return "", "missing"
    except OSError as error:
        status.passed(item["size"])
        return "", "it cannot be read: %s" % error.strerror
    count = 0
    with handle:
        state = os.fstat(handle.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_size != item["size"]:
            status.passed(item["size"])
            return "", "%d bytes instead of %d" % (state.st_size, item["size"])
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        sha256, blob = hashlib.sha256(), manifest.git_blob(item["size"])
        try:
            for block in iter(lambda: handle.read(manifest.BLOCK), b""):
                sha256.update(block)
                if not item["sha256"]:
                    blob.update(block)
                count += len(block)
                status.passed(len(block))
        except OSError as error:
            status.passed(item["size"] - count)
            return "", "it cannot be read: %s" % error.strerror
    right = sha256.hexdigest() == item["sha256"] if item["sha256"] else blob.hexdigest() == item["blob_id"]
    return sha256.hexdigest(), "" if right else "its content is not what the manifest says"


def extra(folder: str, known: set) -> list:
    """Files that belong to nothing; hidden ones are none of an engine's business."""
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [os.path.relpath(os.path.join(base, name), folder) for name in names if not name.startswith(".")]
        found += [path for path in paths if path not in known]
    return sorted(found)


def repaired(job: dict, model: dict, result: dict, status) -> dict:
    """The same model after its missing and damaged files were brought again."""
    from . import stage

    paths = sorted([*result["missing"], *result["damaged"]])
    try:
        if result["state"] != "damaged":
            # Without a manifest all is held against the hub's word, and what is right is taken over.
            stage.stage({**job, "models": [model]}, status)
            return {**result, "state": "staged", "why": ""}
        paths = from_here(job, model, paths, status)
        if paths:
            stage.repair(job, model, paths, status)
    except (stage.Failed, JobError) as error:
        return {**result, "why": str(error)}
    return {**result, "state": "repaired", "why": "restart engines that have loaded it"}


def from_here(job: dict, model: dict, paths: list, status) -> list:
    """Replace files by undamaged copies that this host has; the paths for which there is none."""
    from . import stage

    if job["adopt_mode"] == "never":
        return paths
    found = manifest.read(model["path"])
    entries = [item for item in found["files"] if item["path"] in paths]
    local = adopt.candidates([*job["adopt"], job["store"]], model, entries)
    left = []

    def copied(item: dict, place: str) -> bool:
        """Whether a copy that is not the damaged file itself lies at this place now."""
        others = [path for path in local.get(item["path"], []) if not path.startswith(model["path"] + os.sep)]
        options = {"mode": job["adopt_mode"], "reserve": job["reserve_bytes"]}
        return any(adopt.take(other, item, place, None, **options) for other in others)

    with stage.alone(job, model, status):
        for item in entries:
            place, target = (os.path.join(base, item["path"]) for base in (staging(job, model), model["path"]))
            os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
            if copied(item, place):
                os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
                os.replace(place, target)
                status.say("%s: %s from another copy on this host" % (model["id"], item["path"]))
            else:
                left.append(item["path"])
        if not left:
            stage.remove(staging(job, model))
    return left


def line(result: dict) -> str:
    """A model's state for people."""
    wrong = ["%s is missing" % path for path in result["missing"]]
    wrong += ["%s: %s" % item for item in sorted(result["damaged"].items())]
    text = "%s: %s" % (result["id"], result["state"])
    if wrong:
        text += " (%d files: %s)" % (len(wrong), "; ".join(wrong[:8]) + ("; …" if len(wrong) > 8 else ""))
    if result["extra"]:
        text += ", %d files that are not its own (%s)" % (len(result["extra"]), ", ".join(result["extra"][:8]))
    return text + (": " + result["why"] if result["why"] else "") + " in " + result["path"]
