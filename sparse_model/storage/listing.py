"""The files below a folder, at any depth: links are followed, and what is left out is counted.

Caches (Hugging Face's) and version control for data (DVC) keep files elsewhere, with links to them where they belong.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fsspec.implementations.local import LocalFileSystem

HIDDEN = (".",)
"""What hidden names begin with."""

DANGLING, AGAIN = "dangling link", "link to what is there already"
SPECIAL, HIDDEN_KIND = "no regular file", "hidden"
"""Why something that is no file with a name of its own is left out."""


@dataclass
class Listing:
    """`files`: path below the folder, with slashes, to what the store says of it; `left_out`: how many of what."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def files_below(fs: Any, root: str, hidden: tuple[str, ...] = HIDDEN) -> Listing:
    """All files below a folder of an fsspec file system, but for those with a hidden component in their path.

    On a local disk links are followed, each file being there once: a link to what is below the folder anyway adds
    nothing, so that circles of links end.
    """
    return _local(root, hidden) if isinstance(fs, LocalFileSystem) else _remote(fs, root, hidden)


def _remote(fs: Any, root: str, hidden: tuple[str, ...]) -> Listing:
    found = Listing()
    concealed = set()
    for path, info in sorted(fs.find(root, detail=True).items()):
        name = path.removeprefix(root).lstrip("/")
        parts = name.split("/")
        first = next((i for i, part in enumerate(parts) if part.startswith(hidden)), None)
        if first is not None:
            concealed.add("/".join(parts[: first + 1]))
        elif info["type"] == "file" and name and not name.endswith("/"):
            found.files[name] = info
    if concealed:
        found.left_out[HIDDEN_KIND] = len(concealed)
    return found


def _local(root: str, hidden: tuple[str, ...]) -> Listing:
    """First what is really there, then what links lead to."""
    found, links = Listing(), list[str]()
    seen = {_identity(os.stat(root))}
    _walk(root, "", hidden, found, links, seen)
    while links:
        links.sort(reverse=True)
        name = links.pop()
        path = os.path.join(root, name)
        try:
            state = os.stat(path)
        except OSError:  # to nothing, or in a circle
            found.left_out[DANGLING] += 1
            continue
        if _identity(state) in seen:
            found.left_out[AGAIN] += 1
        elif os.path.isdir(path):
            seen.add(_identity(state))
            _walk(root, name, hidden, found, links, seen, linked=True)
        else:
            _take(path, name, found, seen)
    found.files = dict(sorted(found.files.items()))
    return found


def _walk(
    root: str,
    top: str,
    hidden: tuple[str, ...],
    found: Listing,
    links: list[str],
    seen: set[tuple[int, int]],
    *,
    linked: bool = False,
) -> None:
    """Take the files below a folder; collect the links. Of what a link leads to, nothing that is there already."""
    folders = [top]
    while folders:
        folder = folders.pop()
        for entry in _entries(os.path.join(root, folder)):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(hidden):
                found.left_out[HIDDEN_KIND] += 1
            elif entry.is_symlink():
                links.append(name)
            elif linked and _identity(entry.stat()) in seen:
                found.left_out[AGAIN] += 1
            elif entry.is_dir():
                seen.add(_identity(entry.stat()))
                folders.append(name)
            else:
                _take(entry.path, name, found, seen)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _take(path: str, name: str, found: Listing, seen: set[tuple[int, int]]) -> None:
    try:
        state = os.stat(path)
    except FileNotFoundError:  # deleted in this instant
        return
    if not stat.S_ISREG(state.st_mode):  # a pipe, which would be waited for
        found.left_out[SPECIAL] += 1
        return
    seen.add(_identity(state))
    found.files[name] = {
        "name": path,
        "type": "file",
        "size": state.st_size,
        "mtime": state.st_mtime,
        "ino": state.st_ino,
    }


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
