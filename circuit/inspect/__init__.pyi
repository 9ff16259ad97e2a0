from .binarise import Binary as Binary
from .contexts import Place as Place
from .running import CircuitModel as CircuitModel, changed as changed, effects as effects, nodes_of as nodes_of
