"""Checkpoints in every kind of store, whole and damaged; those of several workers are tested with the sharding."""

import errno
import json
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageFailed, StorageUnavailable
from sparse_model.training import checkpoint
from sparse_model.training.checkpoint import Checkpoints


def state(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 2), float(step)), "moment": torch.arange(5.0) * step}


def saved(uri: str, *steps: int) -> Checkpoints:
    store = Checkpoints(uri)
    for step in steps:
        store.save(step, {"step": step}, state(step))
    return store


def restored(store: Checkpoints) -> int | None:
    """The step that the store brings back, checked against the tensors; None if there is none."""
    seen, tensors = {}, state(0)

    def take(progress, read) -> None:
        read(tensors)
        seen.update(progress)

    if not store.restore(take):
        return None
    assert all(torch.equal(tensors[name], value) for name, value in state(seen["step"]).items())
    return seen["step"]


def names(uri: str) -> list[str]:
    return [name[:13] for name in storage.listdir(uri)]


def test_the_newest_of_the_last_two_comes_back_from_any_store(root_uri):
    assert restored(Checkpoints(root_uri)) is None
    store = saved(root_uri, 5, 10, 15)
    assert restored(store) == 15
    assert names(root_uri) == ["step-00000010", "step-00000015"]


def newest_file(folder: Path, pattern: str) -> Path:
    return next(sorted(folder.glob("step-*"))[-1].glob(pattern))


def truncate(folder: Path) -> None:
    path = newest_file(folder, "__0_0.distcp")
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_bit(folder: Path) -> None:
    path = newest_file(folder, "__0_0.distcp")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    newest_file(folder, "__0_0.distcp").unlink()


def truncate_the_index(folder: Path) -> None:
    newest_file(folder, ".metadata").write_bytes(b"")


def lose_the_index(folder: Path) -> None:
    newest_file(folder, ".metadata").unlink()


def truncate_the_manifest(folder: Path) -> None:
    newest_file(folder, "manifest.json").write_text('{"files"')


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit, lose_a_file, truncate_the_index, lose_the_index, truncate_the_manifest]
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage):
    store = saved(str(tmp_path), 5, 10)
    damage(tmp_path)
    with pytest.warns(UserWarning, match=r"step-00000010.*cannot be read .*trying the one before"):
        assert restored(store) == 5
    printed = [record for record in caplog.records if "NullHandler" not in record.name]
    assert not printed  # torch has nothing to add
    store.save(10, {"step": 10}, state(10))  # the run goes on and takes the damaged one's place
    assert names(str(tmp_path)) == ["step-00000005", "step-00000010"]
    assert restored(store) == 10


def test_one_that_was_broken_off_counts_for_nothing_and_is_cleared_away(tmp_path):
    store = saved(str(tmp_path), 5, 10)
    newest_file(tmp_path, "manifest.json").unlink()
    assert restored(store) == 5
    store.save(15, {"step": 15}, state(15))
    assert names(str(tmp_path)) == ["step-00000005", "step-00000015"]


def full_disk(*args, **options) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_and_then_more(*args, **options) -> None:
    """As torch's writer does when it closes a file that it could not fill."""
    try:
        try:
            full_disk()
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    except RuntimeError as error:
        raise CheckpointException("", {0: (error, None)}) from None


@pytest.mark.parametrize(
    ("part", "failure"),
    [
        ("save_tensors", full_disk),
        ("save_tensors", full_disk_and_then_more),
        ("storage.write_bytes_atomic", full_disk),
    ],
)
def test_a_full_disk_is_one_clear_line_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch, part, failure):
    store = saved(str(tmp_path), 5)
    with monkeypatch.context() as patch:
        patch.setattr(f"sparse_model.training.checkpoint.{part}", failure)
        with pytest.raises(StorageFailed, match=r"cannot keep a checkpoint of step 10 in .*No space left on device"):
            store.save(10, {"step": 10}, state(10))
    assert names(str(tmp_path)) == ["step-00000005"]
    assert restored(store) == 5


def test_storage_that_cannot_be_reached_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    store = saved(str(tmp_path), 5)
    monkeypatch.setattr(checkpoint.storage, "listdir", lambda uri: (_ for _ in ()).throw(InputError(f"no {uri}")))
    with pytest.raises(InputError, match="storage: no "):
        restored(store)


def test_a_manifest_names_every_file_with_its_hash(tmp_path):
    saved(str(tmp_path), 5)
    manifest = json.loads(newest_file(tmp_path, "manifest.json").read_text())
    there = {path.name for path in newest_file(tmp_path, "manifest.json").parent.iterdir()}
    assert set(manifest["files"]) | {"manifest.json"} == there
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())


def test_a_store_that_is_down_is_no_damaged_checkpoint(tmp_path, monkeypatch):
    """Neither is an older one taken instead, nor the newest thrown away: the run is to be tried again."""
    store = saved(str(tmp_path), 5, 10)

    def down(*_):
        raise StorageUnavailable("storage: cannot read: down")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", down)
        with pytest.raises(StorageUnavailable, match="down"):
            restored(store)
        patch.setattr(storage, "write_bytes_atomic", down)
        with pytest.raises(StorageUnavailable, match="down"):
            saved(str(tmp_path), 15)
    assert restored(store) == 10
    assert restored(saved(str(tmp_path), 20)) == 20
    assert names(str(tmp_path)) == ["step-00000010", "step-00000020"]
