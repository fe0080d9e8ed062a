# MIT licence (see LICENSE)
"""From a job to models under their final paths."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from . import adopt, manifest, plan, sources
from .fetch import NO_ROOM, Full, Known, Run, drop_parts, existing, free, gib, remove, size_of
from .job import JobError, staging
from .plan import File


class Failed(Exception):
    """Some models could not be staged; the message has one line for each."""


@contextlib.contextmanager
def alone(job: dict, model: dict, status):
    """Hold the lock of one model: hosts may share a store over NFS, which passes flock on."""
    os.makedirs(os.path.join(job["store"], manifest.LOCKS), mode=0o755, exist_ok=True)
    name = "%s--%s.lock" % (model["repo"].replace("/", "--"), model["revision"])
    with open(os.path.join(job["store"], manifest.LOCKS, name), "a", encoding="utf-8") as handle:
        said = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    status.say("%s: another host or run stages it; waiting for that" % model["id"])
                    said = True
                time.sleep(1.0)  # the lock has no way to be waited for with an end to be seen
        yield


def usable(model: dict) -> dict | None:
    """The manifest of a staged model; None where there is none, or none that may be used for this model."""
    try:
        found = manifest.read(model["path"])
    except manifest.ManifestError:
        return None
    return found if found and not unbound(model, found) else None


def unbound(model: dict, found: dict) -> str:
    """Why what was staged once may not be used any more: the same rule as for what is listed now."""
    official = found["source"] == "hub " + manifest.HUB
    return manifest.binding_fault(model, manifest.of_model(model, found["files"]), official)


def whole(model: dict) -> bool:
    """Whether a model lies under its final path, as far as names and sizes tell."""
    found = usable(model)
    return bool(found) and not manifest.differences(model["path"], found)


class Here:
    """This host as the source of a list of files."""

    official = False

    def __init__(self, verified: str):
        self.verified = verified

    def __str__(self) -> str:
        return "files of this host"


class Plan:
    """What is to be done for one model."""

    def __init__(self, model: dict, files: list, source, origins: list):
        self.model, self.files, self.origins = model, files, origins
        self.source, self.verified = str(source), source.verified
        #: Copies on this host: path in the model → files that may be the same.
        self.local: dict = {}


def with_extras(model: dict, files: list) -> list:
    """With the files that no hub has. Mirrors and caches of ours list them too; the catalogue's hash counts."""
    extra = {
        item["path"]: File(item["path"], item["size"], item["sha256"], None, True, item["url"])
        for item in model["extra_files"]
    }
    return [file for file in files if file.path not in extra] + list(extra.values())


def planned(model: dict, listed: list, source, origins: list) -> Plan:
    """What to do by one source's list. Raises SourceError where the list may not be used, JobError where none would."""
    manifest.check_files([file.entry() for file in listed], "the list of files of %s" % source)
    files = plan.wanted(listed, model)
    if source.verified != "recorded":
        bare = [file.path for file in files if not file.sha256 and not file.blob_id]
        if bare:
            raise sources.SourceError("it names no hash of %s" % bare[0], True)
        why = manifest.binding_fault(model, manifest.of_model(model, [file.entry() for file in files]), source.official)
    else:
        # Their hashes are known once they are read: settle() looks at them.
        why = "" if model["files_digest"] else manifest.binding_fault(model, [], False)
    if why:
        raise sources.SourceError(why, True)
    return Plan(model, with_extras(model, files), source, origins)


def look_up(job: dict, model: dict, origins: list, status) -> Plan:
    """Which files the model has and where that is known from. Raises JobError where nobody can tell."""
    reasons = []
    for source in origins:
        for attempt in range(job["retries"] + 1):
            try:
                return planned(model, source.listing(model), source, origins)
            except JobError:
                raise
            except Exception as found:  # whatever a client raises: the next source may know
                error = sources.explain(found)
            if error.final or attempt == job["retries"]:
                break
            pause = max(error.after, 2.0**attempt)
            status.say("%s: %s: %s; again in %.0f s" % (model["id"], source, error, pause))
            time.sleep(pause)  # between bounded attempts
        if not error.final:
            source.gone = str(error)
        reasons.append("%s: %s" % (source, error))
        status.say("%s: %s" % (model["id"], reasons[-1]))
    for where in ([*job["adopt"], job["store"]], [model["path"]]):
        found = adopt.listing(where, model)
        # Without hashes only what lies under the final path counts: root put it there, with an earlier release.
        if found and (found[1] != "recorded" or where == [model["path"]]):
            try:
                return planned(model, [File(**item) for item in found[0]], Here(found[1]), origins)
            except (sources.SourceError, manifest.ManifestError) as error:
                reasons.append("%s: %s" % (Here(found[1]), error))
    stranger = adopt.untrusted(job["adopt"], model)
    raise JobError(
        "%s: no source could list %s at %s, and this host's caches do not hold all of it: %s%s"
        % (
            model["id"],
            model["repo"],
            model["revision"],
            "; ".join(reasons) or "hf_mirror_sources is empty",
            ". There is a copy in %s, but others than root may write there: if you trust it, name that folder in "
            "model_store_adopt_paths" % stranger
            if stranger
            else "",
        )
    )


def absent(job: dict, model: dict, file) -> int:
    """Bytes of a file that an earlier run has not brought yet."""
    path = os.path.join(staging(job, model), file.path)
    return 0 if os.path.exists(path) else max(0, file.size - size_of(path + ".part"))


def missing(job: dict, item: Plan) -> int:
    """Bytes that still need room on the disk."""
    disk = os.stat(existing(job["store"])).st_dev
    need = 0
    for file in item.files:
        # What lies on the same disk is linked or cloned, unless it has to be copied.
        near = any(os.stat(copy).st_dev == disk for copy in item.local.get(file.path, ()))
        need += 0 if near and job["adopt_mode"] != "copy" else absent(job, item.model, file)
    return need


def room(job: dict, plans: list) -> None:
    """Is there space for all of it? Raises Full before a byte is fetched."""
    need, there = sum(missing(job, item) for item in plans), free(job["store"])
    if need and need + job["reserve_bytes"] > there:
        raise Full(
            "%s more are needed in %s (and %s stay free, model_store_reserve_gib), but %s are free: free space, or set "
            "model_store_dir to a folder on a larger disk"
            % (gib(need), job["store"], gib(job["reserve_bytes"]), gib(there))
        )


def gather(run: Run, item: Plan) -> dict:
    """All files of a model in the folder beside its place; path → SHA-256."""
    job, model, status = run.job, item.model, run.status
    folder = staging(job, model)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    known = Known(folder)
    digests, left = {}, []
    for file in item.files:
        path = os.path.join(folder, file.path)
        status.expect(file.size)
        digest = known.digest(file.path)
        if digest and file.sha256 in (None, digest) and size_of(path) == file.size:
            digests[file.path] = digest
            status.passed(file.size)
            continue
        if os.path.lexists(path) and os.stat(path).st_nlink == 1:
            # Whole but not recorded: the run ended between the two. As a part it is hashed and then complete.
            os.replace(path, path + ".part")
        elif os.path.lexists(path):
            os.unlink(path)  # linked to somebody's file, and looked at again
        left.append(file)
    if left:
        status.say("%s: %d files, %s" % (model["id"], len(left), gib(sum(file.size for file in left))))
        run.fetch_all(model, left, folder, known, item.local)
    for file in item.files:
        digests[file.path] = digests.get(file.path) or known.files[file.path][2]
    return digests


def settle(job: dict, item: Plan, digests: dict) -> None:
    """Show a complete model under its final path."""
    model, folder = item.model, staging(job, item.model)
    entries = [{**file.entry(), "sha256": digests[file.path]} for file in item.files]
    bound = model["files_digest"]
    if bound and manifest.digest_of(manifest.of_model(model, entries), True) != bound["content"]:
        remove(folder)
        raise sources.SourceError(
            "what %s gave does not hash to files_digest.content of the catalogue; nothing of it is kept" % item.source,
            True,
        )
    tidy(folder, {file.path for file in item.files})
    for place, _folders, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            os.chmod(path, 0o644)
            # Open for reading is enough; after this it survives a power cut.
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        os.chmod(place, 0o755)
    manifest.write(folder, manifest.make(model["repo"], model["revision"], item.source, item.verified, entries))
    sync_folder(folder)
    os.makedirs(os.path.dirname(model["path"]), mode=0o755, exist_ok=True)
    old = folder + ".old"
    remove(old)
    if os.path.lexists(model["path"]):
        # Hand-made or of an earlier release. Running engines keep their open files.
        os.rename(model["path"], old)
    os.rename(folder, model["path"])
    sync_folder(os.path.dirname(model["path"]))
    remove(old)
    with contextlib.suppress(OSError):  # other revisions may be on their way
        os.rmdir(os.path.dirname(folder))
        os.rmdir(os.path.dirname(os.path.dirname(folder)))


def tidy(folder: str, wanted: set) -> None:
    """Take away what does not belong to the model."""
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if os.path.relpath(os.path.join(place, name), folder) not in wanted:
                os.unlink(os.path.join(place, name))
        for name in folders:
            with contextlib.suppress(OSError):  # not empty: it belongs
                os.rmdir(os.path.join(place, name))


def sync_folder(path: str) -> None:
    """Names that were made or changed in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mend(run: Run, model: dict, paths: list) -> None:
    """Fetch these files of a staged model again and put each in its place, whole."""
    found = manifest.read(model["path"])
    urls = {item["path"]: item["url"] for item in model["extra_files"]}
    files = [file for file in sources.files_of(found) if file.path in set(paths)]
    for file in files:
        file.url = urls.get(file.path)
    folder = staging(run.job, model)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    room(run.job, [Plan(model, files, Here("manifest"), run.sources)])
    run.status.expect(sum(file.size for file in files))
    run.fetch_all(model, files, folder, Known(folder))
    for file in files:
        source, target = os.path.join(folder, file.path), os.path.join(model["path"], file.path)
        os.chmod(source, 0o644)
        with open(source, "rb") as handle:
            os.fsync(handle.fileno())
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.replace(source, target)
        sync_folder(os.path.dirname(target))
    remove(folder)


def repair(job: dict, model: dict, paths: list, status) -> None:
    """The same for `verify`. Raises Failed with what every source said."""
    run = Run(job, status, sources.make(job["sources"]))
    try:
        with alone(job, model, status):
            mend(run, model, paths)
    except (sources.SourceError, Full) as error:
        raise Failed("%s: %s" % (model["id"], error)) from error
    finally:
        run.stop.set()


def stage_one(run: Run, item: Plan | None, model: dict) -> None:
    """One model, alone."""
    status = run.status
    with alone(run.job, model, status):
        if whole(model):
            status.result(id=model["id"], state="present", path=model["path"])
            return
        if item is None:
            found = manifest.read(model["path"])
            paths = [path for path, _why in manifest.differences(model["path"], found)]
            status.say("%s: %d files are missing or have another size" % (model["id"], len(paths)))
            mend(run, model, paths)
            status.result(id=model["id"], state="mended", path=model["path"], files=paths)
            return
        settle(run.job, item, gather(run, item))
        for source in run.sources:
            if isinstance(source, sources.Folder) and source.item.get("move"):
                remove(source.place(model))
        status.result(
            id=model["id"],
            state="staged",
            path=model["path"],
            source=item.source,
            verified=item.verified,
            bound=bool(model["files_digest"]),
        )
        status.say("%s: complete in %s" % (model["id"], model["path"]))
        if not model["files_digest"]:
            status.say("%s: %s" % (model["id"], manifest.only_from(item.source)))


def incomplete(model: dict) -> bool:
    """Whether there is a manifest that may be used, but not all that it names."""
    return usable(model) is not None and not whole(model)


def stage(job: dict, status) -> None:
    """Everything. Raises Failed with a line for each model that did not come."""
    os.makedirs(job["store"], mode=0o755, exist_ok=True)
    todo = [model for model in job["models"] if not whole(model)]
    problems, plans = [], {}
    for model in todo:
        if incomplete(model):
            continue
        try:
            status.say("%s: looking it up" % model["id"])
            item = look_up(job, model, sources.make(job["sources"]), status)
            recorded = item.verified == "recorded"
            if job["adopt_mode"] != "never" or recorded:
                places = [model["path"]] if recorded else [*job["adopt"], job["store"]]
                entries = [file.entry() for file in item.files]
                item.local = adopt.candidates(places, model, entries, recorded=recorded)
            plans[model["path"]] = item
        except JobError as error:
            problems.append(str(error))
    try:
        room(job, list(plans.values()))
        # In one order everywhere, so that hosts that share a store do not wait for each other in a circle.
        for model in sorted(todo, key=lambda model: model["path"]):
            if model["path"] not in plans and not incomplete(model):
                continue
            item = plans.get(model["path"])
            run = Run(job, status, item.origins if item else sources.make(job["sources"]))
            try:
                stage_one(run, item, model)
            except (JobError, sources.SourceError, manifest.ManifestError) as error:
                problems.append("%s: %s" % (model["id"], error))
            except (Full, OSError) as error:
                if isinstance(error, OSError) and error.errno not in NO_ROOM:
                    raise
                # Half files would keep the rest of the host from working.
                freed = drop_parts(staging(job, model))
                raise Full(
                    "%s: %s. Half files are removed (%s), finished ones stay for the next run: free space, or set "
                    "model_store_dir to a folder on a larger disk" % (model["id"], error, gib(freed))
                ) from error
            finally:
                run.stop.set()
    except Full as error:
        problems.append(str(error))
    if problems:
        raise Failed("\n".join(problems))
