"""Columns that other programs wrote, as the columns of our tables: other types for the same values.

pandas writes whole numbers with gaps as floats whose gaps are NaN, and times in nanoseconds without a zone; engines of
SQL write decimals, unsigned numbers and dictionaries. All of that says the same.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""What stands for null in the name of a partition's folder."""


def converted(column: Any, kind: Any) -> Any:
    """A `pyarrow.ChunkedArray` of another type as one of ours; times without a zone are taken for UTC.

    Raises pa.ArrowException for values that are none of that type, and none is rounded but times, to microseconds.
    """
    column = _plain(column)
    found = column.type
    if found == kind or pa.types.is_null(found):
        return column.cast(kind)
    if pa.types.is_boolean(found) and not pa.types.is_string(kind):
        raise pa.ArrowInvalid("true and false are neither numbers nor times")
    if pa.types.is_floating(found):
        column = _without_nan(column)
    if pa.types.is_timestamp(kind):
        return _times(column, kind)
    if pa.types.is_floating(kind):
        return column.cast(kind, safe=False) if pa.types.is_integer(found) else column.cast(kind)
    if pa.types.is_boolean(kind) and (pa.types.is_floating(found) or pa.types.is_decimal(found)):
        return column.cast(pa.int8()).cast(kind)
    return column.cast(kind)


def without_nan(column: Any) -> Any:
    """NaN as no value, which is how pandas writes that."""
    return _without_nan(column) if pa.types.is_floating(column.type) else column


def partition_values(folders: str) -> dict[str, str | None]:
    """Columns in the names of folders, `kind=sparse/seed=0`, which engines leave out of the files below."""
    parts = [folder.partition("=") for folder in folders.split("/")]
    return {unquote(key): None if value == NO_VALUE else unquote(value) for key, equals, value in parts if equals}


def _plain(column: Any) -> Any:
    """Without dictionaries, extension types and views, of texts that are no bytes."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column = column.cast(pa.string())
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    return column


def _without_nan(column: Any) -> Any:
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _times(column: Any, kind: Any) -> Any:
    found = column.type
    if pa.types.is_timestamp(found) or pa.types.is_date(found):
        return column.cast(kind, safe=False)
    if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
        raise pa.ArrowInvalid("a time has a zone or a date; a number has no unit")
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:  # no zone in it
        return column.cast(pa.timestamp(kind.unit)).cast(kind)
