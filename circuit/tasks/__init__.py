"""The 20 tasks (METHOD section 5): what they are (`TASKS`) and how their prompts become tokens (`build_task`)."""

from circuit.tasks.build import PairBatch, TaskData, build_task
from circuit.tasks.pair import Pair, Task
from circuit.tasks.table import TASKS, example, task_named

__all__ = ["TASKS", "Pair", "PairBatch", "Task", "TaskData", "build_task", "example", "task_named"]
