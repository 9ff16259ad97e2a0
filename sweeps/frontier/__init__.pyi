from .comparison import Comparison as Comparison
from .parquet import read_table as read_table
from .queries import Frontier as Frontier
from .rows import write_circuit_rows as write_circuit_rows, write_trial_row as write_trial_row
