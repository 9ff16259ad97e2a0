"""What goes wrong in stores: one line for every failure, patience with passing ones, no credentials in any of it."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

from sparse_model.errors import InputError

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)

PATIENCE = "SWEEPS_STORAGE_PATIENCE"
"""Environment variable: seconds for which a store that fails is tried again before giving up; 180 by default."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0

_PASSING_NAMES = {
    "HTTPClientError",  # botocore: reset, timed out
    "ConnectionError",  # botocore: no connection
    "ClientError",  # aiohttp: likewise (botocore's of the same name has a response, looked at first)
    "ClientConnectionError",
    "ClientPayloadError",
    "IncompleteRead",
    "ResponseParserError",
    "FSTimeoutError",
}
_PASSING_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "InternalError"}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken"}
"""Credentials that were good: whoever renews them may be late."""
_ABSENT_NAMES = {"NoCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}
"""Those of a machine or a pod may come some seconds after it."""
CREDENTIALS_PATIENCE = 15.0
"""Seconds for which credentials that are not there are waited for, at most: mostly they never come."""
_PASSING_ERRNO = {
    errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
    errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ENODEV, errno.ESHUTDOWN,  # of mounts whose server is gone
}  # fmt: skip

_SECRET_WORDS = r"[\w.-]*(?:secret|token|passw|signature|credential|access_?key|api_?key|sas\b|\bsig\b)[\w.-]*"
_SECRET_PAIR = re.compile(rf"(?i)({_SECRET_WORDS}\s*[=:]\s*)[^&\s,;'\"]+")
_USER = re.compile(r"(?<=://)[^/@\s?]+@")
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}")


class StorageUnavailable(InputError):
    """A store that may be back later: nothing is wrong with what was asked."""


class StorageFailed(InputError):
    """Something could not be kept in a store, as when it is full: a fault on the way, no mistake in what was asked."""


def persistently(
    action: str,
    uri: str,
    operation: Callable[[], Answer],
    patience: float | None = None,
    renew: Callable[[], None] | None = None,
) -> Answer:
    """Do something in a store, again and again with growing pauses while it fails for reasons that pass.

    Every pause is logged as a warning. Raises InputError for what will not pass, StorageUnavailable after `patience`
    seconds (`PATIENCE`). The operation must be one that may be done twice. `renew` is called before it is tried again
    because of credentials: drivers keep those they began with.
    """
    limit = float(os.environ.get(PATIENCE, 180)) if patience is None else patience
    started, pause, failures = time.monotonic(), FIRST_PAUSE, 0
    while True:
        try:
            with refusing(action, uri):
                answer = operation()
        except StorageUnavailable as error:
            failures += 1
            if needs_credentials(error):
                limit = min(limit, CREDENTIALS_PATIENCE)
                if renew is not None:
                    renew()
            left = limit - (time.monotonic() - started)
            if left <= 0:
                raise StorageUnavailable(f"{error} (tried {failures} times in {limit:g} s)") from error
            log.warning("%s; trying again for %.0f s", error, left)
            time.sleep(min(pause * random.uniform(0.5, 1), left))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if failures:
                log.warning("storage: could %s %s after %d failures", action, redacted(uri), failures)
            return answer


@contextmanager
def refusing(action: str, uri: str) -> Iterator[None]:
    """Turn whatever a driver raises (each has its own exceptions) into one line that names the URI."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "it does not exist"
        elif isinstance(error, OSError) and error.strerror:
            reason = " ".join(error.strerror.split())
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        kind = StorageFailed if full else StorageUnavailable if is_passing(error) else InputError
        raise kind(f"storage: cannot {action} {redacted(uri)}: {redacted(reason)}") from error


@contextmanager
def begun() -> Iterator[None]:
    """What stores refuse from here on is a fault on the way: what was asked has been checked, and is under way."""
    try:
        yield
    except (StorageUnavailable, StorageFailed):
        raise
    except InputError as error:
        if not str(error).startswith("storage: cannot"):
            raise
        raise StorageFailed(str(error)) from error


def is_passing(error: BaseException) -> bool:
    """Whether an error, or what caused it, is of a kind that goes away: overload, no connection, a time limit."""
    seen: BaseException | None = error
    while seen is not None:
        if (response := getattr(seen, "response", None)) is not None and isinstance(response, dict):
            return _is_passing_answer(response)
        if isinstance(seen, ConnectionError | TimeoutError) or getattr(seen, "errno", None) in _PASSING_ERRNO:
            return True
        if {kind.__name__ for kind in type(seen).__mro__} & (_PASSING_NAMES | _ABSENT_NAMES):
            return True
        if str(getattr(seen, "code", "")).isdigit() and int(getattr(seen, "code", 0)) in (
            408,
            409,
            429,
            *range(500, 600),
        ):
            return True  # gcsfs
        seen = seen.__cause__
    return False


def needs_credentials(error: BaseException) -> bool:
    """Whether credentials are lacking or too old, which others may do something about."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict) and str(response.get("Error", {}).get("Code", "")) in _EXPIRED_CODES:
            return True
        if {kind.__name__ for kind in type(seen).__mro__} & _ABSENT_NAMES:
            return True
        seen = seen.__cause__
    return False


def _is_passing_answer(response: dict[str, Any]) -> bool:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(response.get("Error", {}).get("Code", ""))
    # An answer to HEAD has no body: its code is the status.
    # 409: another's write at the same moment; it is judged anew when it is tried again.
    return status >= 500 or status in (409, 429) or code in _PASSING_CODES | _EXPIRED_CODES or code.startswith("5")


def redacted(text: str) -> str:
    """A text without what looks like credentials in it: user:password@, secret=…, access key ids."""
    return _KEY_ID.sub("***", _SECRET_PAIR.sub(r"\1***", _USER.sub("***@", text)))


def check_no_credentials(uri: str) -> None:
    """InputError for a URI with credentials in it: it would be logged and stored with the results."""
    if "://" in uri and any(redacted(text) != text for text in (uri, unquote(uri))):
        raise InputError(
            f"storage: {redacted(unquote(uri))}: credentials do not belong in a URI; allowed: environment variables "
            "(AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …), a profile, or the machine's own role"
        )
