"""Where limits plug in: whoever lets a request start is told when it ends, and what it used."""

from __future__ import annotations

from typing import Protocol

from .keys import User


class Admission(Protocol):
    """One admitted request."""

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The engine said what the request used."""

    def release(self) -> None:
        """The request is over, however it ended. Called once."""


class Limits(Protocol):
    """Decides whether a request may start now."""

    async def admit(
        self, user: User, body_bytes: int, max_tokens: int | None, *, model: str = "", light: bool = False
    ) -> Admission:
        """Refused (429, with `retry_after`) where it may not. light: the request only counts tokens."""


class _Open:
    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        pass

    def release(self) -> None:
        pass


class NoLimits:
    """Admits everything."""

    async def admit(
        self, user: User, body_bytes: int, max_tokens: int | None, *, model: str = "", light: bool = False
    ) -> Admission:
        return _Open()
