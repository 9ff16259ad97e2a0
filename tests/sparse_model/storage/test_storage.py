"""The same contract for every kind of store, and one clear line for every failure."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageFailed


class TestEveryStore:
    def test_what_is_written_is_read_back_and_replaced_whole(self, root_uri: str) -> None:
        uri = storage.join(root_uri, "a", "b.bin")
        storage.write_bytes_atomic(uri, b"a longer first version")
        storage.write_bytes_atomic(uri, b"second")
        assert storage.read_bytes(uri) == b"second"

    def test_of_many_that_create_a_file_at_once_one_succeeds(self, root_uri: str) -> None:
        uri = storage.join(root_uri, "a", "b.bin")
        with ThreadPoolExecutor(4) as pool:
            written = list(pool.map(lambda i: storage.create(uri, b"%d" % i), range(4)))
        if not root_uri.startswith("memory"):  # which nobody shares
            assert storage.read_bytes(uri) == b"%d" % written.index(True)
            assert written.count(True) == 1
        assert not storage.create(uri, b"late")
        assert storage.read_bytes(uri) != b"late"

    def test_existence_of_files_and_folders(self, root_uri: str) -> None:
        uri = storage.join(root_uri, "a", "b.bin")
        assert not storage.exists(uri)
        storage.write_bytes_atomic(uri, b"x")
        assert storage.exists(uri)
        assert storage.exists(storage.join(root_uri, "a"))
        assert not storage.exists(storage.join(root_uri, "a", "b"))

    def test_listing_has_the_names_directly_below_in_order(self, root_uri: str) -> None:
        for name in ("z", "a", "folder/deep/file"):
            storage.write_bytes_atomic(storage.join(root_uri, name), b"x")
        assert storage.listdir(root_uri) == ["a", "folder", "z"]
        assert storage.listdir(storage.join(root_uri, "folder")) == ["deep"]
        assert storage.listdir(storage.join(root_uri, "missing")) == []

    def test_listing_sees_what_came_after_the_last_listing(self, root_uri: str) -> None:
        storage.write_bytes_atomic(storage.join(root_uri, "a"), b"x")
        assert storage.listdir(root_uri) == ["a"]
        storage.write_bytes_atomic(storage.join(root_uri, "b"), b"x")
        assert storage.listdir(root_uri) == ["a", "b"]

    def test_removing_takes_a_whole_folder_and_nothing_else(self, root_uri: str) -> None:
        for name in ("keep", "drop/a", "drop/b/c"):
            storage.write_bytes_atomic(storage.join(root_uri, name), b"x")
        storage.remove(storage.join(root_uri, "drop"))
        storage.remove(storage.join(root_uri, "never was"))
        assert storage.listdir(root_uri) == ["keep"]

    def test_download(self, root_uri: str, tmp_path: Path) -> None:
        storage.write_bytes_atomic(storage.join(root_uri, "a"), b"content")
        storage.download(storage.join(root_uri, "a"), tmp_path / "new" / "copy")
        assert (tmp_path / "new" / "copy").read_bytes() == b"content"
        with pytest.raises(InputError, match="does not exist"):
            storage.download(storage.join(root_uri, "none"), tmp_path / "new" / "none")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]

    def test_reading_what_is_missing_names_it(self, root_uri: str) -> None:
        uri = storage.join(root_uri, "none")
        with pytest.raises(InputError) as refused:
            storage.read_bytes(uri)
        assert str(refused.value) == f"storage: cannot read {uri}: it does not exist"

    def test_many_are_read_at_once_and_removed(self, root_uri: str) -> None:
        root_uri = storage.join(root_uri, "a[bc]*")
        for name in ("a", "b", "c"):
            storage.write_bytes_atomic(storage.join(root_uri, name), name.encode())
        assert dict(storage.read_many(root_uri, ["c", "none", "a"])) == {"a": b"a", "c": b"c", "none": None}
        storage.remove_many(root_uri, ["c", "none", "a"])
        assert storage.listdir(root_uri) == ["b"]
        storage.remove_many(root_uri, [])

    def test_names_are_no_patterns(self, root_uri: str) -> None:
        for name in ("ab", "a*", "a[b]"):
            storage.write_bytes_atomic(storage.join(root_uri, name, "file"), name.encode())
        for name in ("a*", "a[b]"):
            assert storage.read_bytes(storage.join(root_uri, name, "file")) == name.encode()
            assert storage.listdir(storage.join(root_uri, name)) == ["file"]
            storage.remove(storage.join(root_uri, name))
        assert storage.listdir(root_uri) == ["ab"]

    def test_a_new_version_has_another_mark(self, root_uri: str) -> None:
        for name in ("a", "b", "folder/c"):
            storage.write_bytes_atomic(storage.join(root_uri, name), b"one")
        before = storage.versions(root_uri)
        storage.write_bytes_atomic(storage.join(root_uri, "a"), b"two")
        after = storage.versions(root_uri)
        assert list(before) == list(after) == ["a", "b"]
        assert (before["a"] != after["a"], before["b"] == after["b"]) == (True, True)
        assert storage.versions(storage.join(root_uri, "missing")) == {}

    def test_a_big_file_is_whole(self, root_uri: str, tmp_path: Path) -> None:
        """Larger than what S3 takes in one part of a multipart upload."""
        content = bytes(range(256)) * (6 * 2**12)
        storage.write_bytes_atomic(storage.join(root_uri, "big"), content)
        storage.download(storage.join(root_uri, "big"), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content == storage.read_bytes(storage.join(root_uri, "big"))
        again = storage.join(root_uri, "a new folder", "again")
        storage.upload(tmp_path / "copy", again)
        assert storage.read_bytes(again) == content

    def test_two_writers_of_one_name_leave_one_whole_file(self, root_uri: str) -> None:
        uri, versions = storage.join(root_uri, "a"), [bytes([i]) * 50_000 for i in range(8)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda content: storage.write_bytes_atomic(uri, content), versions))
            assert storage.read_bytes(uri) in versions
        assert storage.listdir(root_uri) == ["a"]

    def test_the_writability_probe_leaves_nothing(self, root_uri: str) -> None:
        storage.check_writable(root_uri)
        assert storage.listdir(root_uri) == []


def test_other_protocols_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """gs:// as whichever file system fsspec has for it; nothing here knows it by name."""

    class Elsewhere(MemoryFileSystem):
        protocol = "gs"
        store: ClassVar[dict[str, object]] = {}

    fsspec.register_implementation("gs", Elsewhere, clobber=True)
    storage.write_bytes_atomic("gs://bucket/a/b", b"x")
    assert storage.read_bytes("gs://bucket/a/b") == b"x"
    assert storage.listdir("gs://bucket") == ["a"]
    assert storage.join("gs://bucket", "a") == "gs://bucket/a"


def test_the_endpoint_may_come_from_the_environment(
    s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes_atomic(f"s3://{s3_bucket}/a?endpoint_override={s3_endpoint}", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    assert storage.read_bytes(f"s3://{s3_bucket}/a") == b"x"


def test_a_changed_endpoint_is_not_answered_by_the_old_connection(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    before, _ = storage.filesystem("s3://bucket")
    assert storage.filesystem("s3://bucket")[0] is before
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert storage.filesystem("s3://bucket")[0] is not before


def test_listing_sees_what_another_process_wrote(s3_bucket: str, s3_endpoint: str) -> None:
    uri = f"s3://{s3_bucket}?endpoint_override={s3_endpoint}"
    storage.write_bytes_atomic(storage.join(uri, "a"), b"x")
    assert storage.listdir(uri) == ["a"]
    other = s3fs.S3FileSystem(endpoint_url=s3_endpoint, skip_instance_cache=True)
    other.pipe_file(f"{s3_bucket}/b", b"x")
    assert storage.listdir(uri) == ["a", "b"]


def test_the_endpoint_may_have_its_scheme_apart(s3_bucket: str, s3_endpoint: str) -> None:
    host = s3_endpoint.removeprefix("http://")
    storage.write_bytes_atomic(f"s3://{s3_bucket}/a?scheme=http&endpoint_override={host}", b"x")
    assert storage.read_bytes(f"s3://{s3_bucket}/a?endpoint_override={s3_endpoint}") == b"x"


def test_relative_paths_are_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes_atomic("./results/a", b"x")
    assert (tmp_path / "results" / "a").read_bytes() == b"x"
    assert storage.listdir("results") == ["a"]


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes_atomic(str(tmp_path / "a"), b"old")

    def broken(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(StorageFailed, match="No space left on device"):
        storage.write_bytes_atomic(str(tmp_path / "a"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("results", ("a", "b"), "results/a/b"),
        ("results/", ("a",), "results/a"),
        ("s3://b/x?endpoint_override=http://h:1", ("a/b",), "s3://b/x/a/b?endpoint_override=http://h:1"),
        ("file:///x?y", ("a",), "file:///x?y/a"),
        ("memory://", ("a",), "memory://a"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(uri, *parts) == joined


@pytest.mark.parametrize("part", ["", "..", ".", "a/../b", "/etc", "a//b", "a\\b"])
def test_join_refuses_to_leave_the_folder(part: str) -> None:
    with pytest.raises(InputError):
        storage.join("results", part)


@pytest.mark.parametrize("name", ["quickstart", "trial_00-1.parquet", "a=1", "_x"])
def test_safe_names_pass(name: str) -> None:
    assert storage.safe_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a?b", "a\n", "é", "x" * 201])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="study"):
        storage.safe_name(name, "study")


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("a.json", "."),
        ("a/b.json", "a"),
        ("/a.json", "/"),
        ("/a/b?.json", "/a"),
        ("memory://a.json", "memory://"),
        ("s3://bucket/a/b.json", "s3://bucket/a"),
        ("s3://bucket/b.json?endpoint_override=http://h:1", "s3://bucket?endpoint_override=http://h:1"),
    ],
)
def test_parent(uri: str, folder: str) -> None:
    assert storage.parent(uri) == folder


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nosuch://bucket/x", "Protocol not known"),
        ("s3://bucket/x?endpoint=http://h", "unknown parameter 'endpoint'"),
        ("/proc/nothing/here", "cannot write /proc/nothing/here"),
        ("/dev/null/x", "cannot write /dev/null/x"),
    ],
)
def test_unusable_places_are_refused_in_one_line(uri: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        storage.write_bytes_atomic(uri, b"x")
    assert "\n" not in str(refused.value)
