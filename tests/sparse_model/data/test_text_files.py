"""Files as they lie about: links, compressed ones, other columns, rows that are no text, the same files elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_model.data.config import CorpusConfig, SourceConfig, TokenizerConfig
from sparse_model.data.corpora import documents, parts, source_inputs
from sparse_model.data.processes import in_turn
from sparse_model.data.readers.uri_files import listed
from sparse_model.data.shards import dataset_key, prepare
from sparse_model.errors import InputError
from sparse_model.storage.files import join, write_bytes_atomic


def corpus_of(*sources: Any, **rest: Any) -> CorpusConfig:
    listed = [source if isinstance(source, dict) else {"source": str(source)} for source in sources]
    return CorpusConfig.model_validate({"sources": listed, **rest})


def read(source: Any, **rest: Any) -> list[str]:
    corpus = corpus_of(source, **rest)
    return list(documents(corpus.sources[0], corpus))


def written(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def jsonl(rows: list[Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


class TestLinks:
    def test_files_and_folders_behind_links_are_read_once(self, tmp_path: Path) -> None:
        blobs = written(tmp_path / "blobs", abc="outside", **{"in": "x"})
        written(blobs / "deep", y__py="y = 1\n")
        (blobs / "deep" / "back").symlink_to(blobs)  # whose `deep` is where we are
        source = written(
            tmp_path / "snapshot", real__txt="real", notes__md="x", table__csv="x", other__MD="x", none="x"
        )
        for name, target in {
            "a.txt": blobs / "abc",  # as Hugging Face's cache has them
            "folder": blobs / "deep",
            "circle": source,
            "again.txt": source / "real.txt",
            "gone.txt": tmp_path / "nothing",
            "itself": source / "itself",
        }.items():
            (source / name).symlink_to(target)
        os.mkfifo(source / "pipe.txt")  # which a reader would wait for
        written(source / ".git", x__txt="x")
        assert sorted(read(source)) == ["outside", "real", "y = 1\n"]
        assert listed(str(source)).left_out == {
            ".md": 2,
            ".csv": 1,
            "without an extension": 2,
            "hidden": 1,
            "dangling link": 2,
            "link to what is there already": 4,
            "no regular file": 1,
        }

    def test_hard_links_are_files(self, tmp_path: Path) -> None:
        os.link(written(tmp_path, a__txt="x") / "a.txt", tmp_path / "b.txt")
        assert read(tmp_path) == ["x", "x"]

    def test_patterns_and_single_links(self, tmp_path: Path) -> None:
        written(tmp_path / "there" / "deep", a__py="a = 1\n")
        source = written(tmp_path / "here")
        (source / "d").symlink_to(tmp_path / "there")
        (source / "b.py").symlink_to(tmp_path / "there" / "deep" / "a.py")
        assert read(source / "b.py") == ["a = 1\n"]
        assert read(f"{source}/d/*/*.py") == ["a = 1\n"]
        assert read(f"{source}/*.py") == ["a = 1\n"]
        (tmp_path / "there" / "deep" / "up").symlink_to(source)
        assert read(f"{source}/**/*.py") == ["a = 1\n"]

    @pytest.mark.parametrize("name", ["gone", "itself", "pipe.txt"])
    def test_one_that_leads_nowhere_is_refused_by_itself(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "gone").symlink_to(tmp_path / "nothing")
        (tmp_path / "itself").symlink_to(tmp_path / "itself")
        os.mkfifo(tmp_path / "pipe.txt")
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)


class TestCompressed:
    TOOLS = (("gzip", ".gz"), ("zstd", ".zst"), ("xz", ".xz"), ("bzip2", ".bz2"))

    def compressed(self, tool: str, path: Path) -> None:
        subprocess.run([tool, "-q", "-k", str(path)], check=True)
        path.unlink()

    @pytest.mark.parametrize(("tool", "ending"), TOOLS)
    def test_what_the_tools_write_is_read(self, tool: str, ending: str, tmp_path: Path) -> None:
        texts = [f"row {n}\n" + "é" * n for n in range(300)]
        source = written(
            tmp_path, README__txt="about", part__jsonl=jsonl([{"text": t} for t in texts]), c__py="c = 1\n"
        )
        for name in ("part.jsonl", "c.py"):
            self.compressed(tool, source / name)
        assert {path.suffix for path in source.iterdir()} == {".txt", ending}
        assert sorted(read(source)) == sorted([*texts, "about", "c = 1\n"])
        whole = (source / f"part.jsonl{ending}").read_bytes()
        (source / f"part.jsonl{ending}").write_bytes(whole + whole)  # as `cat a b` and parallel tools write them
        assert len(read(source / f"part.jsonl{ending}")) == 600
        (source / f"part.jsonl{ending}").write_bytes(whole[:-20])
        with pytest.raises(InputError, match=f"cannot read .*part.jsonl{ending}") as refused:
            read(source)
        assert "\n" not in str(refused.value)
        (source / f"part.jsonl{ending}").write_bytes(b"no such thing")
        with pytest.raises(InputError, match=f"cannot read .*part.jsonl{ending}"):
            read(source)

    def test_in_a_store_and_with_a_limit(self, root_uri: str, tmp_path: Path) -> None:
        texts = [f"row {n:04d}\n" * 10 for n in range(2000)]
        self.compressed("zstd", written(tmp_path, a__jsonl=jsonl([{"text": t} for t in texts])) / "a.jsonl")
        write_bytes_atomic(join(root_uri, "a.jsonl.zst"), (tmp_path / "a.jsonl.zst").read_bytes())
        found = read({"source": root_uri, "megabytes": 0.05})
        assert 49_000 < sum(map(len, found)) <= 50_000

    def test_other_endings_are_counted(self, tmp_path: Path) -> None:
        source = written(tmp_path, a__txt="a", b__tar__gz="x", c__parquet__gz="x", d__zip="x")
        assert read(source) == ["a"]
        assert listed(str(source)).left_out == {".gz": 2, ".zip": 1}
        with pytest.raises(InputError, match=r"c\.parquet\.gz' has an unknown extension: allowed are \.py"):
            read(source / "c.parquet.gz")
        with pytest.raises(InputError, match=r"has no \.py, .* file; it has 1 \.csv, 1 \.md: allowed are"):
            read(written(tmp_path / "other", a__csv="x", b__md="x"))


ROWS = ["x = 'é'\r\n", "zero\x00", "👩‍💻"]


class TestRows:
    @pytest.mark.parametrize(
        "column",
        [
            pa.array(ROWS, pa.large_string()),
            pa.array(ROWS).dictionary_encode(),
            pa.array(ROWS, pa.string_view()),
            pa.array([text.encode() for text in ROWS]),
            pa.array([text.encode() for text in ROWS], pa.large_binary()),
            pa.array(ROWS * 400).dictionary_encode(),
        ],
        ids=lambda column: str(column.type),
    )
    def test_types_of_text_columns(self, column: Any, tmp_path: Path) -> None:
        pq.write_table(pa.table({"id": pa.nulls(len(column)), "text": column}), tmp_path / "a.parquet")
        assert read(tmp_path) == ROWS * (len(column) // 3)

    def test_what_duckdb_and_pandas_write(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"text": ROWS, "lang": pd.Categorical(["a", "b", "a"])})
        duckdb.sql(f"COPY (SELECT encode(text) AS text FROM frame) TO '{tmp_path}/blob.parquet' (FORMAT parquet)")
        duckdb.sql(f"COPY frame TO '{tmp_path}/x.parquet' (FORMAT parquet, PARTITION_BY (lang))")
        frame.astype({"text": "category"}).to_parquet(tmp_path / "category.parquet")
        frame.to_json(tmp_path / "frame.jsonl", orient="records", lines=True)
        assert sorted(read(tmp_path)) == sorted(ROWS * 4)

    @pytest.mark.parametrize("values", [[1, 2], [["a"]], [{"a": 1}], [1.5], [True]], ids=str)
    def test_a_column_of_anything_else_is_refused(self, values: list[Any], tmp_path: Path) -> None:
        pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet: field 'text' is of type .*; allowed: text"):
            read(tmp_path)

    GOOD = tuple(f"row {n}" for n in range(20))

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"text": None}, "'text' is missing or not a string"),
            ({"content": "x", "id": 3}, "'text' is missing or not a string; its fields are content, id"),
            ({"text": 5}, "'text' is missing or not a string"),
            ([1], "'text' is missing or not a string"),
            ('{"text"', "not JSON"),
            ('{"text": "\\ud800"}', "'text' is not valid Unicode"),
            ('{"text": "a", "text": "b"}', "key 'text' is there twice"),
            ("[" * 100_000, "nested too deep"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_a_row_that_is_no_text_is_passed_over_and_many_are_not(self, bad: Any, reason: str, tmp_path: Path) -> None:
        rows = [{"text": text} for text in self.GOOD]
        source = written(tmp_path, a__jsonl=jsonl([bad, *rows, "", "  "]))
        assert read(source) == list(self.GOOD)
        with pytest.raises(
            InputError, match=r"cannot read 1 of 21 documents as text, more than bad_share 0\.01"
        ) as refused:
            read({"source": str(source), "bad_share": 0.01})
        assert f"a.jsonl line 1: {reason}" in str(refused.value) or reason in str(refused.value)
        written(tmp_path, a__jsonl=jsonl([*rows, bad, bad, bad]))
        with pytest.raises(InputError, match="cannot read 3 of 23 documents") as refused:
            read(source)
        assert "a.jsonl line 21: " in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_lines_in_other_encodings(self, tmp_path: Path) -> None:
        rows = [{"text": text} for text in self.GOOD]
        latin = '{"text": "é"}\n'.encode("latin-1")
        assert read(written(tmp_path, a__jsonl=jsonl(rows).encode("utf-8-sig") + latin)) == list(self.GOOD)
        for encoding in ("utf-16", "utf-32"):
            with pytest.raises(InputError, match=r"a\.jsonl line 1: not UTF-8"):
                read(written(tmp_path, a__jsonl=jsonl(rows).encode(encoding)))

    def test_files_in_other_encodings(self, tmp_path: Path) -> None:
        source = written(tmp_path, **{f"f{n}__txt": text for n, text in enumerate(self.GOOD)})
        written(source, mark__txt="é".encode("utf-8-sig"), latin__txt="é".encode("latin-1"), empty__txt=b"")
        assert sorted(read(source)) == sorted([*self.GOOD, "é"])
        for encoding in ("utf-16", "utf-16-le", "latin-1"):
            written(source, **{f"x{n}__txt": "éöü".encode(encoding) for n in range(9)})
            with pytest.raises(InputError, match=r"cannot read 1\d of 3\d documents .* not a text file in UTF-8"):
                read(source)

    def test_nulls_of_parquet(self, tmp_path: Path) -> None:
        rows = [*self.GOOD, None]
        pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
        assert read(tmp_path) == list(self.GOOD)
        pq.write_table(pa.table({"text": pa.nulls(20)}), tmp_path / "b.parquet")
        with pytest.raises(
            InputError, match=r"cannot read 21 of 41 documents .*\.parquet row \d+: field 'text' is missing"
        ):
            read(tmp_path)
        pq.write_table(pa.table({"text": pa.array([b"\xff"])}), tmp_path / "b.parquet")
        assert read(tmp_path) == list(self.GOOD)

    def test_each_source_has_a_field_of_its_own(self, tmp_path: Path) -> None:
        written(
            tmp_path, a__jsonl=jsonl([{"code": "a"}]), b__jsonl=jsonl([{"body": "b"}]), c__jsonl=jsonl([{"text": "c"}])
        )
        sources = [{"source": f"{tmp_path}/a.jsonl", "text_field": "code"}, {"source": f"{tmp_path}/b.jsonl"}]
        corpus = corpus_of(*sources, text_field="body")
        assert [list(documents(source, corpus)) for source in corpus.sources] == [["a"], ["b"]]
        assert read(f"{tmp_path}/c.jsonl") == ["c"]

    def test_the_counts_stand_in_the_manifest(self, tmp_path: Path) -> None:
        rows = [*({"text": f"x = {n}\n" * 30} for n in range(200)), {"text": None}, {"text": None}]
        source = written(tmp_path / "in", a__jsonl=jsonl(rows), b__md="x", c__csv="y")
        (source / "gone").symlink_to("nowhere")
        corpus = corpus_of({"source": str(source), "megabytes": 0.03}, heldout_fraction=0.3)
        for root, part_bytes in (("whole", 10**9), ("parts", 5_000)):
            data = prepare(
                corpus, TokenizerConfig(vocab_size=270), str(tmp_path / root), execute=in_turn, part_bytes=part_bytes
            )
            (line,) = data.manifest.described_sources()
            assert line.startswith(f"source {source}: 0.03 of 0.03 MB in 1")
            assert line.endswith("left out: 1 .csv, 1 .md, 1 dangling link")
        assert "2 of 1" not in line or "could not be read (the first: " in line


class TestIdentity:
    def key(self, *sources: Any, **rest: Any) -> str:
        corpus = corpus_of(*sources, **rest)
        inputs = [source_inputs(source, corpus) for source in corpus.sources]
        return dataset_key(corpus, TokenizerConfig(), inputs, 1000)

    @pytest.mark.parametrize("root_uri", ["path", "memory", "s3"], indirect=True)
    def test_the_same_files_elsewhere_are_the_same_dataset(self, root_uri: str, tmp_path: Path) -> None:
        rows = jsonl([{"text": f"x = {n}\n" * 9} for n in range(100)])
        one, two = (written(tmp_path / name / "d", a__jsonl=rows, b__txt="b") for name in ("one", "two"))
        for path in one.iterdir():
            write_bytes_atomic(join(root_uri, "third", path.name), path.read_bytes())
        places = [str(one), str(two), f"file://{one}", join(root_uri, "third")]
        assert len({self.key(place) for place in places}) == 1
        corpora = [corpus_of({"source": place, "megabytes": 0.005}) for place in places]
        found = [
            [text for piece in parts(c, [source_inputs(c.sources[0], c)], 2000) for text in _texts(piece, c)]
            for c in corpora
        ]
        assert found[0]
        assert all(texts == found[0] for texts in found)
        linked = tmp_path / "linked"
        linked.symlink_to(one)
        assert self.key(linked) == self.key(one)
        assert self.key(one / "a.jsonl") == self.key(f"{two}/*.jsonl") == self.key(join(root_uri, "third", "a.jsonl"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda folder: (folder / "a.txt").write_text("other"),
            lambda folder: (folder / "a.txt").rename(folder / "z.txt"),
            lambda folder: (folder / "b.txt").write_text("more"),
        ],
    )
    def test_other_content_and_other_names_are_others(self, change: Callable[[Path], Any], tmp_path: Path) -> None:
        source = written(tmp_path, a__txt="a")
        before = self.key(source)
        change(source)
        assert self.key(source) != before

    def test_what_changes_the_text_changes_the_key_and_nothing_else(self, tmp_path: Path) -> None:
        source = {"source": str(written(tmp_path, a__txt="a", x__md="x"))}
        same = [source, source | {"bad_share": 0.5}, source | {"text_field": "text"}]
        others = [source | {"megabytes": 1}, source | {"text_field": "code"}]
        assert len({self.key(one) for one in same}) == 1
        assert len({self.key(one) for one in [source, *others]}) == 3
        assert len({self.key(source), self.key(source, seed=1), self.key(source, heldout_fraction=0.1)}) == 3


def _texts(part: Any, corpus: CorpusConfig) -> list[str]:
    from sparse_model.data.corpora import mixed_documents

    return [text for _, text in mixed_documents(part, corpus)]


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name, content in ((b"caf\xe9.txt", "name in Latin-1"), ("中文 [1]*?.txt".encode(), "name in Chinese")):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content.encode())
    assert sorted(read(tmp_path)) == ["name in Chinese", "name in Latin-1"]
    with open(os.path.join(folder, b"bad\xe9.txt"), "wb") as file:
        file.write(b"\xff")
    with pytest.raises(InputError, match="cannot read 1 of 3") as refused:
        read(tmp_path)
    str(refused.value).encode()  # can be printed, and stored


def test_a_source_is_described() -> None:
    with pytest.raises(ValueError, match="bad_share"):
        SourceConfig(source="x", bad_share=1.5)
