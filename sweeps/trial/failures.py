"""A study whose trials all fail for one reason pauses: what is wrong is no configuration's fault, and costs money."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_VARYING = re.compile(r"0x[0-9a-fA-F]+|t\d{5}-[0-9a-f]{8}|\b[0-9a-f]{12,}\b|\d+(?:\.\d+)?")
"""What differs between trials that fail alike: addresses, keys, ids, numbers."""


class StudyPaused(RuntimeError):
    """Too many trials in a row failed for one reason."""


class Failures:
    """Counts trials that fail alike, one after the other."""

    def __init__(self, limit: int) -> None:
        """After `limit` of them the study pauses; 0: never."""
        self.limit = limit
        self._reason, self._shown, self._count = "", "", 0

    def take(self, row: Mapping[str, Any]) -> None:
        """Take note of how a trial ended."""
        if row["status"] != "failed":
            self._count = 0
            return
        self._shown = row["reason"]
        reason = same_kind(self._shown)
        self._count = self._count + 1 if reason == self._reason else 1
        self._reason = reason

    def check(self) -> None:
        """Raise StudyPaused if there were too many."""
        if self.limit and self._count >= self.limit:
            raise StudyPaused(
                f"the study pauses: {self._count} trials in a row failed for one reason: {self._shown}. Mend it, and "
                "the same command with --retry-failed goes on (pause_after in the study file: how many it takes)"
            )


def same_kind(reason: str) -> str:
    """A reason without what differs between trials that fail alike."""
    return _VARYING.sub("#", reason)
