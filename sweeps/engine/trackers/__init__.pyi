from .callbacks import trackers_of as trackers_of
from .log_files import LogFiles as LogFiles, check_trackers as check_trackers
