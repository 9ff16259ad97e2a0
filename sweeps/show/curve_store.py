"""Sizes that `sweeps curves` and `sweeps baselines` have found, task by task: a search that was stopped goes on there.

They lie beside the tokens of a study's corpus, under a name that depends on everything that a search depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from circuit.ablated.ablation import Means
from circuit.graph.record import fingerprint
from circuit.search.config import SEARCH_VERSION, PruneConfig
from circuit.tasks import TaskData
from sparse_model import storage
from sparse_model.model.transformer import SparseTransformer
from sweeps.show.curves import Curve

COUNTED = 1
"""Of what is kept of a search: raised when other circuits come to count."""


class CurveStore:
    """Curves of one model's tasks, by way of pruning."""

    def __init__(
        self,
        root: str,
        kind: str,
        model: SparseTransformer,
        means: Means,
        config: PruneConfig,
        targets: Sequence[float],
    ) -> None:
        """`root` is a study's storage, `kind` the name of the search."""
        asked = [fingerprint(model), config.model_dump(mode="json"), sorted(targets)]
        said = json.dumps([kind, SEARCH_VERSION, COUNTED, *asked])
        self.search = hashlib.sha256(said.encode())
        for site, mean in sorted(means.items()):
            self.search.update(site.encode() + mean.cpu().numpy().tobytes())
        self.folder = storage.join(root, "data", "curves")

    def read(self, task: TaskData) -> dict[str, Curve] | None:
        """What was found for a task, by way of pruning; None if nothing was, or if it cannot be read."""
        uri = self._uri(task)
        if not storage.exists(uri):
            return None
        try:
            found = json.loads(storage.read_bytes(uri))
            return {way: {float(target): size for target, size in curve.items()} for way, curve in found.items()}
        except (ValueError, AttributeError):
            return None

    def write(self, task: TaskData, curves: Mapping[str, Curve]) -> None:
        """Keep what was found for a task."""
        storage.write_bytes_atomic(self._uri(task), json.dumps(curves).encode())

    def _uri(self, task: TaskData) -> str:
        digest = self.search.copy()
        for batch in (task.train, task.heldout):
            for field in (batch.tokens, batch.length, batch.right, batch.wrong):
                digest.update(field.numpy().tobytes())
        return storage.join(self.folder, f"{task.name}-{digest.hexdigest()[:16]}.json")
