"""Running a study on a cluster as a Ray job: submitted, its log followed, its real status returned."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.engine.session import prepare_environment
from sweeps.study.study import Study, load_study, shipped_studies

JOB_POLL_SECONDS = 2.0
LONGEST_OUTAGE = 120.0
"""Seconds for which the cluster's dashboard may not answer while a job is followed."""
KEEP_OUT = (".git", ".venv", "results")
"""Never uploaded, besides what .rayignore and .gitignore name."""


def entrypoint(study: str, storage_uri: str | None, working_dir: str, *, retry_failed: bool = False) -> str:
    """The command a job runs on the head node. InputError for a study file that the upload would not hold."""
    if study not in shipped_studies():
        inside, folder = Path(study).resolve(), Path(working_dir).resolve()
        if not inside.is_relative_to(folder):
            raise InputError(f"study {study}: is not below the working directory {folder}, which is what is uploaded")
        study = str(inside.relative_to(folder))
    command = ["python", "-m", "sweeps", "run", study, "--address", "auto"]
    if storage_uri is not None:
        command += ["--storage", storage_uri]
    return shlex.join(command + (["--retry-failed"] if retry_failed else []))


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


def start_job_at(address: str, command: str, working_dir: str) -> tuple[Any, str]:
    """`start_job` on the cluster whose dashboard is at `address`: its client and the job's id; InputError where there
    is none, or none that takes it."""
    prepare_environment()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        logging.disable(logging.INFO)  # Ray's loggers, each set to INFO by itself
        return client, start_job(client, command, working_dir)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"address {address}: {' '.join(str(error).split())}") from None


def start_job(client: Any, command: str, working_dir: str) -> str:
    """Upload the working directory and start the job; its id. The driver asks for no CPU, so it stays on the head."""
    runtime_env = {"working_dir": working_dir, "excludes": list(KEEP_OUT)}
    deadline = time.monotonic() + LONGEST_OUTAGE
    while True:
        try:
            return str(client.submit_job(entrypoint=command, runtime_env=runtime_env))
        except RuntimeError as error:  # a cluster that has only just started has no agent to take it
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(JOB_POLL_SECONDS)


def follow_job(client: Any, job: str, show: Callable[[str], None]) -> int:
    """Show a job's log until the job has ended; the exit status it deserves.

    0 only if Ray says that it succeeded (a stopped job did not); else the driver's own status where there is one, 1
    where not. A dashboard that does not answer for a while is asked again.
    """
    shown, silent_since = 0, time.monotonic()
    while True:
        try:
            log, info = client.get_job_logs(job), client.get_job_info(job)
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() - silent_since > LONGEST_OUTAGE:
                show(f"no answer from the cluster ({_line(error)}); job {job} may still be running")
                return 1
        else:
            silent_since = time.monotonic()
            whole = log if info.status.is_terminal() else log[: log.rfind("\n") + 1]
            if whole[shown:]:
                show(whole[shown:].rstrip("\n"))
            shown = max(shown, len(whole))
            if info.status.is_terminal():
                return _ended(job, info, show)
        time.sleep(JOB_POLL_SECONDS)


def _ended(job: str, info: Any, show: Callable[[str], None]) -> int:
    status = str(getattr(info.status, "value", info.status))
    show(f"job {job}: {status}" + (f" ({_line(info.message)})" if info.message and status != "SUCCEEDED" else ""))
    if status == "SUCCEEDED":
        return 0
    return (info.driver_exit_code or 1) if status == "FAILED" else 1


def _line(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= 200 else text[:197] + "…"
