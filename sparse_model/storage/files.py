"""Bytes in a local folder or an object store, named by one URI.

A URI is a plain path (relative ones too), `file://…`, `memory://…`, `s3://bucket/key` or anything else fsspec
knows. An S3 server other than Amazon's is named by the environment variable AWS_ENDPOINT_URL or, as for
pyarrow, by `s3://bucket/key?endpoint_override=http://host:port`. Every failure is a one-line `InputError`; one that may
pass (no connection, overload, a time limit) is waited out first (`sparse_model.storage.store_errors`).
"""

import errno
import glob
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from sparse_model.errors import InputError
from sparse_model.storage.listing import files_below
from sparse_model.storage.store_errors import check_no_credentials, persistently, redacted, refusing as refusing

_Answer = TypeVar("_Answer")
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*")
S3_PROTOCOLS = ("s3", "s3a")
AT_A_TIME = 256
"""Files that `read_many` asks for and holds at a time."""


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path inside it (absolute, without protocol and query).

    Raises InputError for an unknown protocol, a missing driver or an unknown query parameter.
    """
    check_no_credentials(uri)
    location, options = _split_query(uri)
    protocol = _protocol(location)
    with refusing("open", uri):
        fs = fsspec.filesystem(protocol, **_driver_options(uri, protocol, options))
        return fs, str(fs._strip_protocol(location))


def _tried(action: str, uri: str, fs: Any, operation: Callable[[], _Answer], patience: float | None = None) -> _Answer:
    """`persistently`, with what the file system takes to look for credentials again."""

    def renew() -> None:
        if hasattr(fs, "connect") and hasattr(fs, "set_session"):  # s3fs
            with suppress(Exception):  # what is wrong, the next try tells
                fs.connect(refresh=True)

    return persistently(action, uri, operation, patience, renew)


def is_local(uri: str) -> bool:
    """Whether the URI names this machine's own disk."""
    return _protocol(uri) in ("file", "local")


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`; a query stays at the end. No part can climb out of `uri`.

    Raises InputError for a part that is empty or has an empty, `.` or `..` component, and for an empty `uri`: what is
    below that is the root of the disk.
    """
    if not uri:
        raise InputError("storage: ''; allowed: a folder or an fsspec URI")
    protocol, found, place = uri.partition("://")
    if found and protocol not in ("file", "local", "memory") and not place.partition("?")[0].strip("/"):
        raise InputError(
            f"storage: {uri!r} names no bucket; allowed: {protocol}://bucket or {protocol}://bucket/prefix"
        )
    location, separator, query = uri.partition("?") if _has_query(uri) else (uri, "", "")
    for part in parts:
        if any(component in ("", ".", "..") for component in part.split("/")) or "\\" in part:
            raise InputError(f"storage: {part!r} is not a path below {redacted(uri)}")
        # `s3://` and `memory://` alone, and `/`, already end in their slash
        location += part if location.endswith("/") else f"/{part}"
    return location + separator + query


def parent(uri: str) -> str:
    """The URI of the folder that a file is in."""
    location, separator, query = uri.partition("?") if _has_query(uri) else (uri, "", "")
    folder, slash, _ = location.rpartition("/")
    if not folder or folder.endswith(":/"):  # the root of a disk or a store, or the working directory
        folder = folder + slash or "."
    return folder + separator + query


def safe_name(name: str, what: str = "name") -> str:
    """`name`, if it can be one component of a path in every store; raises InputError otherwise."""
    if not SAFE_NAME.fullmatch(name) or len(name) > 200:
        raise InputError(
            f"{what} {name!r} cannot name a file: allowed are up to 200 letters, digits, and . _ = + - "
            "(no dot or sign first)"
        )
    return name


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`; raises InputError if the store cannot be reached."""
    fs, path = filesystem(uri)

    def look() -> bool:
        try:
            fs.invalidate_cache()
            fs.info(path)
        except FileNotFoundError:
            return False
        return True

    return _tried("look at", uri, fs, look)


def listdir(uri: str) -> list[str]:
    """Sorted names directly below a folder; none when it is missing (object stores know no empty folders).

    Hidden names, half-written files among them, are left out.
    """
    _, path = filesystem(uri)
    entries = (str(entry["name"]).rstrip("/") for entry in _entries(uri) if entry["name"].rstrip("/") != path)
    names = {entry.rsplit("/", 1)[-1] for entry in entries}
    return sorted(name for name in names if not name.startswith("."))


def versions(uri: str, deep: bool = False) -> dict[str, str]:
    """Names of the files directly below a folder, each with a mark that changes when its content does.

    `deep`: of files at any depth, by their path below the folder, links followed, but for names that begin with a dot
    or `_`: other programs leave those out too where they read tables.
    """
    fs, path = filesystem(uri)

    def look() -> dict[str, dict[str, Any]]:
        try:
            fs.invalidate_cache()
            return files_below(fs, path, hidden=(".", "_")).files
        except (FileNotFoundError, NotADirectoryError):
            return {}

    if deep:
        found = _tried("list", uri, fs, look)
    else:
        files = (entry for entry in _entries(uri) if entry["type"] == "file")
        found = {str(entry["name"]).rsplit("/", 1)[-1]: entry for entry in files}
    marks = {name: " ".join(str(info.get(key)) for key in _MARKS) for name, info in sorted(found.items())}
    return {name: mark for name, mark in marks.items() if name and not name.startswith(".")}


def sizes(uri: str) -> dict[str, int]:
    """Names of the files directly below a folder, each with its size in bytes."""
    files = (entry for entry in _entries(uri) if entry["type"] == "file")
    return {str(entry["name"]).rsplit("/", 1)[-1]: int(entry["size"]) for entry in files}


def sizes_below(uri: str) -> dict[str, int]:
    """Every file below a folder at any depth, hidden ones too, by its path there, with its size in bytes."""
    fs, path = filesystem(uri)

    def look() -> dict[str, int]:
        try:
            found = files_below(fs, path, hidden=()).files
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name: int(info["size"] or 0) for name, info in found.items()}

    return persistently("list", uri, look)


_MARKS = ("ETag", "etag", "size", "mtime", "ino", "LastModified", "created")
"""What the file systems say of a file that is another after every write."""


def _entries(uri: str) -> list[dict[str, Any]]:
    fs, path = filesystem(uri)

    def look() -> list[dict[str, Any]]:
        try:
            fs.invalidate_cache()  # other processes write to the same folders: a kept listing would hide their files
            return list(fs.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):  # below a file there is nothing
            return []

    return _tried("list", uri, fs, look)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file; raises InputError if it is missing or cannot be read."""
    fs, path = filesystem(uri)
    return _tried("read", uri, fs, lambda: bytes(fs.cat_file(path)))


def read_many(uri: str, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of files directly below a folder, many at a time where the store is far; None if it is gone."""
    fs, path = filesystem(uri)
    for start in range(0, len(names), AT_A_TIME):
        part = {f"{path}/{name}": name for name in names[start : start + AT_A_TIME]}
        found = _tried("read", uri, fs, lambda part=part: contents(fs, part))  # type: ignore[misc]
        for place, name in part.items():
            yield name, _content(found.get(place, FileNotFoundError()), join(uri, name))


def contents(fs: Any, places: Iterable[str]) -> dict[str, Any]:
    """Content, or the error instead, of each of these files of an fsspec file system that is there."""
    try:
        return dict(fs.cat([glob.escape(place) for place in places], on_error="return"))  # it takes paths for patterns
    except FileNotFoundError:  # nothing fits any of the patterns
        return {}


def _content(answer: Any, uri: str) -> bytes | None:
    if isinstance(answer, FileNotFoundError):
        return None
    if isinstance(answer, BaseException):  # alone, it is tried again, or its reason told
        return read_bytes(uri) if exists(uri) else None
    return bytes(answer)


def write_bytes_atomic(uri: str, data: bytes, patience: float | None = None) -> None:
    """Write a file that readers see whole or not at all, replacing an older one. Missing folders are made.

    Raises InputError if the place cannot be written, for as long as `patience` seconds where that may pass.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        _tried("write", uri, fs, lambda: _replace_local(Path(path), data), patience)
    else:  # one PUT, or a multipart upload that appears when it is completed
        _tried("write", uri, fs, lambda: fs.pipe_file(path, data), patience)


def create(uri: str, data: bytes) -> bool:
    """Write a small file unless it exists; whether it was written. Of several writers at once one succeeds.

    Two of them may on a store that knows no exclusive writes, none where an answer got lost: read it back. Readers see
    it whole or not at all (on a local disk without hard links, perhaps before its content). Raises InputError if the
    place cannot be written.
    """
    fs, path = filesystem(uri)

    def write() -> bool:
        if isinstance(fs, LocalFileSystem):
            return _create_local(Path(path), data)
        try:
            fs.pipe_file(path, data, mode="create")
        except Exception:  # each driver says in its own way that the file exists
            if fs.exists(path):
                return False
            raise
        return True

    return _tried("create", uri, fs, write)


def remove(uri: str) -> None:
    """Delete a file or a whole folder; nothing happens when it is missing."""
    fs, path = filesystem(uri)

    def delete() -> None:
        try:
            # all but the local one take a path for a pattern
            fs.rm(path if isinstance(fs, LocalFileSystem) else glob.escape(path), recursive=True)
        except FileNotFoundError:
            return

    _tried("delete", uri, fs, delete)


def remove_many(uri: str, names: Sequence[str]) -> None:
    """Delete files directly below a folder; those that are gone already do not matter."""
    fs, path = filesystem(uri)
    if isinstance(fs, AsyncFileSystem):  # object stores delete a thousand per request

        def delete() -> None:
            try:
                fs.rm([glob.escape(f"{path}/{name}") for name in names])
            except FileNotFoundError:
                return
            except Exception as error:
                if "MD5" not in str(error):
                    raise
                # A server that wants the checksum of old, which the driver knows no more: one by one it needs none.
                for name in names:
                    remove(join(uri, name))

        if names:
            _tried("delete from", uri, fs, delete)
        return
    for name in names:
        remove(join(uri, name))


def download(uri: str, target: Path) -> None:
    """Copy one file to a local path, whole or not at all; raises InputError if it cannot be read."""
    fs, path = filesystem(uri)
    partial = _partial_name(target)

    def copy() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(path, str(partial))
        os.replace(partial, target)

    try:
        _tried("copy", f"{uri} to {target}", fs, copy)
    finally:
        partial.unlink(missing_ok=True)


def upload(source: Path, uri: str) -> None:
    """Copy a local file to a place in any store, whole or not at all; raises InputError if it cannot be written."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        _tried("write", uri, fs, lambda: fs.put_file(str(source), path))
        return
    partial = _partial_name(Path(path))

    def copy() -> None:
        partial.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        os.replace(partial, path)

    try:
        _tried("write", uri, fs, copy)
    finally:
        partial.unlink(missing_ok=True)


CHECK_PATIENCE = 10.0
"""Seconds for which a store that is only asked whether it is there may fail."""


def check_writable(uri: str) -> None:
    """Prove by a tiny file, deleted again, that the folder can be written; raises InputError if it cannot."""
    probe = join(uri, f"_probe-{uuid.uuid4().hex}")
    write_bytes_atomic(probe, b"circuit-sweeps", CHECK_PATIENCE)
    remove(probe)


def _protocol(location: str) -> str:
    return location.split("://", 1)[0] if "://" in location else "file"


def _has_query(uri: str) -> bool:
    # Elsewhere a question mark is part of the name: a glob on disk, a signed web address.
    return _protocol(uri) in S3_PROTOCOLS


def _split_query(uri: str) -> tuple[str, dict[str, str]]:
    if not _has_query(uri) or "?" not in uri:
        return uri, {}
    location, query = uri.split("?", 1)
    return location, dict(parse_qsl(query, keep_blank_values=True))


def _driver_options(uri: str, protocol: str, query: dict[str, str]) -> dict[str, Any]:
    if protocol not in S3_PROTOCOLS:
        return {}
    unknown = sorted(set(query) - {"endpoint_override", "scheme", "region"})
    if unknown:
        raise InputError(
            f"storage: unknown parameter {unknown[0]!r} in {redacted(uri)}: "
            "allowed are endpoint_override, scheme, region"
        )
    # Named here, not left to botocore, so that a changed environment gets another (cached) file system.
    endpoint = (
        query.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    region = {"region_name": query["region"]} if query.get("region") else {}
    return {
        "endpoint_url": endpoint,
        "client_kwargs": region,
        # Other processes write to the same folders: a cached listing would hide their files.
        "use_listings_cache": False,
        # Longer outages are ours to wait out, and to report.
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 60,
            "retries": {"mode": "standard", "max_attempts": 3},
            **(_OLD_CHECKSUMS if endpoint and "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ else {}),
        },
    }


_OLD_CHECKSUMS = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
"""For servers other than Amazon's: many refuse the checksums that drivers add by themselves since 2025."""


def _replace_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_name(path)
    try:
        _write_through(partial, data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_name(path)
    try:
        _write_through(partial, data)
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        return _create_in_place(path, data)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, data: bytes) -> bool:
    """Where a file can have one name only."""
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _write_through(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _partial_name(path: Path) -> Path:
    # The dot hides it from `listdir` and from Parquet readers should the process be killed.
    return path.with_name(f".partial-{uuid.uuid4().hex}")
