from .frontier.queries import Frontier as Frontier
from .study.folder import study_at as study_at
from .study.study import Study as Study, load_study as load_study

__version__: str
