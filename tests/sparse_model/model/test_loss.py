import pytest
import torch

from sparse_model.model import loss
from sparse_model.model.loss import next_token_loss, unembedding_loss

N, D, V = 37, 6, 19


def tensors(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, D), (V, D), (V,), (V, V))
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("block", [5, 37, 100])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("bigram", [True, False])
def test_loss_and_gradients_equal_those_of_the_plain_logits(block, upstream, bigram, monkeypatch):
    monkeypatch.setattr(loss, "CPU_BLOCK", block)
    tokens, targets = torch.randint(0, V, (N,)), torch.randint(0, V, (N,))
    ours, theirs = tensors(), tensors()
    got = unembedding_loss(*ours[:3], ours[3] if bigram else None, tokens, targets)
    final, weight, bias, table = theirs
    expected = next_token_loss(final @ weight.T + bias + (table[tokens] if bigram else 0), targets)
    torch.testing.assert_close(got, expected)
    (upstream * got).backward()
    (upstream * expected).backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_without_gradient_there_is_a_loss_all_the_same():
    tokens, targets = torch.randint(0, V, (N,)), torch.randint(0, V, (N,))
    with torch.no_grad():
        loss_alone = unembedding_loss(*tensors(), tokens, targets)
    torch.testing.assert_close(loss_alone, unembedding_loss(*tensors(), tokens, targets).detach())


def test_a_second_backward_pass_is_a_clear_error():
    tokens, targets = torch.randint(0, V, (N,)), torch.randint(0, V, (N,))
    loss_once = unembedding_loss(*tensors(), tokens, targets)
    loss_once.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward pass again"):
        loss_once.backward()
