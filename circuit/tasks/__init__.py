"""The 20 tasks (METHOD section 5): what they are (`TASKS`) and how their prompts become tokens (`build_task`);
tasks of one's own from files; what gives their answers away (`audited`)."""

from circuit.tasks.audit import Audit, audit
from circuit.tasks.build import PairBatch, TaskData, build_harder, build_task
from circuit.tasks.file import TaskFile, build_file_task, read_task_file
from circuit.tasks.pair import Pair, Task
from circuit.tasks.source import audited, check_source, harder_pairs, is_file, source_name, task_data
from circuit.tasks.table import TASKS, example, task_named

__all__ = [
    "TASKS",
    "Audit",
    "Pair",
    "PairBatch",
    "Task",
    "TaskData",
    "TaskFile",
    "audit",
    "audited",
    "build_file_task",
    "build_harder",
    "build_task",
    "check_source",
    "example",
    "harder_pairs",
    "is_file",
    "read_task_file",
    "source_name",
    "task_data",
    "task_named",
]
