"""SQL over tables in memory, by a DuckDB that can reach nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import duckdb
import pyarrow as pa

from sparse_model.errors import InputError

SEALED = {
    "enable_external_access": "false",  # no files, no network, no extensions, no variables of this program
    "temp_directory": "",  # nor files of its own for what does not fit into memory
    "lock_configuration": "true",
}
# PIVOT is several statements to DuckDB: it first collects the values that become columns.
QUERIES = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)


def query_tables(query: str, tables: Mapping[str, Callable[[], Any]]) -> Any:
    """The answer to one query as a `pyarrow.Table`; of `tables`, those it names are read.

    InputError, in one line, for what is not a query, what DuckDB refuses, and anything that reaches outside.
    """
    with duckdb.connect(config=SEALED) as connection:
        try:
            statements = connection.extract_statements(query)
            if len(statements) != 1 or statements[0].type not in QUERIES:
                raise InputError(
                    f"sql: {_line(query)!r}: one query is expected (SELECT, WITH, FROM, PIVOT, DESCRIBE …)"
                )
            for name, read in tables.items():
                if re.search(rf"\b({name}|show|information_schema)\b", query, re.IGNORECASE):
                    connection.register(name, read())
            answer = connection.sql(query).to_arrow_table()
            return _plain_numbers(answer.rename_columns(_told_apart(answer.column_names)))
        except duckdb.Error as error:
            raise InputError(f"sql: {_line(str(error))}{_quoting(str(error))}") from None


def _quoting(error: str) -> str:
    """What may be meant by a column that is not there: a text without its quotes."""
    missing = re.search(r'Referenced column "([^"]+)" not found', error)
    return f"; a text stands in single quotes: '{missing[1]}'" if missing else ""


def _plain_numbers(answer: Any) -> Any:
    """DuckDB sums whole numbers in 128 bits, which CSV and JSON readers take for text."""
    for place, column in enumerate(answer.schema):
        if pa.types.is_decimal(column.type):
            kind = pa.int64() if column.type.scale == 0 else pa.float64()
            try:
                answer = answer.set_column(place, column.name, answer.column(place).cast(kind))
            except pa.ArrowInvalid:  # beyond 64 bits
                answer = answer.set_column(place, column.name, answer.column(place).cast(pa.float64()))
    return answer


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names of columns, numbered where there are several of one: `status`, `status_1`, as DuckDB does in subqueries."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}_{n}" for n in count(1))
        found.append(name if name not in found else next(other for other in numbered if other not in (*found, *names)))
    return found


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "…"
