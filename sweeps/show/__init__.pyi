from .plot import plot_frontier as plot_frontier
from .progress import Show as Show, StudyProgress as StudyProgress
from .status import study_status as study_status
from .text import terminal as terminal
