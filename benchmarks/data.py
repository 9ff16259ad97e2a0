"""From text to batches: tokenising in one process and in several, reading shards on disk and through the cache.

    python benchmarks/data.py

The text is the interpreter's own library, over and over, as rows of a .jsonl file. The loader reads one epoch of
windows of 256 tokens, 64 at a time: from shards on disk, and from a store in memory through a cache of two thirds of
the dataset, which copies and checks every shard once per epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

from timing import medians_ms

from sparse_model import storage
from sparse_model.cores import cpu_count
from sparse_model.data import CorpusConfig, SourceConfig, TokenDataset, TokenizerConfig, documents, prepare
from sparse_model.data.corpora import parts, source_inputs
from sparse_model.data.order import GROUP_SHARDS
from sparse_model.data.parts import Tokenising
from sparse_model.data.processes import Execute, in_processes, in_turn

BATCH, CONTEXT = 64, 256
SHARDS = 3 * GROUP_SHARDS


def write_text(path: Path, megabytes: float) -> CorpusConfig:
    """A corpus of one file of about so much text."""
    library = CorpusConfig(sources=(SourceConfig(source="stdlib"),))
    texts = list(documents(library.sources[0], library))
    size = 0
    with path.open("w") as file:
        for copy, text in enumerate(chain.from_iterable(repeat(texts))):
            if size >= megabytes * 1e6:
                break
            size += file.write(json.dumps({"text": f"# {copy}\n{text}"}) + "\n")
    return CorpusConfig(sources=(SourceConfig(source=str(path)),), heldout_fraction=0.1)


def tokenising(dataset: TokenDataset, folder: str, workers: int, part_bytes: float) -> dict[str, Callable[[], object]]:
    """The same parts by one process on one core, by one on all cores, by several."""
    corpus = dataset.manifest.corpus
    plan = parts(corpus, [source_inputs(source, corpus) for source in corpus.sources], int(part_bytes))
    work = Tokenising(folder, corpus, dataset.tokenizer)

    def run(execute: Execute, parallel: str) -> list[object]:
        os.environ["TOKENIZERS_PARALLELISM"] = parallel
        return list(execute(work, plan))

    return {
        "tokenise_one_core": lambda: run(in_turn, "false"),
        "tokenise_one_process": lambda: run(in_turn, "true"),
        "tokenise_processes": lambda: run(in_processes(workers), "false"),
    }


def epoch(dataset: TokenDataset) -> Iterator[object]:
    for step in range(dataset.n_windows("train", CONTEXT) // BATCH):
        yield dataset.batch("train", step, batch_size=BATCH, context=CONTEXT, seed=0)


def reading(local: TokenDataset, cache: Path) -> dict[str, Callable[[], object]]:
    """An epoch from disk, and through a cache too small for it; a new one for each call."""
    uri = "memory://benchmark"
    for path in filter(Path.is_file, Path(local.uri).iterdir()):
        storage.write_bytes_atomic(storage.join(uri, path.name), path.read_bytes())
    bound = 2 * GROUP_SHARDS * max(shard.bytes for shard in local.manifest.train.shards)

    def cached() -> None:
        # shards that are copied ahead may still arrive while the folder is removed
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as folder:
            for _ in epoch(TokenDataset.open(uri, folder, bound)):
                pass

    def from_disk() -> None:
        for _ in epoch(TokenDataset.open(local.uri)):
            pass

    return {"load_local": from_disk, "load_cached": cached}


def measure(megabytes: float, workers: int, rounds: int, folder: Path) -> dict[str, float]:
    """MB of text per second of tokenising, million tokens per second of loading."""
    corpus = write_text(folder / "text.jsonl", megabytes)
    size = sum(source_inputs(source, corpus).expected_bytes for source in corpus.sources)
    tokenizer = TokenizerConfig(training_megabytes=min(4, megabytes))
    dataset = prepare(corpus, tokenizer, str(folder), execute=in_turn, part_bytes=-(-size // SHARDS))
    taken = medians_ms(
        tokenising(dataset, str(folder / "parts"), workers, size / (4 * workers)) | reading(dataset, folder),
        rounds,
        warmup=0,
    )
    text, tokens = size / 1e6, dataset.n_windows("train", CONTEXT) // BATCH * BATCH * CONTEXT / 1e6
    rates = {name: (tokens if name.startswith("load") else text) / (ms / 1e3) for name, ms in taken.items()}
    return {f"{name}_{'mtok' if name.startswith('load') else 'mb'}_s": rate for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=48, help="of text (default: 48)")
    parser.add_argument("--workers", type=int, default=cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each, taken in turn (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        figures = measure(options.megabytes, options.workers, options.rounds, Path(folder))
    figures["workers"] = options.workers
    print(f"{options.megabytes:g} MB of text, {options.workers} processes, medians of {options.rounds}")
    for name, value in figures.items():
        print(f"{name:>28} {value:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
