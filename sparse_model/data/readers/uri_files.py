"""The files that a URI names: which of them hold text, what decides whether they are the same as before.

Documents are in .py and .txt files (one each) and in .jsonl and .parquet files (one per row); all but the last may be
compressed (.gz, .bz2, .xz, .zst).
"""

import base64
import binascii
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from sparse_model.data.readers.tally import in_words
from sparse_model.errors import InputError
from sparse_model.storage.files import filesystem, refusing
from sparse_model.storage.listing import DANGLING, HIDDEN_KIND, SPECIAL, files_below

EXTENSIONS = (".py", ".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ALLOWED = f"{', '.join(EXTENSIONS)}, and all but the last with {', '.join(COMPRESSIONS)} behind it"
EXPANSION = 4
"""Bytes of text in a byte of compressed text, roughly."""
# What drivers call a tag of the content. Times are none: two writes can fall into one tick of the clock.
TAG_FIELDS = ("ETag", "etag", "blob_id", "md5Hash")
MD5 = re.compile(r"[0-9a-f]{32}")
GLOB = re.compile(r"[*?\[]")
NO_EXTENSION = "without an extension"


@dataclass(frozen=True)
class TextFile:
    """One file of a source.

    `fs` is its fsspec file system, `path` its path there, `name` its path below the source's folder, `stored` its size
    in bytes, compressed or not.
    """

    fs: Any
    path: str
    name: str
    stored: int
    tag: str | None

    @property
    def uri(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))

    @property
    def extension(self) -> str:
        """Of what is in it, one of EXTENSIONS, or else what its name ends in."""
        return _extensions(self.path)[0]

    @property
    def compression(self) -> str:
        """One of COMPRESSIONS, or empty."""
        return _extensions(self.path)[1]

    @property
    def size(self) -> int:
        """Bytes of text in it, roughly."""
        return self.stored * (EXPANSION if self.compression else 1)

    def content_hash(self) -> str:
        """The store's own tag of the content if it has one (object stores do), else the MD5 of the bytes.

        That is the tag too that S3 and Google's store give an object that was written in one go.
        """
        if self.tag is not None:
            return self.tag
        digest = hashlib.md5(usedforsecurity=False)
        with refusing("read", self.uri), self.fs.open(self.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, sorted by name, and how many others there were, by extension or kind."""

    files: tuple[TextFile, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def text_files(source: str) -> list[TextFile]:
    """The files of a URI, sorted by name; raises InputError as `listed` does."""
    return list(listed(source).files)


def listed(source: str) -> SourceFiles:
    """The files of a URI: the file itself, or those of a folder or glob that are not hidden. Links are followed.

    Raises InputError when there are none, or when one named by itself or by a glob is none of ALLOWED; other files of a
    folder are no part of the source, and counted.
    """
    fs, root = filesystem(source)
    with refusing("read", source):
        found = _named(fs, root)
    if found is None:
        raise InputError(
            f"source {source!r} does not exist: allowed are idioms, stdlib, installed, installed:<package>, "
            "or the URI of a file, folder or glob"
        )
    infos, left_out, is_folder = found
    files = [_text_file(fs, name, info) for name, info in infos.items()]
    others = [file for file in files if not _is_text(file)]
    if others and not is_folder:
        raise InputError(f"source {others[0].uri!r} has an unknown extension: allowed are {ALLOWED}")
    left_out = Counter(left_out) + Counter(PurePosixPath(file.name).suffix.lower() or NO_EXTENSION for file in others)
    texts = sorted((file for file in files if _is_text(file)), key=lambda file: file.name)
    if not texts:
        there = f"; it has {in_words(left_out)}" if left_out else ""
        raise InputError(f"source {source!r} has no {', '.join(EXTENSIONS)} file{there}: allowed are {ALLOWED}")
    return SourceFiles(tuple(texts), dict(left_out))


def _named(fs: Any, root: str) -> tuple[dict[str, dict[str, Any]], Mapping[str, int], bool] | None:
    """Files by name, what was left out, and whether a folder is named; None if there is no such source."""
    try:
        found = fs.info(root)
    except FileNotFoundError:
        fixed = GLOB.split(root)[0]
        if fixed == root:
            return None
        return *_globbed(fs, root, fixed.rpartition("/")[0]), False
    if found["type"] == "file":
        return {PurePosixPath(root).name: found}, {}, False
    if found["type"] != "directory":  # a pipe, which would be waited for
        return {}, {SPECIAL: 1}, True
    listing = files_below(fs, root)
    return listing.files, listing.left_out, True


def _globbed(fs: Any, pattern: str, folder: str) -> tuple[dict[str, dict[str, Any]], Counter[str]]:
    """Files that a pattern names, by their path below the folder in front of it, and what else it names."""
    found, left_out = dict[str, dict[str, Any]](), Counter[str]()
    if isinstance(fs, LocalFileSystem) and "**" in pattern:
        wanted = re.compile(glob_translate(pattern))
        below = files_below(fs, folder)
        return {name: i for name, i in below.files.items() if wanted.match(f"{folder}/{name}")}, below.left_out
    # fsspec's own does not look into folders that are links
    paths = glob.glob(pattern) if isinstance(fs, LocalFileSystem) else fs.glob(pattern)
    for path in sorted(paths):
        name = path.removeprefix(folder).lstrip("/")
        if any(part.startswith(".") for part in name.split("/")):
            left_out[HIDDEN_KIND] += 1
            continue
        try:
            info = fs.info(path)  # of what a link leads to
        except FileNotFoundError:
            left_out[DANGLING] += 1
            continue
        if info["type"] == "file":
            found[name] = info
        else:
            left_out["folder" if info["type"] == "directory" else SPECIAL] += 1
    return found, left_out


def _text_file(fs: Any, name: str, info: dict[str, Any]) -> TextFile:
    tag = next((str(info[field]) for field in TAG_FIELDS if info.get(field)), None)
    return TextFile(fs, info["name"], name, int(info.get("size") or 0), None if tag is None else _same_everywhere(tag))


def _same_everywhere(tag: str) -> str:
    """An MD5 in the form of `hexdigest`, however the store writes it; other tags as they are."""
    bare = tag.strip('"').lower()
    if MD5.fullmatch(bare):
        return bare
    try:
        raw = base64.b64decode(tag, validate=True)
    except (binascii.Error, ValueError):
        return tag
    return raw.hex() if len(raw) == 16 else tag


def _is_text(file: TextFile) -> bool:
    return file.extension in EXTENSIONS and not (file.extension == ".parquet" and file.compression)


def _extensions(path: str) -> tuple[str, str]:
    """`.jsonl` and `.gz` of a.jsonl.gz."""
    name = PurePosixPath(path.lower())
    if name.suffix in COMPRESSIONS:
        return PurePosixPath(name.stem).suffix, name.suffix
    return name.suffix, ""
