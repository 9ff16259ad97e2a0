from .draws import Assignment as Assignment, StudySearch as StudySearch
from .objectives import METRICS as METRICS
