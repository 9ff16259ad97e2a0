from .config import SEARCH_VERSION as SEARCH_VERSION, PruneConfig as PruneConfig
from .evaluation import Judge as Judge, Score as Score
from .masks import learn_masks as learn_masks
from .targets import (
    Solution as Solution,
    edge_circuits as edge_circuits,
    faithful_circuits as faithful_circuits,
    node_circuits as node_circuits,
)
from .watch import Stopped as Stopped, Update as Update, Watch as Watch
