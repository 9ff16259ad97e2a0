import pytest
import torch
import torch.nn.functional as F

from sparse_model.model.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 64), (9,)])
def test_equals_pytorchs_and_its_gradient(shape, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    x[..., 0, :].zero_() if x.dim() > 1 else None
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(shape).to(dtype)
    got, expected = rms_norm(ours, dtype), F.rms_norm(theirs, shape[-1:]).to(dtype)
    torch.testing.assert_close(got, expected)
    got.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_zero_stays_zero_and_the_gradient_is_that_of_finite_differences():
    assert not rms_norm(torch.zeros(3, 4)).any()
    torch.autograd.gradcheck(rms_norm, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))
