from .audit import Audit as Audit
from .build import (
    PairBatch as PairBatch,
    TaskData as TaskData,
    build_harder as build_harder,
    build_task as build_task,
)
from .file import TaskFile as TaskFile, build_file_task as build_file_task, read_task_file as read_task_file
from .pair import Pair as Pair, Task as Task
from .source import (
    audited as audited,
    check_source as check_source,
    harder_pairs as harder_pairs,
    is_file as is_file,
    source_name as source_name,
    task_data as task_data,
)
from .table import TASKS as TASKS, example as example, task_named as task_named
