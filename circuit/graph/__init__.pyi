from .checks import check_model as check_model
from .digraph import to_networkx as to_networkx
from .edges import edges_between as edges_between
from .evidence import Proofs as Proofs
from .record import Circuit as Circuit, Edge as Edge, Node as Node, fingerprint as fingerprint
