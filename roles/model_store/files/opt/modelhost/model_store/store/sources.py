# MIT licence (see LICENSE)
"""Where weights come from. Every source lists the files of a model and says how to get one of them.

Downloads and the hub's API are the work of huggingface_hub; it is imported where it is needed, so that folders can be
used without it.
"""

from __future__ import annotations

import base64
import os
import re
import urllib.parse

from . import manifest
from .plan import File

#: A hub, or somebody's wall in front of it, that will not change its mind within minutes.
FINAL = (400, 401, 402, 403, 404, 405, 410, 451)


class SourceError(Exception):
    """A source cannot give what was asked of it.

    `final`: asking again would not help; `after`: it wants to be left alone for so many seconds.
    """

    def __init__(self, message: str, final: bool):
        super().__init__(message)
        self.final = final
        self.after = 0.0


def clean(text: object) -> str:
    """An error's text without signatures and passwords of URLs, on one line."""
    line = " ".join(str(text).split())
    line = re.sub(r"(?<=\w)\?[^\s'\"]*(X-Amz|Signature|token)[^\s'\"]*", "", line, flags=re.I)
    return re.sub(r"//[^/@\s]+@", "//", line)[:600]


def explain(error: BaseException) -> SourceError:
    """What a client's error means for us."""
    if isinstance(error, SourceError):
        return error
    if isinstance(error, manifest.ManifestError):
        return SourceError(clean(error), True)
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        why = "this model is gated: its owner must let the account in whose `token` stands in hf_mirror_sources"
        return SourceError(why, True)
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
        # Hubs answer 401 for what does not exist as well.
        why = "refused with %s: no such repository, or it needs a `token` (item of hf_mirror_sources): %s"
        return SourceError(why % (status, clean(error)), True)
    if status:
        return SourceError(clean(error), status in FINAL)
    if isinstance(error, (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects)):
        return SourceError(clean(error), True)
    text = clean(error)
    return SourceError("%s: %s" % (type(error).__name__, text) if text else type(error).__name__, False)


class Source:
    """One item of hf_mirror_sources.

    `listing(model)`: all files of a model, or SourceError. `request(model, path)`: URL and headers for one of them;
    folders have none.
    """

    #: What the manifest says of the hashes that this kind of source names.
    verified = "manifest"
    #: Whether it is the hub itself.
    official = False

    def __init__(self, item: dict):
        self.item = item
        self.url = (item.get("url") or "").rstrip("/")
        #: Why nothing more is asked of it in this run.
        self.gone: str | None = None

    def __str__(self) -> str:
        return "%s %s" % (self.item["type"], clean(self.url))

    def _json(self, url: str, headers: dict):
        from huggingface_hub.utils import get_session, hf_raise_for_status

        response = get_session().get(url, headers=headers)
        hf_raise_for_status(response)
        try:
            return response.json()
        except ValueError as error:
            begin = clean(response.text[:80])
            raise SourceError("%s answers with something else than JSON: %s" % (clean(url), begin), True) from error


class Hub(Source):
    """Hugging Face, and whatever speaks its API: mirrors, caches, our own mirror."""

    verified = "hub"

    def __init__(self, item: dict):
        super().__init__(item)
        self.url = self.url or manifest.HUB
        self.official = manifest.is_hub(item)

    def listing(self, model: dict) -> list:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.url, token=self.item.get("token") or False)
        try:
            entries = list(api.list_repo_tree(model["repo"], recursive=True, revision=model["revision"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError("%s does not answer as a hub does: %r" % (clean(self.url), error), True) from error
        return [
            File(entry.path, entry.lfs.size, entry.lfs.sha256, entry.blob_id, True)
            if entry.lfs
            else File(entry.path, entry.size, None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]

    def request(self, model: dict, path: str) -> tuple:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(model["repo"], path, revision=model["revision"], endpoint=self.url)
        return url, build_hf_headers(token=self.item.get("token") or False)


class ModelScope(Source):
    """ModelScope, by the API that its own client uses. Its revisions are its own; `master` is its default."""

    verified = "modelscope"

    def __init__(self, item: dict):
        super().__init__(item)
        self.url = self.url or "https://www.modelscope.cn"

    def _headers(self) -> dict:
        return {"cookie": "m_session_id=" + self.item["token"]} if self.item.get("token") else {}

    def _place(self, model: dict, **query: str) -> str:
        query = {"Revision": self.item.get("revision") or "master", **query}
        return "%s/api/v1/models/%s/repo%s?%s" % (
            self.url,
            model["repo"],
            "" if "FilePath" in query else "/files",
            urllib.parse.urlencode(query),
        )

    def listing(self, model: dict) -> list:
        answer = self._json(self._place(model, Recursive="true"), self._headers())
        try:
            items = [item for item in answer["Data"]["Files"] or [] if item["Type"] != "tree"]
            files = [File(item["Path"], item["Size"], item["Sha256"], None, bool(item.get("IsLFS"))) for item in items]
        except (KeyError, TypeError) as error:
            raise SourceError("%s does not answer as ModelScope does" % clean(self.url), True) from error
        if not files:
            revision = self.item.get("revision") or "master"
            raise SourceError(
                "it has no revision %s of %s; set `revision` of this source" % (revision, model["repo"]), True
            )
        return files

    def request(self, model: dict, path: str) -> tuple:
        return self._place(model, FilePath=path), self._headers()


class Http(Source):
    """A web server with a store's own layout: <url>/<org>/<repo>/<revision>/, with our manifest in it."""

    def request(self, model: dict, path: str) -> tuple:
        headers = {}
        if self.item.get("username"):
            login = "%s:%s" % (self.item["username"], self.item.get("password") or "")
            headers["authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        return "%s/%s/%s/%s" % (self.url, model["repo"], model["revision"], urllib.parse.quote(path)), headers

    def listing(self, model: dict) -> list:
        url, headers = self.request(model, manifest.NAME)
        return files_of(manifest.check(self._json(url, headers), clean(url), model["repo"], model["revision"]))


class S3(Http):
    """The same layout in an S3 bucket. botocore signs each URL; without keys the bucket is asked as the public is."""

    def __init__(self, item: dict):
        super().__init__(item)
        self.client = None

    def request(self, model: dict, path: str) -> tuple:
        place = urllib.parse.urlsplit(self.url)
        if self.client is None:
            import botocore.session
            from botocore import UNSIGNED
            from botocore.config import Config

            key = self.item.get("access_key") or None
            self.client = botocore.session.Session().create_client(
                "s3",
                region_name=self.item.get("region") or "us-east-1",
                endpoint_url=self.item.get("endpoint") or None,
                aws_access_key_id=key,
                aws_secret_access_key=self.item.get("secret_key") or None,
                config=Config(signature_version="s3v4" if key else UNSIGNED, s3={"addressing_style": "path"}),
            )
        parts = [place.path.strip("/"), model["repo"], model["revision"], path]
        where = {"Bucket": place.netloc, "Key": "/".join(part for part in parts if part)}
        return self.client.generate_presigned_url("get_object", Params=where, ExpiresIn=12 * 3600), {}


class Folder(Source):
    """A folder of this host. `move`: what is there is ours to take away."""

    def __init__(self, item: dict):
        super().__init__(item)
        self.path = item["path"]

    def __str__(self) -> str:
        return "folder %s" % self.path

    def place(self, model: dict) -> str:
        """Where a model lies in it, in a store's own layout."""
        return os.path.join(self.path, model["repo"], model["revision"])

    def listing(self, model: dict) -> list:
        from . import adopt

        try:
            found = manifest.read(self.place(model))
        except manifest.ManifestError as error:
            raise SourceError(str(error), True) from error
        if found:
            manifest.check(found, manifest.path_of(self.place(model)), model["repo"], model["revision"])
            self.verified = "manifest"
            return files_of(found)
        guessed = adopt.listing([self.path], model)
        if not guessed:
            raise SourceError("it holds no complete copy of %s at %s" % (model["repo"], model["revision"]), True)
        self.verified = guessed[1]
        return [File(**item) for item in guessed[0]]


KINDS = {"hub": Hub, "modelscope": ModelScope, "http": Http, "s3": S3, "folder": Folder}


def files_of(found: dict) -> list:
    """The files of a manifest."""
    return [
        File(item["path"], item["size"], item["sha256"], item.get("blob_id"), bool(item.get("lfs")))
        for item in found["files"]
    ]


def make(items: list) -> list:
    """Sources of a job, in order. What is `direct` is reached without the host's proxy."""
    if any(item["type"] != "folder" for item in items):
        # Its own warnings name URLs, and those of S3 are signed.
        os.environ["HF_HUB_VERBOSITY"] = "error"
        from . import client

        client.use()
    direct = [urllib.parse.urlsplit(item["url"]).hostname or "" for item in items if item.get("direct")]
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), *direct])
    return [KINDS[item["type"]](item) for item in items]
