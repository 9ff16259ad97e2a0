"""The k-th largest of values beside constants, against sorting all of them."""

from __future__ import annotations

import pytest
import torch

from circuit.ablated.survivors import kth_largest, survive


@pytest.mark.parametrize("n_constants", [0, 1, 5, 40])
@pytest.mark.parametrize("k", [1, 3, 12, 20])
def test_as_if_constants_were_sorted_in(k: int, n_constants: int) -> None:
    torch.manual_seed(k)
    values = torch.randn(2, 7, 20).round(decimals=1)  # with ties
    constants = torch.randn(n_constants).abs().round(decimals=1).sort(descending=True).values
    joined = torch.cat([values.abs(), constants.expand(2, 7, -1)], -1)
    expected = joined.sort(descending=True).values[..., k - 1 : k]
    assert torch.equal(kth_largest(values.abs(), constants[:k], k), expected)
    assert torch.equal(survive(values, values, k, constants[:k]), values.abs() >= expected)
