from .runner import run_study as run_study
from .session import ray_session as ray_session
from .submission import follow_job as follow_job, start_job_at as start_job_at
from .trial import run_trial as run_trial
