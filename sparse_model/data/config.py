"""What text a model is trained on and how it becomes tokens. One megabyte is a million bytes of UTF-8."""

import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sparse_model.storage.paths import URIField
from sparse_model.storage.store_errors import check_no_credentials

GENERATED = "idioms"
PYTHON_FILES = ("stdlib", "installed")
PACKAGE = re.compile(r"installed:([A-Za-z_]\w*)", re.ASCII)
"""One of the installed packages, by the name it is imported by."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(_Config):
    """One source of documents."""

    source: URIField = Field(
        min_length=1,
        description="idioms (generated programs), stdlib (the running interpreter's library), installed "
        "(installed packages), installed:<package> (one of them: its text is that of its version, whatever Python "
        "runs), or a URI: a file, folder or glob of .py, .txt, .jsonl (also .gz, .bz2, .xz, .zst) or .parquet",
    )
    megabytes: float | None = Field(
        default=None,
        gt=0,
        description="use at most this much text, in MB: a random sample of the files; none = all of it",
    )
    text_field: str | None = Field(
        default=None,
        min_length=1,
        description="field of this source's .jsonl and .parquet rows that holds the document; none = the corpus's",
    )
    bad_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of documents that may be no text (null, not UTF-8, not JSON): these are passed over, and "
        "more of them are refused",
    )

    @field_validator("source")
    @classmethod
    def _no_credentials(cls, source: str) -> str:
        check_no_credentials(source)
        return source

    @property
    def is_python(self) -> bool:
        """Whether it is Python code that this machine has."""
        return self.source in PYTHON_FILES or PACKAGE.fullmatch(self.source) is not None

    @property
    def is_files(self) -> bool:
        """Whether it is a URI."""
        return self.source != GENERATED and not self.is_python

    @model_validator(mode="after")
    def _endless_source_needs_a_size(self) -> Self:
        if self.source == GENERATED and self.megabytes is None:
            raise ValueError(f"megabytes: missing for the endless source {GENERATED!r}; a positive number")
        return self


class CorpusConfig(_Config):
    """A mixture of sources, split into training and held-out documents."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="where the text comes from")
    seed: int = Field(default=0, ge=0, description="seed of the generated programs and of the order of the files")
    heldout_fraction: float = Field(
        default=0.02,
        gt=0,
        le=0.5,
        description="share of documents held out, chosen by the hash of their text",
    )
    text_field: str = Field(
        default="text",
        min_length=1,
        description="field of .jsonl and .parquet rows that holds the document, where a source names none",
    )

    @field_validator("sources")
    @classmethod
    def _no_source_twice(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [source.source for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source {name!r} is listed twice; each source once")
        return sources


class TokenizerConfig(_Config):
    """Byte-level BPE trained on the training documents."""

    vocab_size: int = Field(
        default=2048,
        ge=257,
        le=65536,
        description="number of tokens, the 256 bytes and the document separator included",
    )
    training_megabytes: float = Field(
        default=20.0, gt=0, description="text the tokenizer is trained on, in MB (all of it if there is less)"
    )
