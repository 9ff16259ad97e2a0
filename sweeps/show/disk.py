"""What a study's folder holds, and what of it nobody needs any more.

`token cache` is this machine's copies of tokens that lie in object stores, of any study.
Rows, and models and circuits of trials with a row, are never among that. Nor is anything of a trial that may go on.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from sparse_model import storage
from sparse_model.data.shard_files import default_cache
from sweeps.frontier.parquet import read_table
from sweeps.frontier.rows import table_uri
from sweeps.search.objectives import FINAL
from sweeps.study.folder import study_at

SpareKind = Literal["orphans", "checkpoints", "tokens"]
SPARE_KINDS: tuple[SpareKind, ...] = get_args(SpareKind)
TRIAL_KEY = re.compile(r"t\d{5,}-[0-9a-f]{8}")
"""What our own trials are called; folders with other names were put there by somebody else, and stay."""
UNFINISHED_FILE = re.compile(r"(^|/)(\.partial|_probe)-[0-9a-f]{32}$")
HOUR = 3600.0
FOLDERS = {
    "frontier": "rows",
    "models": "models",
    "circuits": "circuits",
    "ray": "checkpoints",
    "report": "report",
    "suggestions": "draws",
    "logs": "logs",
}


@dataclass(frozen=True)
class Use:
    """How many files and bytes something takes."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(self.files + other.files, self.bytes + other.bytes)


@dataclass(frozen=True)
class Removable:
    """Something that can go: a file or a folder at `uri`, and why nobody needs it."""

    kind: SpareKind
    uri: str
    use: Use
    why: str


def disk_use(uri: str) -> dict[str, Use]:
    """What the study at `uri` takes, by what it is; `tokens` are of all studies in its storage. InputError if none."""
    study_at(uri)
    found: dict[str, Use] = defaultdict(Use)
    for name, size in storage.sizes_below(uri).items():
        found[FOLDERS.get(name.split("/")[0], "other")] += Use(1, size)
    found["tokens"] = _use(storage.join(storage.parent(uri), "data"))
    found["token cache"] = _use(str(default_cache()))
    return {name: found[name] for name in (*FOLDERS.values(), "other", "tokens", "token cache")}


def removable(uri: str, kinds: Collection[SpareKind] = SPARE_KINDS) -> list[Removable]:
    """What of the study at `uri` can go, by kind. InputError where there is no study.

    *orphans*: files whose writing was broken off; once the study is finished, all that belongs to trials without a row.
    *checkpoints*: those of trials that have ended. *tokens*: datasets beside the study that no unfinished study of the
    storage needs, and this machine's copies of them. They are made anew where a command needs them, while the text
    they come from is there.
    """
    study_at(uri)
    ended = _ended(uri)
    found: list[Removable] = []
    if "orphans" in kinds:
        found += [*_broken_off(uri), *_ownerless(uri, ended)]
    if "checkpoints" in kinds:
        found += _checkpoints(uri, ended)
    if "tokens" in kinds:
        found += _tokens(storage.parent(uri))
    return found


def _use(uri: str) -> Use:
    sizes = storage.sizes_below(uri)
    return Use(len(sizes), sum(sizes.values()))


def _rows(uri: str) -> list[dict[str, object]]:
    there = storage.exists(table_uri(uri, "trials"))
    rows: list[dict[str, object]] = read_table(uri, "trials").to_pylist() if there else []
    return [row for row in rows if row["status"] in FINAL]


def _ended(uri: str) -> set[object]:
    """The trials that have a row."""
    return {row["trial"] for row in _rows(uri)}


def _broken_off(uri: str) -> Iterator[Removable]:
    """What is left of writes that a killed process had begun more than an hour ago."""
    sizes = storage.sizes_below(uri)
    fs, path = storage.filesystem(uri)
    for name in filter(UNFINISHED_FILE.search, sizes):
        written = fs.info(f"{path}/{name}").get("mtime")
        if not isinstance(written, float) or written < time.time() - HOUR:
            yield Removable("orphans", storage.join(uri, name), Use(1, sizes[name]), "its writing was broken off")


def _ownerless(uri: str, ended: set[object]) -> Iterator[Removable]:
    """What belongs to trials that never got a row. While a study is unfinished they may still get one."""
    study = study_at(uri)
    if len(ended) < study.search.trials * len(study.seeds):
        return
    for parts in (("models",), ("circuits",), ("report", "circuits"), ("ray", "train")):
        folder = storage.join(uri, *parts)
        for trial in storage.listdir(folder):
            if TRIAL_KEY.fullmatch(trial) and trial not in ended:
                place = storage.join(folder, trial)
                yield Removable("orphans", place, _use(place), "the study is finished, and its trial has no row")


def _checkpoints(uri: str, ended: set[object]) -> Iterator[Removable]:
    folder = storage.join(uri, "ray", "train")
    for trial in storage.listdir(folder):
        if trial in ended:
            place = storage.join(folder, trial)
            yield Removable("checkpoints", place, _use(place), "its trial has ended")


def _tokens(root: str) -> Iterator[Removable]:
    data = storage.join(root, "data")
    needed = _needed_tokens(root)
    for dataset in storage.listdir(data) if needed is not None else ():
        if needed is not None and dataset not in needed:
            for place in (storage.join(data, dataset), storage.join(str(default_cache()), dataset)):
                if (use := _use(place)).files:
                    yield Removable("tokens", place, use, "no unfinished study here needs it")


def _needed_tokens(root: str) -> set[object] | None:
    """Datasets of the unfinished studies below a storage; None where one of them cannot tell which it needs."""
    needed: set[object] = set()
    for name in storage.listdir(root):
        uri = storage.join(root, name)
        if not storage.exists(storage.join(uri, "study.yaml")):
            continue
        study, rows = study_at(uri), _rows(uri)
        if len(rows) < study.search.trials * len(study.seeds):
            if not rows:
                return None
            needed |= {row["data"] for row in rows}
    return needed
