"""Log-probs of tokens are those of torch in fp64, at a counted cost."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from verl.utils import torch_functional

from gpg_verl.training.log_probs import log_probs_of


def case(dtype, rows=1500, vocabulary=40):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
    return logits, torch.randint(vocabulary, (rows,), generator=generator), torch.randn(rows, generator=generator)


def computed(logits, token, weight, in_place=True):
    leaf = logits.clone().requires_grad_()
    log_probs = log_probs_of(leaf.clone(), token, in_place)
    (log_probs * weight.to(log_probs.dtype)).sum().backward()
    return log_probs.detach(), leaf.grad


# The largest difference of log-probs, and of gradients, which are at most 1.
BOUNDS = {torch.float64: (1e-12, 1e-12), torch.float32: (3e-6, 1e-6), torch.bfloat16: (0.016, 0.015)}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_they_are_torchs_in_fp64(dtype, autocast, in_place):
    logits, token, weight = case(dtype)
    exact = logits.double().clone().requires_grad_()
    expected = exact.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    (expected * weight).sum().backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seen, gradient = computed(logits, token, weight, in_place)
    assert seen.dtype == torch.promote_types(dtype, torch.float32)
    assert gradient.dtype == dtype
    assert (seen - expected).abs().max() <= BOUNDS[dtype][0]
    assert (gradient - exact.grad).abs().max() <= BOUNDS[dtype][1]


def test_a_trained_models_logits_in_fp32():
    """One token is likely and 49,151 are not: a sum of one term after the other would lose them."""
    logits = torch.randn(8, 49_152, generator=torch.Generator().manual_seed(0)) * 3 + 15
    logits[:, 7] = 35
    seen = log_probs_of(logits, torch.full((8,), 7), in_place=False)
    assert (seen - logits.double().log_softmax(-1)[:, 7]).abs().max() < 1e-6


def test_logits_that_others_need_stay_as_they_are():
    logits, token, weight = case(torch.float32, rows=4)
    for in_place in (True, False):
        other = logits.clone().requires_grad_()
        middle = other * 1
        (log_probs_of(middle, token, in_place) * weight).sum().backward()
        assert torch.equal(middle.detach(), logits) != in_place


class BytesMoved(TorchDispatchMode):
    """Read and written by operations on tensors of `least` numbers and more, without those that look up a few."""

    FEW = ("gather", "scatter_", "empty_like", "detach", "split")

    def __init__(self, least):
        super().__init__()
        self.least, self.moved, self.names = least, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function.overloadpacket.__name__ not in self.FEW and not function.is_view:
            large = [x for x in (*args, result) if isinstance(x, torch.Tensor) and x.numel() >= self.least]
            self.moved += sum(x.numel() * x.element_size() for x in large)
            self.names += [function.overloadpacket.__name__] * bool(large)
        return result


def test_bytes_moved_a_logit():
    """Of bf16 under autocast, as veRL's engine has it; by operation, where torch computes one in several as those."""
    logits, token, weight = case(torch.bfloat16, rows=1024, vocabulary=64)
    leaf, bytes_moved = logits.clone().requires_grad_(), BytesMoved(logits.numel())
    with torch.autocast("cpu", torch.bfloat16), bytes_moved:
        loss = (log_probs_of(leaf, token, in_place=True) * weight).sum()
    with bytes_moved:
        torch.autograd.grad(loss, leaf)
    assert set(bytes_moved.names) == {"amax", "_log_softmax", "_softmax", "mul"}  # none of which is several
    assert bytes_moved.moved / logits.numel() <= 16


def test_verls_fused_kernel_is_used_where_it_is_there(monkeypatch):
    called = []

    def cross_entropy_loss(logits, labels, inplace_backward):
        called.append(inplace_backward)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none"), None

    monkeypatch.setattr(torch_functional, "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE", True)
    monkeypatch.setattr(torch_functional, "cross_entropy_loss", cross_entropy_loss, raising=False)
    logits, token, weight = case(torch.float32)
    seen, _ = computed(logits, token, weight)
    assert called == [True]
    assert torch.allclose(seen, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0], atol=1e-5)
