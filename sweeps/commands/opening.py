"""What commands begin with: a study's tokens, a model with text for it."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor

from circuit.ablated.ablation import Pretraining
from sparse_model.data.loader import TokenDataset
from sparse_model.data.processes import Execute
from sparse_model.data.shards import prepare
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.show.progress import Show, StudyProgress
from sweeps.study.study import Study
from sweeps.trial.task_circuits import corpus_windows, summarise_text, training_windows

CPU = torch.device("cpu")


def prepared(study: Study, console: Console, execute: Execute | None = None) -> TokenDataset:
    """The tokens of a study, prepared now if need be, with progress shown."""
    with Show(console) as show:
        progress = StudyProgress(show, study)
        return prepare(study.corpus, study.tokenizer, study.storage, progress.data, execute=execute)


def opened(model: str, study: Study, device: torch.device = CPU) -> tuple[SparseTransformer, Tokenizer, Pretraining]:
    """A model, its tokenizer and what searches take from pretraining data, as a trial of the study would."""
    trained, tokenizer, text = opened_with_text(model, study, device)
    return trained, tokenizer, summarise_text(trained, text)


def opened_with_text(
    model: str, study: Study, device: torch.device = CPU
) -> tuple[SparseTransformer, Tokenizer, Tensor]:
    """A model, its tokenizer and training text (n, context): what a trial of the study would take its means of; the
    same text in the model's tokens where they are others."""
    trained, tokenizer = from_pretrained(model, device)
    console = Console(stderr=True)
    data = prepared(study, console)
    if data.tokenizer.to_json() == tokenizer.to_json():
        return trained, tokenizer, training_windows(trained, data)
    said = f"the model's tokenizer is not that of study {study.name}: means are of the study's text in its own"
    console.print(said, markup=False, emoji=False, highlight=False, soft_wrap=True)
    return trained, tokenizer, corpus_windows(trained, tokenizer, study.corpus)
