"""Bad days of an S3 server: what passes is waited out and reported, what does not is told at once, secrets never."""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import s3fs
from faulty_proxy import FaultyProxy
from fsspec.implementations.memory import MemoryFileSystem

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.storage import files, store_errors
from sparse_model.storage.store_errors import PATIENCE, StorageUnavailable, check_no_credentials, redacted


@pytest.fixture
def proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv(PATIENCE, "20")
    with FaultyProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def uri(proxy: FaultyProxy, s3_bucket: str) -> str:
    """A file to be, on a server behind the proxy."""
    return f"s3://{s3_bucket}/root/{uuid4().hex}?endpoint_override={proxy.address}"


@pytest.mark.parametrize("fault", [500, 503, 429, 409, 400, "reset", "cut", "lost", 0.2])
def test_what_passes_is_waited_out(proxy: FaultyProxy, uri: str, fault: int | str | float) -> None:
    rng = random.Random(0)
    proxy.plan = lambda method, path, number: fault if rng.random() < 0.3 else None
    storage.write_bytes_atomic(uri, b"first" * 100)
    storage.write_bytes_atomic(uri, b"second" * 100)
    assert storage.read_bytes(uri) == b"second" * 100
    assert any(seen == fault for *_, seen in proxy.requests)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_an_outage_longer_than_the_driver_waits_is_reported(
    proxy: FaultyProxy, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.plan = lambda method, path, number: 500 if number < 4 else None  # three are the driver's own tries
    with caplog.at_level(logging.WARNING, "sparse_model"):
        storage.write_bytes_atomic(uri, b"x")
    assert storage.read_bytes(uri) == b"x"
    first, last = caplog.messages[0], caplog.messages[-1]
    assert "cannot write s3://" in first
    assert "trying again for" in first
    assert "could write" in last
    assert all("\n" not in line for line in caplog.messages)


def test_patience_ends(proxy: FaultyProxy, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.5")
    proxy.plan = lambda method, path, number: "reset"
    with pytest.raises(StorageUnavailable, match=r"cannot read .* \(tried \d+ times in 0.5 s\)") as gave_up:
        storage.read_bytes(uri)
    assert "\n" not in str(gave_up.value)


@pytest.mark.parametrize(("method", "status"), [("PUT", 403), ("GET", 404)])
def test_what_will_not_pass_is_told_at_once(proxy: FaultyProxy, uri: str, method: str, status: int) -> None:
    proxy.plan = lambda method, path, number: status
    with pytest.raises(InputError) as refused:
        storage.write_bytes_atomic(uri, b"x") if method == "PUT" else storage.read_bytes(uri)
    assert not isinstance(refused.value, StorageUnavailable)
    assert len(proxy.requests) <= 2


def test_one_of_many_reads_that_fails_is_read_again(proxy: FaultyProxy, s3_bucket: str) -> None:
    root = f"s3://{s3_bucket}/many?endpoint_override={proxy.address}"
    for i in range(20):
        storage.write_bytes_atomic(storage.join(root, f"{i:02d}"), bytes([i]))
    spoiled: set[str] = set()

    def plan(method: str, path: str, number: int) -> int | None:
        if method == "GET" and path.endswith(("03", "11")) and path not in spoiled:
            spoiled.add(path)
            return 500
        return None

    proxy.plan = plan
    names = [f"{i:02d}" for i in range(21)]
    found = dict(storage.read_many(root, names))
    assert found == {f"{i:02d}": bytes([i]) for i in range(20)} | {"20": None}
    assert len(spoiled) == 2


SECRETS = (
    "s3://AKIAIOSFODNN7EXAMPLE:hunter2@bucket/x",
    "sftp://user:hunter2@host/x",
    "s3://bucket/x?access_key=hunter2",
    "s3://bucket/x?endpoint_override=http://h&aws_secret_access_key=hunter2",
    "https://host/x.jsonl?X-Amz-Signature=hunter2",
    "https://host/x.jsonl?token=hunter2",
    "abfs://c@a.dfs.core.windows.net/x?sas_token=hunter2",
)


@pytest.mark.parametrize("uri", SECRETS)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    for act in (storage.read_bytes, storage.listdir, storage.check_writable, check_no_credentials):
        with pytest.raises(InputError, match="credentials do not belong in a URI") as refused:
            act(uri)
        assert "hunter2" not in str(refused.value)
    assert "hunter2" not in caplog.text


def test_uris_without_credentials_pass() -> None:
    for uri in ("s3://bucket/tokens/a?endpoint_override=http://h:1", "gs://b/x", "/home/me/a@b", "results/token=5"):
        check_no_credentials(uri)


def test_what_drivers_say_is_redacted() -> None:
    said = "403 for AKIAIOSFODNN7EXAMPLE at https://u:hunter2@h/x?X-Amz-Credential=hunter2&a=1 (secret_key: hunter2)"
    assert "hunter2" not in redacted(said)
    assert "AKIAIOSFODNN7" not in redacted(said)
    assert "a=1" in redacted(said)
    plain = "storage: cannot read s3://bucket/tokens/x: it does not exist"
    assert redacted(plain) == plain


def test_credentials_that_come_late_are_waited_for(
    s3_endpoint: str, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine that has only just started: the driver has looked for them once, and found none."""
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.2)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    uri = f"s3://{s3_bucket}/late/{uuid4().hex}?endpoint_override={s3_endpoint}"
    with monkeypatch.context() as patch:
        patch.setattr(store_errors, "CREDENTIALS_PATIENCE", 0.3)
        with pytest.raises(StorageUnavailable, match=r"credentials.* \(tried \d+ times in 0.3 s\)"):
            storage.write_bytes_atomic(uri, b"x")
    content = "[default]\naws_access_key_id = testing\naws_secret_access_key = testing\n"
    threading.Timer(0.7, lambda: file.write_text(content)).start()
    storage.write_bytes_atomic(uri, b"x")
    assert storage.read_bytes(uri) == b"x"
    s3fs.S3FileSystem.clear_instance_cache()


def test_servers_other_than_amazons_get_no_checksums_that_they_may_not_know(proxy: FaultyProxy, uri: str) -> None:
    storage.write_bytes_atomic(uri, b"x" * 1000)
    storage.create(f"{uri.replace('?', '-2?')}", b"y")
    assert storage.read_bytes(uri) == b"x" * 1000
    for method, headers in proxy.headers:
        assert not [name for name in headers if "checksum" in name or "trailer" in name], method


def test_a_server_that_wants_an_old_checksum_for_many_deletes_gets_single_ones(
    proxy: FaultyProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"s3://{s3_bucket}/many-{uuid4().hex}?endpoint_override={proxy.address}"
    for name in "abc":
        storage.write_bytes_atomic(storage.join(root, name), b"x")
    fs, _ = storage.filesystem(root)

    def refused(paths: Any, **options: Any) -> None:
        if isinstance(paths, list):
            raise OSError("MissingContentMD5: Missing required header for this request: Content-MD5")
        original(paths, **options)

    original = fs.rm
    monkeypatch.setattr(fs, "rm", refused)
    storage.remove_many(root, ["a", "b"])
    assert storage.listdir(root) == ["c"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENETUNREACH])
def test_a_mount_that_is_lost_is_waited_for_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)
    tries = iter([True, True, False])
    write = files._write_through

    def sometimes(path: Path, data: bytes) -> None:
        if next(tries, forever):
            raise OSError(number, os.strerror(number))
        write(path, data)

    forever = False
    monkeypatch.setattr(files, "_write_through", sometimes)
    storage.write_bytes_atomic(str(tmp_path / "x"), b"x")
    forever = True
    with pytest.raises(StorageUnavailable, match=os.strerror(number)):
        storage.write_bytes_atomic(str(tmp_path / "y"), b"y", 0.05)


class Kept(MemoryFileSystem):
    """A file system that keeps listings, as gcsfs and adlfs do (which no server here stands behind)."""

    protocol = "kept"
    cachable = True

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        path = path.rstrip("/")
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **options)
        return self.dircache[path] if detail else [entry["name"] for entry in self.dircache[path]]

    def info(self, path: str, **options: Any) -> Any:
        folder = path.rstrip("/").rpartition("/")[0]
        for entry in self.dircache.get(folder, ()) if folder in self.dircache else ():
            if entry["name"] == path:
                return entry
        if folder in self.dircache:
            raise FileNotFoundError(path)
        return super().info(path, **options)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


def test_listings_are_fresh_whatever_a_driver_keeps() -> None:
    fsspec.register_implementation("kept", Kept, clobber=True)
    root = f"kept://b{uuid4().hex}"
    storage.write_bytes_atomic(f"{root}/a", b"x")
    assert storage.listdir(root) == ["a"]
    path = storage.filesystem(f"{root}/b")[1]
    MemoryFileSystem().pipe_file(path, b"of another process")
    assert storage.listdir(root) == ["a", "b"]
    assert storage.exists(f"{root}/b")
    MemoryFileSystem().pipe_file(f"{path.removesuffix('/b')}/c", b"of another process")  # the root may begin with b
    assert set(storage.versions(root, True)) == {"a", "b", "c"}
    assert storage.create(f"{root}/d", b"x")
