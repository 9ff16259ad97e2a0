"""Bad days of an S3 server: what passes is waited out and reported, what does not is told at once, secrets never."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from uuid import uuid4

import pytest
from faulty_proxy import FaultyProxy

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.storage import store_errors
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


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "cut", "lost", 0.2])
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
