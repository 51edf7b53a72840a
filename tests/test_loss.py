"""GPG's policy loss: its values, and its gradient against the paper's J(θ)."""

import pytest
import torch

from gpg_verl.algorithm.advantage import ALPHAS, F_NORMS, gpg_advantage
from gpg_verl.algorithm.loss import gpg_token_loss


@pytest.mark.parametrize(
    ("log_prob", "advantage", "weight", "loss"),
    [
        (-2.0, 0.5, None, 1.0),
        (-2.0, -0.5, None, -1.0),
        (-2.0, 0.0, None, 0.0),
        (-2.0, 0.5, 1.0, 1.0),
        (-2.0, 0.5, 3.0, 3.0),
        (-100.0, 5.0, None, 500.0),  # nothing is clipped
    ],
)
def test_values(log_prob, advantage, weight, loss):
    weights = None if weight is None else torch.full((2, 3), weight)
    seen = gpg_token_loss(torch.full((2, 3), log_prob), torch.full((2, 3), advantage), weights)
    assert torch.equal(seen, torch.full((2, 3), loss))


def test_rollout_weights_are_constants():
    log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    weights = (2 * log_prob).exp()  # veRL's come from log_prob too
    gpg_token_loss(log_prob, torch.tensor([[1.0, -1.0]]), weights).sum().backward()
    assert torch.allclose(log_prob.grad, weights.detach() * torch.tensor([[-1.0, 1.0]]))


# A policy one can differentiate by hand: at step t it writes token v with probability softmax(θ_t)_v.
ROWS, T, V = 6, 4, 3
INDEX = ["a", "b", "a", "c", "b", "a"]  # a: valid; b: all right; c: a group of one
REWARDS = [1, 1, 0, 1, 1, 0]
LENGTHS = [4, 1, 2, 3, 4, 3]


def random_policy():
    torch.manual_seed(0)
    θ = torch.randn(T, V, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, V, (ROWS, T))
    return θ, tokens


def log_probs(θ, tokens):
    return θ.log_softmax(-1).expand(len(tokens), T, V).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def response_mask():
    return torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(-1)


def gradient_of_J(θ, tokens, advantages):
    """∇J(θ) = 1/Σ|o_i| · Σ_i Σ_t ∇log π_θ(o_i,t) · Â_i, where ∇log softmax(θ)_v = onehot(v) − softmax(θ)."""
    gradient = torch.zeros(T, V, dtype=torch.float64)
    for i in range(ROWS):
        for t in range(LENGTHS[i]):
            onehot = torch.eye(V, dtype=torch.float64)[tokens[i, t]]
            gradient[t] += (onehot - θ[t].detach().softmax(-1)) * advantages[i]
    return gradient / sum(LENGTHS)


def advantages_by_hand(f_norm, alpha):
    valid = [0, 2, 5]
    α = {"sample": 6 / 3, "token": 17 / 9, "none": 1.0}[alpha]
    std = {"1": 1.0, "std": (1 / 3) ** 0.5}[f_norm]  # of (1, 0, 0)
    return [α * (REWARDS[i] - 1 / 3) / std if i in valid else 0.0 for i in range(ROWS)]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("f_norm", F_NORMS)
def test_gradient_is_that_of_the_paper(f_norm, alpha):
    θ, tokens = random_policy()
    mask = response_mask()
    rewards = torch.zeros(ROWS, T)
    rewards[torch.arange(ROWS), torch.tensor(LENGTHS) - 1] = torch.tensor(REWARDS, dtype=torch.float32)
    advantages, _, _ = gpg_advantage(rewards, mask, INDEX, f_norm=f_norm, alpha=alpha)

    loss = gpg_token_loss(log_probs(θ, tokens), advantages)[mask].mean()  # token-mean
    loss.backward()

    by_hand = advantages_by_hand(f_norm, alpha)
    assert torch.allclose(θ.grad, -gradient_of_J(θ, tokens, by_hand), rtol=1e-5, atol=1e-8)
    doubled = [2 * a for a in by_hand]  # the comparison would see a wrong α
    assert not torch.allclose(θ.grad, -gradient_of_J(θ, tokens, doubled), rtol=1e-5, atol=1e-8)


def test_rows_without_advantage_have_no_gradient():
    """A step may leave them out of forward and backward, as long as their tokens stay in Σ|o_i|."""
    θ, tokens = random_policy()
    by_hand = advantages_by_hand("1", "sample")
    kept = [i for i in range(ROWS) if by_hand[i]]
    log_prob = log_probs(θ, tokens[kept])
    advantages = torch.tensor(by_hand, dtype=torch.float64)[kept].unsqueeze(-1)
    loss = gpg_token_loss(log_prob, advantages)[response_mask()[kept]].sum() / sum(LENGTHS)
    loss.backward()
    assert torch.allclose(θ.grad, -gradient_of_J(θ, tokens, by_hand))
