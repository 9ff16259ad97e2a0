from .outcome import Trained as Trained
from .places import StudyRun as StudyRun, Trial as Trial
from .task_circuits import circuit_row as circuit_row, prune_task as prune_task
