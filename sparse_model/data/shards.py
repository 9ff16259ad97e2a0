"""From a corpus to a token dataset on disk or in an object store, made once per content.

Layout below the root: data/<key>/ with tokenizer.json, train-00000.npy …, heldout-00000.npy … and manifest.json,
written last; of a corpus of several parts also parts/00000.json …, the records of those that are done, from which an
interrupted preparation continues. A dataset is a function of its key: however many processes make it, together or
one after the other, the bytes are the same.
"""

import hashlib
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import tokenizers

from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.corpora import (
    MEGABYTE,
    PART_BYTES,
    SPLITS,
    Part,
    SourceInputs,
    empty_source,
    mixed_documents,
    parts,
    source_inputs,
    split_of,
)
from sparse_model.data.loader import TOKENIZER_FILE, TokenDataset
from sparse_model.data.manifest import File, Manifest, is_complete, read_manifest, write_manifest
from sparse_model.data.parts import Document, PartRecord, Tokenising, file_of, finished_parts, merged
from sparse_model.data.processes import Execute, in_processes, in_turn
from sparse_model.data.readers.long_texts import LONGEST
from sparse_model.data.readers.tally import SourceReport, Tally, summed_reports
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.storage.files import check_writable, exists, join, read_bytes, remove, write_bytes_atomic
from sparse_model.storage.paths import PathOrURI, as_uri

DATASET_FORMAT = 3  # raise when the same configuration and input would give other tokens
FEWEST_TOKENS = 1024  # of a split: a loss measured on less means nothing

_log = logging.getLogger(__name__)
TellShare = Callable[[str, float], None]


def prepare(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    root: PathOrURI,
    progress: TellShare | None = None,
    *,
    execute: Execute | None = None,
    part_bytes: int = PART_BYTES,
    begun: str | None = None,
) -> TokenDataset:
    """The token dataset of a corpus below `root` (any fsspec URI), made now unless it is there already.

    A corpus of more than `part_bytes` of text is tokenised in parts of that size, by default in one process per CPU
    core; `execute` does it elsewhere. Parts that an interrupted preparation has finished are not made again. Neither
    text nor tokens of the corpus are ever in memory as a whole, except for the text the tokenizer is trained on.

    `progress` is told the stage ("corpus", "tokenizer", "tokens") and the share of it done, in [0, 1]. A changed
    input or configuration makes a new dataset. Raises InputError for unusable input, too little text, or a root that
    cannot be written.

    `begun` is the key of the dataset that is to be gone on with: it is opened if it is of the same text, whatever
    version of a library made it; InputError, saying what has changed, if not.
    """
    root = as_uri(root)
    report = progress or _silent
    inputs = _inspect(corpus, report)
    key = dataset_key(corpus, tokenizer, inputs, part_bytes)
    if begun not in (None, key):
        return _begun(root, str(begun), key, text_key(corpus, tokenizer, inputs))
    folder = join(root, "data", key)
    if not is_complete(folder):
        check_writable(root)
        plan = parts(corpus, inputs, part_bytes)
        reading = Reading(corpus, plan)
        trained, vocabulary = _tokenizer(folder, reading, tokenizer, report)
        work = Tokenising(folder, corpus, trained)
        records = _tokenise(work, plan, reading, execute or _default(corpus, root), report)
        _refuse_unusable(folder, corpus, inputs, records)
        manifest = Manifest(
            key=key,
            corpus=corpus,
            tokenizer_config=tokenizer,
            tokenizer=vocabulary,
            train=merged(records, "train"),
            heldout=merged(records, "heldout"),
            text=text_key(corpus, tokenizer, inputs),
            made_by=made_by(),
            sources=_reports(inputs, records),
        )
        write_manifest(folder, manifest)
        for line in manifest.described_sources(remarkable=True):
            _log.warning("%s", line)
    return TokenDataset.open(folder)


def _silent(stage: str, share: float) -> None:
    pass


def _default(corpus: CorpusConfig, root: str) -> Execute:
    uris = (root, *(source.source for source in corpus.sources))
    return in_turn if any(uri.startswith("memory:") for uri in uris) else in_processes()


def _inspect(corpus: CorpusConfig, report: TellShare) -> list[SourceInputs]:
    inputs = []
    for done, source in enumerate(corpus.sources):
        report("corpus", done / len(corpus.sources))
        inputs.append(source_inputs(source, corpus))
    report("corpus", 1.0)
    return inputs


def dataset_key(
    corpus: CorpusConfig, tokenizer: TokenizerConfig, inputs: Sequence[SourceInputs], part_bytes: int
) -> str:
    """The name of a dataset: what its tokens follow from, and nothing else. Where files are is not in it."""
    entries = [f"{DATASET_FORMAT} {part_bytes}", tokenizers.__version__]
    return _hashed([*entries, *_asked(corpus, tokenizer, inputs, [given.fingerprint for given in inputs])])


def text_key(corpus: CorpusConfig, tokenizer: TokenizerConfig, inputs: Sequence[SourceInputs]) -> str:
    """The same of what was asked and of the text alone: no version of a program is in it."""
    return _hashed(_asked(corpus, tokenizer, inputs, [given.text for given in inputs]))


def made_by() -> dict[str, str]:
    """Versions that tokens of the same text may depend on."""
    versions = {"tokenizers": tokenizers.__version__, "Python": platform.python_version()}
    return versions | {"how text is cut": str(DATASET_FORMAT)}


def _asked(
    corpus: CorpusConfig, tokenizer: TokenizerConfig, inputs: Sequence[SourceInputs], hashes: Sequence[str]
) -> list[str]:
    entries = [corpus.model_dump_json(include={"seed", "heldout_fraction"}), tokenizer.model_dump_json()]
    for given, of_source in zip(inputs, hashes, strict=True):
        source = given.source
        field = f" {source.text_field or corpus.text_field}" if source.is_files else ""
        entries += [f"{'files' if source.is_files else source.source} {source.megabytes}{field}", of_source]
    return entries


def _hashed(entries: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(entries).encode("utf-8")).hexdigest()[:16]


def _begun(root: str, key: str, now: str, text: str) -> TokenDataset:
    """The dataset of an earlier run, where it is of the same text as there is now."""
    folder = join(root, "data", key)
    which = f"(dataset {key}, now {now})"
    if not is_complete(folder):
        raise InputError(f"corpus: the tokens it was begun with are gone from {join(root, 'data')} {which}")
    manifest = read_manifest(folder)
    if not manifest.text:
        raise InputError(f"corpus: its text has changed, or a library, which the earlier version did not note {which}")
    if manifest.text != text:
        raise InputError(f"corpus: its text has changed since {which}; go back to that text, or begin under a new name")
    then, today = manifest.made_by, made_by()
    changed = ", ".join(f"{name} {then[name]} → {today.get(name)}" for name in then if then[name] != today.get(name))
    _log.warning("corpus: the text is the same, a library is not (%s): going on with the tokens there are", changed)
    return TokenDataset.open(folder)


class Reading:
    """All documents of a corpus, read once, and what is counted of each source meanwhile."""

    def __init__(self, corpus: CorpusConfig, plan: Sequence[Part]) -> None:
        self.corpus = corpus
        self.tallies = [Tally() for _ in corpus.sources]
        self.documents = chain.from_iterable(mixed_documents(part, corpus, self.tallies) for part in plan)

    def beginning(self, size: float) -> list[Document]:
        """Documents up to the one that fills `size` characters; they are read again with the others.

        InputError where all was read for that, and too much of it is no text.
        """
        first = list(_beginning(self.documents, size))
        if sum(len(text) for _, text in first) < size:
            for source, tally in zip(self.corpus.sources, self.tallies, strict=True):
                if problem := tally.report().problem(source):
                    raise InputError(problem)
        self.documents = chain(first, self.documents)
        return first


def _tokenizer(folder: str, reading: Reading, config: TokenizerConfig, report: TellShare) -> tuple[Tokenizer, File]:
    """The tokenizer, as an earlier preparation left it or trained now, and its file.

    It is trained on the first training documents; those are then in memory, and not read again with the others.
    """
    report("tokenizer", 0.0)
    uri = join(folder, TOKENIZER_FILE)
    if exists(uri):
        content = read_bytes(uri)
        trained = Tokenizer.from_json(content.decode("utf-8"))
    else:
        first = reading.beginning(config.training_megabytes * MEGABYTE)
        kept = (text for _, text in first if split_of(text, reading.corpus.heldout_fraction) == "train")
        trained = Tokenizer.train(kept, config)
        content = trained.to_json().encode("utf-8")
        write_bytes_atomic(uri, content)
    report("tokenizer", 1.0)
    return trained, file_of(TOKENIZER_FILE, content)


def _beginning(documents: Iterator[Document], size: float) -> Iterator[Document]:
    """Documents up to the one that fills `size` characters."""
    taken = 0
    while taken < size and (document := next(documents, None)) is not None:
        taken += len(document[1])
        yield document


def _tokenise(
    work: Tokenising, plan: Sequence[Part], reading: Reading, execute: Execute, report: TellShare
) -> list[PartRecord]:
    """Records of all parts. A corpus of one part is tokenised here and now, from the documents already read."""
    if len(plan) == 1:
        report("tokens", 0.0)
        return [work.of(plan[0], reading.documents, reading.tallies, lambda share: report("tokens", share))]
    records = finished_parts(work.folder, plan)
    finished = {record.index for record in records}
    expected = sum(part.expected_bytes for part in plan)
    done = sum(part.expected_bytes for part in plan if part.index in finished)
    report("tokens", done / expected)
    for record in execute(work, [part for part in plan if part.index not in finished]):
        records.append(record)
        done += plan[record.index].expected_bytes
        report("tokens", done / expected)
    return records


def _reports(inputs: Sequence[SourceInputs], records: Sequence[PartRecord]) -> tuple[SourceReport, ...]:
    """Of each source, over all parts."""
    ordered = sorted(records, key=lambda record: record.index)
    return tuple(
        summed_reports((record.sources[index] for record in ordered), given.left_out)
        for index, given in enumerate(inputs)
    )


def _refuse_unusable(
    folder: str, corpus: CorpusConfig, inputs: Sequence[SourceInputs], records: Sequence[PartRecord]
) -> None:
    """Leave nothing behind of a dataset that must not be used."""
    problem = _unreadable(corpus, _reports(inputs, records)) or _too_small(corpus, records)
    problem = problem or _changed_input(corpus, inputs)
    if problem is not None:
        remove(folder)
        raise InputError(problem)


def _unreadable(corpus: CorpusConfig, reports: Sequence[SourceReport]) -> str | None:
    """What is said of a source that gave nothing, or too much of which is no text."""
    for source, report in zip(corpus.sources, reports, strict=True):
        if problem := report.problem(source):
            return problem
        if not report.bytes:
            return empty_source(source)
    return None


def _too_small(corpus: CorpusConfig, records: Sequence[PartRecord]) -> str | None:
    count = sum(merged(records, split).documents for split in SPLITS)
    for split in SPLITS:
        written = merged(records, split)
        if written.tokens < FEWEST_TOKENS:
            share = corpus.heldout_fraction if split == "heldout" else 1 - corpus.heldout_fraction
            return (
                f"corpus: the {split} split has {written.tokens} tokens from {written.documents} documents, "
                f"at least {FEWEST_TOKENS} are needed. The corpus is {count} document{'s' * (count != 1)} (of at most "
                f"{LONGEST / 1e3:g} kB: longer ones are cut), of which {share * count:.2g} are expected there: give "
                f"more documents, or another heldout_fraction (now {corpus.heldout_fraction:g})"
            )
    return None


def _changed_input(corpus: CorpusConfig, inputs: Sequence[SourceInputs]) -> str | None:
    for before in inputs:
        if source_inputs(before.source, corpus).fingerprint != before.fingerprint:
            return f"source {before.source.source!r} changed while it was read: run again once it is still"
    return None
