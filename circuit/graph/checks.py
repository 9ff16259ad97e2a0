"""Whether a circuit is one of a given model."""

from __future__ import annotations

import torch

from circuit.graph.edges import edges_between, matrices
from circuit.graph.record import Circuit, fingerprint
from sparse_model.errors import InputError
from sparse_model.model.sites import FINAL_SITE
from sparse_model.model.transformer import SparseTransformer


def check_model(circuit: Circuit, model: SparseTransformer) -> None:
    """InputError unless `model` is the one the circuit was found in, and has the circuit's sites and edges."""
    actual = fingerprint(model)
    if actual != circuit.model:
        raise InputError(f"model {actual}; the circuit of {circuit.task} is of model {circuit.model}")
    if circuit.status == "ok":
        check_edges(circuit, model)


def check_edges(circuit: Circuit, model: SparseTransformer) -> None:
    """InputError where a circuit's sites or edges are not those of its model."""
    what = f"circuit of {circuit.task}: not as its model has it:"
    widths = {FINAL_SITE: model.config.d_model}
    for _, _, source, target, weight in matrices(model):
        widths[target], widths[source] = weight.shape
    for site in sorted(widths.keys() | circuit.means.keys()):
        means, width = len(circuit.means.get(site, ())), widths.get(site, 0)
        if means != width:
            raise InputError(f"{what} {means} means of {site}; allowed: {width}")
    kept = {site: torch.tensor(circuit.nodes.get(site, ()), dtype=torch.long) for site in widths}
    own, said = set(edges_between(model, kept)), set(circuit.edges)
    if strange := min(said - own, default=None):
        raise InputError(f"{what} edge {strange.name} of weight {strange.weight:g} in {strange.matrix} {strange.layer}")
    if circuit.method != "edge" and own != said:
        raise InputError(f"{what} edge {min(own - said).name} is lacking")
