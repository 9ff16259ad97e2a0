"""`sweeps clean`: what of a study's folder nobody needs any more, told and then removed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.engine.lease import holding_lease
from sweeps.show.disk import SPARE_KINDS, Removable, SpareKind, Use, disk_use, removable
from sweeps.show.text import terminal


def clean_command(
    uri: Annotated[str, typer.Argument(help="a study's folder or URI, e.g. ./results/quickstart")],
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"one kind of what can go ({', '.join(SPARE_KINDS)}); repeatable; default: all"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove without asking")] = False,
) -> int:
    """Tell what of a study's folder nobody needs any more, and remove it when told to.

    Three kinds: orphans (files half written; in a finished study also models and circuits of trials without a row),
    checkpoints of trials that have ended, and tokens that no unfinished study in the same storage needs. Rows are never
    touched, nor are models and circuits of trials that have a row. A study that is being run is refused.
    """
    for name in only or ():
        if name not in SPARE_KINDS:
            raise InputError(f"--only {name!r}; allowed: {', '.join(SPARE_KINDS)}")
    kinds = [kind for kind in SPARE_KINDS if not only or kind in only]
    found = removable(uri, kinds)
    for one in found:
        _say(f"{one.kind:>11}: {one.uri} ({said(one.use)}): {one.why}")
    if not found:
        _say("nothing to remove")
        return 0
    total = sum((one.use for one in found), Use())
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Remove all of this, {said(total)}?")):
        _say(f"nothing was removed; --yes removes all of this, {said(total)}")
        return 0
    with holding_lease(uri, _say):
        gone = _removed(uri, kinds, found)
    _say(f"removed {said(gone)}")
    return 0


def _removed(uri: str, kinds: list[SpareKind], told: list[Removable]) -> Use:
    """Remove what was told and can still go; how much that was."""
    now = {one.uri for one in removable(uri, kinds)}
    gone = Use()
    for one in told:
        if one.uri in now:
            storage.remove(one.uri)
            gone += one.use
    return gone


def disk_lines(uri: str) -> dict[str, str]:
    """What a study's folder takes, and what of that can go, for `sweeps status --disk`."""
    lines = {name: said(use) for name, use in disk_use(uri).items() if use.files}
    spare = sum((one.use for one in removable(uri)), Use())
    if spare.files:
        lines["to spare"] = f"{said(spare)}; `sweeps clean {uri}` tells which"
    return lines


def said(use: Use) -> str:
    """12.3 MB in 4 files."""
    size, unit = next(((use.bytes / n, u) for n, u in _UNITS if use.bytes >= n), (use.bytes, "bytes"))
    amount = f"{size:,.0f}" if unit == "bytes" else f"{size:,.1f}"
    return f"{amount} {unit} in {use.files:,} file{'s' * (use.files != 1)}"


_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def _say(line: str) -> None:
    terminal().print(line, markup=False, soft_wrap=True)
