"""Running a study on a cluster as a Ray job: submitted, its log followed, its real status returned."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.engine.session import prepare_environment
from sweeps.engine.upload import KEEP_OUT
from sweeps.study.study import Study, load_study, shipped_studies

JOB_POLL_SECONDS = 2.0
LONGEST_OUTAGE = 120.0
"""Seconds for which the cluster's dashboard may not answer while a job is followed."""
STREAM_SILENCE = 60.0
"""Seconds without a line after which the stream of a log is opened anew: it may be cut without anyone being told."""
ANSWER_SECONDS = 60.0
"""For which an answer of the dashboard is waited for."""


def entrypoint(study: str, storage_uri: str | None, working_dir: str, flags: Sequence[str] = ()) -> str:
    """The command a job runs on the head node, with these `flags` of `sweeps run`.

    InputError for a study file that the upload would not hold.
    """
    if study not in shipped_studies():
        inside, folder = Path(study).resolve(), Path(working_dir).resolve()
        if not inside.is_relative_to(folder):
            raise InputError(f"study {study}: is not below the working directory {folder}, which is what is uploaded")
        study = str(inside.relative_to(folder))
    command = ["python", "-m", "sweeps", "run", study, "--address", "auto"]
    if storage_uri is not None:
        command += ["--storage", storage_uri]
    return shlex.join([*command, *flags])


def check_shared(study: str, storage_uri: str | None) -> Study:
    """The study, if it is one that nodes of a cluster can share the storage of."""
    asked = load_study(study, storage_uri)
    if storage.is_local(asked.storage) and not _is_absolute(storage_uri or ""):
        raise InputError(
            f"storage {storage_uri or asked.storage}: nodes of a cluster share no local folder; name an object store, "
            "or by its whole path a folder that all of them mount, with --storage"
        )
    return asked


def _is_absolute(uri: str) -> bool:
    return uri.startswith(("/", "file:///", "local:///"))


def start_job_at(
    address: str, command: str, working_dir: str, environment: Mapping[str, str] | None = None
) -> tuple[Any, str]:
    """`start_job` on the cluster whose dashboard is at `address`: its client and the job's id; InputError where there
    is none, or none that takes it."""
    prepare_environment()
    from ray.exceptions import AuthenticationError

    try:
        client = job_client(address)
        logging.disable(logging.INFO)  # Ray's loggers, each set to INFO by itself
        return client, start_job(client, command, working_dir, environment)
    except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"address {address}: {' '.join(str(error).split())}") from None


def job_client(address: str) -> Any:
    """Ray's client of a dashboard, which waits for an answer as long as `ANSWER_SECONDS`, not for ever."""
    from ray.job_submission import JobSubmissionClient

    class PatientClient(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **({"timeout": ANSWER_SECONDS} | options))

    return PatientClient(address)


def start_job(client: Any, command: str, working_dir: str, environment: Mapping[str, str] | None = None) -> str:
    """Upload the working directory and start the job; its id. The driver asks for no CPU, so it stays on the head.

    Where the answer got lost, it is asked for again by the same id, so that there is one job.
    """
    runtime_env: dict[str, Any] = {"working_dir": working_dir, "excludes": list(KEEP_OUT)}
    if environment:
        runtime_env["env_vars"] = dict(environment)
    deadline, job = time.monotonic() + LONGEST_OUTAGE, f"sweeps_{uuid.uuid4().hex[:16]}"
    asked = False
    while True:
        try:
            return str(client.submit_job(entrypoint=command, runtime_env=dict(runtime_env), submission_id=job))
        except (OSError, RuntimeError) as error:
            if asked and "already exists" in str(error):
                return job
            # A cluster that has only just started has no agent to take it.
            passing = isinstance(error, OSError) or "No available agent" in str(error)
            if not passing or time.monotonic() > deadline:
                raise
            asked = True
        time.sleep(JOB_POLL_SECONDS)


class JobLog:
    """What a job has printed, shown once, whole lines at a time, however often the stream begins anew."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown = self._read = 0
        self._rest = ""
        self.heard = 0.0

    def begin(self) -> None:
        """The stream is opened, and tells everything from the start."""
        self._read = 0

    def take(self, part: str) -> None:
        """More of it."""
        self.heard = time.monotonic()
        new = part[max(0, self._shown - self._read) :]
        self._read += len(part)
        self._shown = max(self._shown, self._read)
        whole, newline, self._rest = (self._rest + new).rpartition("\n")
        if newline:
            self._show(whole)

    def end(self) -> None:
        """Nothing will follow: a last line may have no end."""
        if self._rest:
            self._show(self._rest)
        self._rest = ""


def follow_job(client: Any, job: str, show: Callable[[str], None]) -> int:
    """Show a job's log as it grows until the job has ended; the exit status it deserves.

    0 only if Ray says that it succeeded (a stopped job did not); else the driver's own status where there is one, 1
    where not. A connection that drops, and a dashboard that does not answer for a while, cost nothing of the log.
    """
    log, answered = JobLog(show), time.monotonic()
    while True:
        try:
            info = _followed(client, job, log)
        except _lost() as error:
            answered = max(answered, log.heard)
            if time.monotonic() - answered > LONGEST_OUTAGE:
                show(f"no answer from the cluster ({_line(error)}); job {job} may still be running")
                return 1
        else:
            answered = time.monotonic()
            if info.status.is_terminal():
                log.end()
                return _ended(job, info, show)
        time.sleep(JOB_POLL_SECONDS)


def _followed(client: Any, job: str, log: JobLog) -> Any:
    """Take in the job's log for as long as it is streamed, and the rest of it; what the job is like after that.

    A way to the dashboard on which no stream can be had, or none that lasts, leaves asking for the whole log.
    """
    try:
        asyncio.run(_stream(client, job, log))
    except _lost():
        log.begin()
        log.take(client.get_job_logs(job))
    info = client.get_job_info(job)
    if info.status.is_terminal():  # what it said between the end of the stream and its own
        log.begin()
        log.take(client.get_job_logs(job))
    return info


async def _stream(client: Any, job: str, log: JobLog) -> None:
    if not hasattr(client, "tail_job_logs"):
        raise ConnectionError("this client streams no log")
    parts = client.tail_job_logs(job)
    log.begin()
    try:
        while True:
            try:
                log.take(await asyncio.wait_for(anext(parts), STREAM_SILENCE))
            except StopAsyncIteration:
                return
    finally:
        await parts.aclose()


def _lost() -> tuple[type[BaseException], ...]:
    """What the client raises when it has no connection, or no longer: errors of requests are OSErrors."""
    import aiohttp

    return OSError, RuntimeError, aiohttp.ClientError


def _ended(job: str, info: Any, show: Callable[[str], None]) -> int:
    status = str(getattr(info.status, "value", info.status))
    show(f"job {job}: {status}" + (f" ({_line(info.message)})" if info.message and status != "SUCCEEDED" else ""))
    if status == "SUCCEEDED":
        return 0
    return (info.driver_exit_code or 1) if status == "FAILED" else 1


def _line(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= 200 else text[:197] + "…"
