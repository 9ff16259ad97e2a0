"""An S3 server (moto) in a process of its own, with one empty bucket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Self

import boto3

ACCESS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class S3Process:
    """Up while the context lasts; this process and its children are given access to it."""

    def __enter__(self) -> Self:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(ACCESS)
        self._log = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._log)
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
        self.uri = f"s3://bucket/results?endpoint_override={address}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.terminate()
        self._server.wait()
        self._log.close()

    def requests(self) -> int:
        """Requests it has answered so far: it logs one line each."""
        self._log.seek(0)
        return self._log.read().count(b"HTTP/1.1")
