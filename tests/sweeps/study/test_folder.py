"""A study file kept beside its results."""

from __future__ import annotations

from sweeps.study.folder import differences


def test_differences_are_named_by_path() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": None}
    assert differences(before, before) == []
    assert differences(before, {"a": {"b": 2, "c": [1]}, "d": None, "e": 5}) == [("a.b", 1, 2), ("e", None, 5)]
