# MIT licence (see LICENSE)
"""Which files of a repository an engine needs."""

from __future__ import annotations

import fnmatch
import os
import re

from . import manifest
from .job import JobError

#: Everything beside weights: configuration, tokenizer, templates, licence.
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "README.md")
#: Copies of the same weights in other forms.
FOREIGN = ("original/*", "metal/*", "onnx/*", "openvino/*", "coreml/*", "*.gguf", "*.onnx", "*.msgpack", "*.h5", ".*")
#: What the store itself puts into its folders.
OURS = (manifest.NAME, ".verified.json", "*.part", "*.adopt")
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")


class File:
    """One file of a repository: path, size in bytes, and what its content must hash to.

    sha256 (hex) is known for large files of a hub and everywhere else; small files of a hub are known by
    blob_id, git's hash. A file without either can only be recorded, not verified.
    """

    __slots__ = ("blob_id", "lfs", "path", "sha256", "size", "url")

    def __init__(self, path, size, sha256=None, blob_id=None, lfs=False, url=None):
        self.path, self.size, self.sha256, self.blob_id, self.lfs, self.url = path, size, sha256, blob_id, lfs, url

    def entry(self) -> dict:
        """For the manifest."""
        return {name: getattr(self, name) for name in ("path", "size", "sha256", "blob_id", "lfs")}


def matches(path: str, patterns) -> bool:
    """Whether a path fits one of the patterns (those of fnmatch)."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def wanted(files: list, model: dict) -> list:
    """The files that an engine needs, of all that a repository has.

    Raises JobError where there are none, where weights are pickles only, and for names that lead out of the folder.
    """
    for item in files:
        if not manifest.safe(item.path):
            raise JobError("%s lists a file that would lie outside its folder: %r" % (model["repo"], item.path))
    names = {item.path for item in files}
    folders = {item.path[: at.start()] for item in files for at in re.finditer("/", item.path)}
    if len(names) < len(files) or names & folders:
        twice = sorted(names & folders) or [item.path for item in files]
        raise JobError("%s lists %s twice, or as a file and a folder" % (model["repo"], twice[0]))
    files = [item for item in files if not matches(item.path, OURS)]
    if model["files"]:
        chosen = [item for item in files if matches(item.path, model["files"])]
        if not chosen:
            raise JobError("no file of %s fits %s" % (model["repo"], ", ".join(model["files"])))
        return chosen
    own = [item for item in files if not matches(item.path, FOREIGN)]
    weights = [item for item in own if item.path.endswith(".safetensors") and "/" not in item.path]
    plain = [item for item in weights if not os.path.basename(item.path).startswith("consolidated")]
    weights = plain or weights
    pickles = [item for item in own if matches(item.path, PICKLES) and "/" not in item.path]
    if not weights:
        if pickles and not model["allow_pickle"]:
            raise JobError(
                "%s has its weights as pickles only (%s). Loading one runs whatever code it holds. If you trust its "
                "maker, set `allow_pickle: true` in the model's `source`" % (model["repo"], pickles[0].path)
            )
        weights = pickles
    if not weights:
        raise JobError("%s at %s has no weights that an engine could load" % (model["repo"], model["revision"]))
    texts = TEXTS + (("*.py",) if model["code"] else ())
    return weights + [item for item in own if matches(item.path, texts) and item not in weights]
