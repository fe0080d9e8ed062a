# MIT licence (see LICENSE)
"""Reading and writing whole files, also those that hold secrets. Goes to hosts: Python 3.8, standard library."""

from __future__ import annotations

import os
from typing import Any


def read(path: str) -> str | None:
    """The file's text, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def write(module: Any, path: str, text: str, private: bool = True) -> None:
    """All of a file or nothing; an old one keeps its owner and mode. A private new one is its owner's alone at once.

    `atomic_move` gives a new file 0666 without the umask's bits, and who opens it before the module sets its mode
    can go on reading it.
    """
    before = os.umask(0o077)
    try:
        temporary = os.path.join(module.tmpdir, "secret")
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
        if not private:
            os.umask(before)
        module.atomic_move(temporary, path)
    finally:
        os.umask(before)
