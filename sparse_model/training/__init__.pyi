from .checkpoint import Checkpoints as Checkpoints
from .loop import train as train
from .measures import flops_per_token as flops_per_token
