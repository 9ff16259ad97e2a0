"""Every kind of store a URI can name: local path, file://, memory:// and an S3 server on this machine."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from faulty_proxy import FaultyProxy
from moto.server import ThreadedMotoServer

from sparse_model.storage import store_errors
from sparse_model.storage.files import filesystem


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a running S3 server; credentials are in the environment, the endpoint is not."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # or a failure drowns in its requests
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """Name of a new, empty bucket."""
    bucket = f"bucket-{uuid4().hex}"
    filesystem(f"s3://{bucket}?endpoint_override={s3_endpoint}")[0].mkdir(bucket)
    return bucket


@pytest.fixture(params=["path", "file", "memory", "s3", "bad_s3"])
def root_uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty folder in each kind of store; `bad_s3` spoils every third request, each time differently."""
    if request.param == "bad_s3":
        monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)
        monkeypatch.setenv(store_errors.PATIENCE, "20")
        faults = itertools.cycle(["reset", 500, "lost", 503, "cut"])
        bucket, endpoint = request.getfixturevalue("s3_bucket"), request.getfixturevalue("s3_endpoint")
        with FaultyProxy(endpoint, lambda _method, _path, n: next(faults) if n % 3 == 0 else None) as proxy:
            yield f"s3://{bucket}/root?endpoint_override={proxy.address}"
    else:
        yield _sound_root(request, tmp_path)


def _sound_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "path":
        return str(tmp_path / "root")
    if request.param == "file":
        return f"file://{tmp_path}/root"
    if request.param == "memory":
        return f"memory://{uuid4().hex}/root"
    bucket = request.getfixturevalue("s3_bucket")
    return f"s3://{bucket}/root?endpoint_override={request.getfixturevalue('s3_endpoint')}"
