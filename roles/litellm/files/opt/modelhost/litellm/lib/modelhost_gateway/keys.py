"""Users' keys, and which models a user may ask for."""

from __future__ import annotations

import datetime
import fnmatch
import hashlib
import hmac
import json
import logging
import os
import re
from dataclasses import dataclass, field
from typing import Any

from .errors import Refused
from .limits import Allowance

LOG = logging.getLogger("modelhost.gateway")

#: A model's name. No comma: LiteLLM would take "a,b" for two models, and "claude-x,b" also
#: fits the wildcard "claude-*".
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,199}")


@dataclass(frozen=True)
class User:
    """Someone with a key."""

    name: str
    sha256: str
    models: tuple[str, ...]
    #: requests_per_minute, tokens_per_minute, max_parallel_requests; whoever admits knows them.
    limits: dict[str, int] = field(default_factory=dict, hash=False)
    #: The last day on which the key opens anything.
    expires: datetime.date | None = None


@dataclass
class KeyStore:
    """The file of hashes, read again whenever it changes."""

    path: str
    _seen: tuple[int, int, int] | None = None
    _users: tuple[User, ...] = ()
    _known: tuple[str, ...] = ()
    _reported: str = field(default="", repr=False)

    def refresh(self) -> None:
        """Read the file if it is another one than last time; a bad file opens nothing."""
        try:
            status = os.stat(self.path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._seen:
                return
            with open(self.path, encoding="utf-8") as handle:
                content = json.load(handle)
            users = tuple(map(_user, content["users"]))
            known = tuple(map(str, content["models"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._seen, self._users, self._known = None, (), ()
            reason = "%s: %s" % (type(error).__name__, error)
            if reason != self._reported:
                LOG.error("%s cannot be used, so no key is accepted: %s", self.path, reason)
                self._reported = reason
            return
        self._seen, self._users, self._known, self._reported = stamp, users, known, ""
        LOG.info("%s: keys of %d users", self.path, len(users))

    def find(self, key: str) -> User | None:
        """The owner of a key. Compares with every entry, so that time tells nothing."""
        self.refresh()
        presented = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        owner = None
        for user in self._users:
            if hmac.compare_digest(presented, user.sha256):
                owner = user
        return owner

    @property
    def names(self) -> tuple[str, ...]:
        """Everybody who has a key."""
        return tuple(user.name for user in self._users)

    @property
    def known(self) -> tuple[str, ...]:
        """Every model name of this gateway."""
        return self._known


def _user(item: dict[str, Any]) -> User:
    limits = dict(item.get("limits") or {})
    # A limit that is none makes the file a bad one: nobody shall be without limits by a slip.
    Allowance.of(limits)
    expires = item.get("expires")
    return User(
        str(item["name"]),
        _digest(item["sha256"]),
        tuple(map(str, item["models"])),
        limits,
        datetime.date.fromisoformat(expires) if expires else None,
    )


def _digest(value: Any) -> str:
    text = str(value).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("an entry's sha256 is not 64 hexadecimal digits")
    return text


def owner(store: KeyStore, key: str | None) -> User:
    """Whose key this is; Refused if it opens nothing."""
    user = store.find(key) if key else None
    if user is None:
        raise Refused(
            401,
            "authentication_error",
            "This gateway does not know the key that was sent. Send a user's key as"
            " 'Authorization: Bearer sk-...' or 'x-api-key: sk-...'; the administrator finds"
            " it in the gateway's key folder.",
        )
    if user.expires and datetime.datetime.now(datetime.timezone.utc).date() > user.expires:
        raise Refused(
            401,
            "authentication_error",
            "The key of '%s' expired at the end of %s (UTC). The administrator sets another `expires` in litellm_users."
            % (user.name, user.expires.isoformat()),
        )
    return user


def fits(model: str, names: tuple[str, ...]) -> bool:
    """Is this name, or a wildcard that covers it, among the names?"""
    if not MODEL_NAME.fullmatch(model):
        return False
    # Claude Code marks a long window by a suffix; LiteLLM takes it off.
    bare = model[:-4] if model.lower().endswith("[1m]") else model
    return any(bare == name or ("*" in name and fnmatch.fnmatchcase(bare, name)) for name in names)


def _wanted(names: tuple[str, ...]) -> str:
    """The names that a person would set: not the aliases of another vendor's models."""
    own = [name for name in names if name.startswith("local-claude-")] or list(names)
    return ", ".join(sorted(own)) or "none"


def check_model(user: User, model: Any, known: tuple[str, ...]) -> None:
    """Refuse a model that does not exist or is not this user's."""
    if not isinstance(model, str) or not model:
        raise Refused(
            400,
            "invalid_request_error",
            "The request names no model. Set `model` to one of: %s." % _wanted(user.models),
            "model",
        )
    if fits(model, user.models):
        return
    shown = "'%s'" % model if MODEL_NAME.fullmatch(model) else ascii(model[:80])
    if fits(model, known):
        message = "Your key is not for the model %s. It may use: %s." % (shown, _wanted(user.models))
        raise Refused(403, "permission_error", message, "model")
    message = "There is no model %s here. You may use: %s." % (shown, _wanted(user.models))
    raise Refused(404, "not_found_error", message, "model")
