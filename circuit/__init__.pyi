from .ablated.ablation import Pretraining as Pretraining, mean_activations as mean_activations
from .graph.digraph import to_networkx as to_networkx
from .graph.record import Circuit as Circuit, Edge as Edge, Node as Node
from .inspect.binarise import binarise as binarise
from .inspect.contexts import contexts as contexts
from .inspect.running import CircuitModel as CircuitModel, changed as changed, effects as effects, nodes_of as nodes_of
from .proofs.verdicts import verdicts as verdicts
from .pruning import find_circuit as find_circuit, find_circuits as find_circuits
from .search.config import PruneConfig as PruneConfig
from .tasks import TASKS as TASKS, task_data as task_data

__version__: str
