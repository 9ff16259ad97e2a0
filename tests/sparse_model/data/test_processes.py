"""Parts made in processes, in any order, after any interruption: always the same bytes, and nothing made twice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparse_model.data import processes
from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.corpora import Part
from sparse_model.data.loader import TokenDataset
from sparse_model.data.parts import PartRecord
from sparse_model.data.processes import Work, in_processes, in_turn
from sparse_model.data.shards import prepare
from sparse_model.data.worker import _outcome
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageFailed, StorageUnavailable

TOKENIZER = TokenizerConfig(vocab_size=400)
CORPUS = CorpusConfig.model_validate(
    {
        "sources": [{"source": "idioms", "megabytes": 0.2}, {"source": "stdlib", "megabytes": 0.1}],
        "heldout_fraction": 0.2,
    }
)
PART_BYTES = 30_000  # ten parts


def make(root: Path, **rest: Any) -> TokenDataset:
    return prepare(rest.pop("corpus", CORPUS), TOKENIZER, str(root), **({"part_bytes": PART_BYTES} | rest))


def files_below(folder: Path) -> dict[str, bytes]:
    """Content by name, but for what a process that was killed had begun to write: no reader looks at that."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".partial-"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a preparation that nothing disturbed."""
    root = tmp_path_factory.mktemp("root")
    assert len(make(root, execute=in_turn).manifest.train.shards) == 10
    return files_below(root)


class Recording:
    """`in_turn`, backwards, noting which parts were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, work: Work, parts: Sequence[Part]) -> Iterator[PartRecord]:
        self.asked = [part.index for part in parts]
        return in_turn(work, parts[::-1])


def interrupt_at(share: float, how: str) -> Any:
    """Progress that ends this process, or the preparation, at a share of the tokens."""

    def progress(stage: str, done: float) -> None:
        if stage == "tokens" and done >= share:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt

    return progress


def test_processes_give_the_same_bytes(in_one_go: dict[str, bytes], tmp_path: Path) -> None:
    make(tmp_path, execute=in_processes(2))
    assert files_below(tmp_path) == in_one_go


def test_any_order_gives_the_same_bytes(in_one_go: dict[str, bytes], tmp_path: Path) -> None:
    make(tmp_path, execute=Recording())
    assert files_below(tmp_path) == in_one_go


def test_an_interrupted_preparation_goes_on_where_it_stopped(in_one_go: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=interrupt_at(0.35, "interrupt"), execute=in_turn)
    recording, shares = Recording(), list[float]()
    make(tmp_path, execute=recording, progress=lambda stage, share: shares.append(share) if stage == "tokens" else None)
    assert recording.asked == [4, 5, 6, 7, 8, 9]
    assert shares[0] == pytest.approx(0.4, abs=0.01)
    assert files_below(tmp_path) == in_one_go


def test_a_killed_preparation_goes_on_where_it_stopped(in_one_go: dict[str, bytes], tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.sparse_model.data.test_processes import *\n"
        "make(Path(sys.argv[1]), progress=interrupt_at(0.35, 'kill'), execute=in_turn)"
    )
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert killed.returncode == -signal.SIGKILL
    recording = Recording()
    make(tmp_path, execute=recording)
    assert recording.asked == [4, 5, 6, 7, 8, 9]
    assert files_below(tmp_path) == in_one_go


@pytest.mark.parametrize("harm", ["record", "shard", "length"])
def test_a_part_that_is_damaged_is_made_again(harm: str, in_one_go: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=interrupt_at(0.35, "interrupt"), execute=in_turn)
    (folder,) = (tmp_path / "data").iterdir()
    if harm == "record":
        (folder / "parts" / "00002.json").write_text('{"index": 2, ')
    elif harm == "shard":
        (folder / "heldout-00002.npy").unlink()
    else:
        os.truncate(folder / "train-00002.npy", 100)
    recording = Recording()
    make(tmp_path, execute=recording)
    assert recording.asked == [2, 4, 5, 6, 7, 8, 9]
    assert files_below(tmp_path) == in_one_go


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes as they are started."""
    found: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        found.append(original(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    return found


def test_a_process_that_is_killed_is_replaced(
    started: list[subprocess.Popen[bytes]], in_one_go: dict[str, bytes], tmp_path: Path
) -> None:
    def kill_one(stage: str, share: float) -> None:
        if stage == "tokens" and share > 0 and len(started) == 2:
            started[0].kill()

    make(tmp_path, progress=kill_one, execute=in_processes(2))
    assert len(started) == 3
    assert all(process.poll() is not None for process in started), "a process was left behind"
    assert files_below(tmp_path) == in_one_go


def test_processes_that_always_die_are_not_replaced_for_ever(
    started: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="a process died 2 times over part"):
        make(tmp_path, execute=in_processes(2))
    assert all(process.poll() is not None for process in started)


def test_an_interrupt_leaves_no_process(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=interrupt_at(0.01, "interrupt"), execute=in_processes(2))
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize("kind", [InputError, StorageUnavailable, StorageFailed])
def test_what_went_wrong_in_a_process_keeps_its_kind(kind: type[InputError]) -> None:
    def work(part: Part) -> PartRecord:
        raise kind("disk full") from OSError(28)

    found = _outcome(work, Part(index=0, slices=()))
    assert (type(found), str(found)) == (kind, "disk full")


def test_bad_input_found_by_a_process_is_refused_by_name(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {n}: value = {n * n}; print('row', {n})"}) for n in range(3000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 but no more")
    corpus = CorpusConfig.model_validate({"sources": [{"source": str(tmp_path)}]})
    with pytest.raises(InputError, match=r"cannot read .*damaged\.parquet") as refused:
        make(tmp_path / "root", corpus=corpus, execute=in_processes(2))
    assert "\n" not in str(refused.value)


def test_a_small_corpus_starts_no_process(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    make(tmp_path, part_bytes=10**6)
    assert not started
