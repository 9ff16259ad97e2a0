from .folder import study_at as study_at
from .space import Space as Space, TrialConfig as TrialConfig
from .study import (
    Study as Study,
    load_study as load_study,
    read_study as read_study,
    shipped_studies as shipped_studies,
)
