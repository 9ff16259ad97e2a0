"""What became of a source: what it gave, what in it could not be read, what was left out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from sparse_model.data.config import SourceConfig
from sparse_model.storage.listing import HIDDEN_KIND

NEARLY_ALL = 0.95
"""Of a limit: a source that gave less is spoken of."""


class SourceReport(BaseModel):
    """Figures of one source, of a part of the corpus or of all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(0, ge=0, description="text given, in bytes of UTF-8")
    documents: int = Field(0, ge=0, description="documents given; pieces of long ones count")
    read: int = Field(0, ge=0, description="documents looked at, bad ones included")
    bad: int = Field(0, ge=0, description="documents that are no text: null, undecodable, not JSON")
    example: str = Field("", description="the first of the bad ones, and what is wrong with it")
    left_out: dict[str, int] = Field({}, description="files that are no part of the source, by extension or kind")

    def problem(self, source: SourceConfig) -> str | None:
        """What is said of a source too much of which cannot be read."""
        if self.bad <= source.bad_share * self.read:
            return None
        return (
            f"source {source.source!r}: cannot read {self.bad} of {self.read} documents as text, more than "
            f"bad_share {source.bad_share:g} allows; the first: {self.example}"
        )

    def is_remarkable(self, source: SourceConfig) -> bool:
        """Whether there is more to say than what was asked for: files left out, bad documents, less than the limit."""
        wanted = 0 if source.megabytes is None else source.megabytes * 1e6
        return bool(self.bad or self.left_out.keys() - {HIDDEN_KIND} or self.bytes < NEARLY_ALL * wanted)

    def described(self, source: SourceConfig) -> str:
        """One line that says what a source gave and what it did not."""
        limit = "" if source.megabytes is None else f" of {source.megabytes:g}"
        said = [f"source {source.source}: {self.bytes / 1e6:.2f}{limit} MB in {self.documents:,} documents"]
        if self.bad:
            said.append(f"{self.bad:,} of {self.read:,} could not be read (the first: {self.example})")
        if self.left_out:
            said.append(f"left out: {in_words(self.left_out)}")
        return "; ".join(said)


class Tally:
    """The figures of a source while it is read."""

    def __init__(self) -> None:
        self.bytes = self.documents = self.read = self.bad = 0
        self.example = ""

    def refuse(self, what: str) -> None:
        """Count a document that is no text."""
        self.read += 1
        self.bad += 1
        # names of files may hold bytes that are no characters
        self.example = self.example or what.encode("utf-8", "backslashreplace").decode()

    def give(self, size: int) -> None:
        """Count a document, or a piece of one, of so many bytes."""
        self.bytes += size
        self.documents += 1

    def report(self) -> SourceReport:
        return SourceReport(
            bytes=self.bytes, documents=self.documents, read=self.read, bad=self.bad, example=self.example, left_out={}
        )


def summed_reports(reports: Iterable[SourceReport], left_out: Mapping[str, int] | None = None) -> SourceReport:
    """The figures of a source over all parts, in their order."""
    listed = list(reports)
    return SourceReport(
        bytes=sum(report.bytes for report in listed),
        documents=sum(report.documents for report in listed),
        read=sum(report.read for report in listed),
        bad=sum(report.bad for report in listed),
        example=next((report.example for report in listed if report.example), ""),
        left_out=dict(left_out or {}),
    )


def in_words(left_out: Mapping[str, int]) -> str:
    """`3 .md, 1 .csv, 1 dangling link`: the most frequent first."""
    ordered = Counter(left_out).most_common()
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(ordered, key=lambda item: (-item[1], item[0])))
