"""Where each site's nodes lie in one flat vector over all nodes of a model.

Shapes: N nodes of a model, C channels of a site.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparse_model.model.sites import site_names, site_width
from sparse_model.model.transformer import SparseTransformer


class NodeIndex:
    """Flat vectors (N,) over all nodes of a model, in the order of a forward pass, and their parts by site."""

    def __init__(self, model: SparseTransformer) -> None:
        self.widths = {name: site_width(model.config, name) for name in site_names(model.config)}
        *starts, self.total = itertools.accumulate(self.widths.values(), initial=0)
        self.first = dict(zip(self.widths, starts, strict=True))
        self.device = model.embedding.device
        self.starts = torch.tensor(starts, device=self.device)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views (..., C) of a flat vector (..., N), one per site."""
        return dict(zip(self.widths, torch.split(flat, list(self.widths.values()), -1), strict=True))

    def channels(self, keep: Tensor) -> dict[str, Tensor]:
        """Site -> channels where the flat boolean `keep` (N,) is true."""
        kept = keep.nonzero().squeeze(1)  # of all sites at once: a GPU is waited for every time
        ends = [*torch.searchsorted(kept, self.starts).tolist(), len(kept)]
        parts = torch.split(kept, [b - a for a, b in itertools.pairwise(ends)])
        return {name: part - self.first[name] for name, part in zip(self.widths, parts, strict=True)}

    def flat(self, nodes: Mapping[str, Sequence[int]]) -> Tensor:
        """Boolean `keep` (N,) that is true at the given channels of the given sites."""
        keep = torch.zeros(self.total, dtype=torch.bool, device=self.device)
        for name, part in self.split(keep).items():
            part[list(nodes.get(name, ()))] = True
        return keep

    def tied(self, flat: Tensor) -> Tensor:
        """A flat vector (N,) in which channel i of attn.q and of attn.k have the mean of their two values."""
        parts = self.split(flat)
        for site in parts:
            if site.endswith("attn.q"):
                key = site.removesuffix("q") + "k"
                parts[site] = parts[key] = (parts[site] + parts[key]) / 2
        return torch.cat(list(parts.values()))
