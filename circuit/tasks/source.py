"""Where a task comes from, as users name it: a name of the table, or a file that ends in .jsonl."""

from circuit.tasks.audit import Audit, audit
from circuit.tasks.build import PairBatch, TaskData, build_harder, build_task
from circuit.tasks.file import ENDING, build_file_task, file_task_name, read_task_file
from circuit.tasks.table import TASKS, task_named
from sparse_model import storage
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError


def is_file(source: str) -> bool:
    """Whether a source is a file, by its ending."""
    return source.split("?")[0].endswith(ENDING)


def source_name(source: str) -> str:
    """The task's name; InputError for a name that is not in the table, or a file whose name is."""
    if not is_file(source):
        return task_named(source).name
    name = file_task_name(source)
    if name in TASKS:
        raise InputError(f"{source}: task {name} is in the table already; give the file another name")
    return name


def check_source(source: str) -> None:
    """InputError for a source that is no task, as far as can be told without a tokenizer."""
    source_name(source)
    if is_file(source):
        read_task_file(source)


def task_data(source: storage.PathOrURI, tokenizer: Tokenizer, *, pairs: int, seed: int) -> TaskData:
    """Prompts of a task, `pairs` to search on and as many held out; of a file at most as many.

    InputError as `build_task` and `build_file_task` raise it.
    """
    source = storage.as_uri(source)
    source_name(source)
    if is_file(source):
        return build_file_task(read_task_file(source), tokenizer, n_train=pairs, n_heldout=pairs, seed=seed)
    return build_task(task_named(source), tokenizer, n_train=pairs, n_heldout=pairs, seed=seed)


def harder_pairs(source: str, tokenizer: Tokenizer, *, pairs: int, seed: int) -> PairBatch | None:
    """Prompts of a task's harder variant; None of a file, and of a task that has none in these tokens."""
    if is_file(source):
        return None
    return build_harder(task_named(source), tokenizer, n_pairs=pairs, seed=seed)


def audited(source: str, tokenizer: Tokenizer, *, pairs: int, seed: int) -> Audit:
    """What gives the answers of a task away, in a tokenizer's tokens, of as many pairs as `task_data` gives."""
    belongs = {} if is_file(source) else task_named(source).belongs
    return audit(task_data(source, tokenizer, pairs=pairs, seed=seed), tokenizer, belongs)
