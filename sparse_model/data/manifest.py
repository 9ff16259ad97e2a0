"""The record of a token dataset, written last: where it exists, the dataset is complete."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.corpora import Split
from sparse_model.data.readers.tally import SourceReport
from sparse_model.errors import InputError
from sparse_model.storage.files import exists, join, read_bytes, safe_name, write_bytes_atomic

MANIFEST = "manifest.json"


class File(BaseModel):
    """One file of the dataset, beside the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="file name")
    sha256: str = Field(description="hash of the whole file, hexadecimal")
    bytes: int = Field(ge=0, description="size of the file")

    @field_validator("name")
    @classmethod
    def _stays_in_the_folder(cls, name: str) -> str:
        return safe_name(name)


class Shard(File):
    """A one-dimensional uint16 array of tokens as .npy."""

    tokens: int = Field(gt=0, description="number of tokens")


class SplitManifest(BaseModel):
    """One side of the split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: tuple[Shard, ...] = Field(description="files in the order of the text")
    documents: int = Field(ge=0, description="number of documents")
    text_bytes: int = Field(ge=0, description="size of the documents in UTF-8")

    @property
    def tokens(self) -> int:
        """Number of tokens, the separator after each document included."""
        return sum(shard.tokens for shard in self.shards)


class Manifest(BaseModel):
    """Everything needed to trust and to repeat a token dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = Field(default=1, description="version of this layout")
    key: str = Field(description="name of the dataset: a hash of the configurations and of the input")
    corpus: CorpusConfig = Field(description="where the text came from")
    tokenizer_config: TokenizerConfig = Field(description="how the tokenizer was trained")
    tokenizer: File = Field(description="tokenizer.json")
    train: SplitManifest = Field(description="training tokens")
    heldout: SplitManifest = Field(description="held-out tokens")
    text: str = Field("", description="hash of what was asked and of the text alone; unknown of earlier versions'")
    made_by: dict[str, str] = Field({}, description="versions of what the tokens depend on besides")
    sources: tuple[SourceReport, ...] = Field(
        (), description="what each source gave and what not; unknown of datasets of earlier versions"
    )

    def split(self, split: Split) -> SplitManifest:
        return self.train if split == "train" else self.heldout

    def described_sources(self, *, remarkable: bool = False) -> list[str]:
        """A line a source: what it gave, what could not be read, what was left out; of all, or where there is such."""
        pairs = zip(self.corpus.sources, self.sources, strict=bool(self.sources))
        return [report.described(source) for source, report in pairs if not remarkable or report.is_remarkable(source)]


def is_complete(dataset_uri: str) -> bool:
    """Whether a dataset is there and whole."""
    return exists(join(dataset_uri, MANIFEST))


def read_manifest(dataset_uri: str) -> Manifest:
    """The manifest of a dataset folder; raises InputError if it is missing, damaged or foreign."""
    if not is_complete(dataset_uri):
        raise InputError(f"dataset {dataset_uri} has no {MANIFEST}: it is missing or was not finished")
    try:
        return Manifest.model_validate_json(read_bytes(join(dataset_uri, MANIFEST)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"dataset {dataset_uri}: damaged {MANIFEST}: {where}: {first['msg']}") from error


def write_manifest(dataset_uri: str, manifest: Manifest) -> None:
    """Declare a dataset complete."""
    write_bytes_atomic(join(dataset_uri, MANIFEST), manifest.model_dump_json(indent=2).encode("utf-8"))
