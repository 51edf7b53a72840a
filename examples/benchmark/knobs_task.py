"""The task and the policy of knobs.py: sums in binary, small enough that every expectation is a finite sum.

A prompt is two numbers, its answer their sum in binary digits and an end token: "2 3" → "1 0 1 end". A response has at
most four tokens, so there are 31 responses, and 15 beginnings at which a token is chosen. The policy, a transformer,
computes all of them in one pass as one prefix tree: the probability of each response, and so the success rate, the
expected valid share and the gradient of the expected reward, are exact.

A number of prompts are *dead*: nobody can solve them (reward 0 always, and the model answers at length), or everybody
can (reward 1 always, short answers). They have no gradient, and set the valid share.

All tensors have a leading axis of runs: each has its own weights, and none sees another.
"""

from __future__ import annotations

from itertools import product

import torch
from torch.nn.functional import cross_entropy

NUMBERS, DIGITS, END, MAX_TOKENS = 4, 2, 2, 4
WIDTH, HEADS, LAYERS = 16, 1, 1

NODES = [digits for n in range(MAX_TOKENS) for digits in product(range(DIGITS), repeat=n)]  # the 15 beginnings
RESPONSES = [(*node, END) for node in NODES] + list(product(range(DIGITS), repeat=MAX_TOKENS))
LENGTHS = torch.tensor([len(response) for response in RESPONSES])
LEARNABLE = [(a, b) for a in range(NUMBERS) for b in range(NUMBERS)]
UNSOLVABLE, SOLVED = [(NUMBERS, 0)], [(NUMBERS + 1, 0)]
PROMPTS = LEARNABLE + UNSOLVABLE + SOLVED
DEAD = range(len(LEARNABLE), len(PROMPTS))

# (31, 4) of each token of a response: the beginning before it and what it is; (31, 4) whether there is one.
AT = torch.tensor([[NODES.index(r[:t]) if t < len(r) else 0 for t in range(MAX_TOKENS)] for r in RESPONSES])
TOKEN = torch.tensor([[r[t] if t < len(r) else 0 for t in range(MAX_TOKENS)] for r in RESPONSES])
MASK = torch.arange(MAX_TOKENS) < LENGTHS.unsqueeze(-1)


def rewards() -> torch.Tensor:
    """(prompts, responses): 1 for the right answer."""
    table = torch.zeros(len(PROMPTS), len(RESPONSES))
    for q, (a, b) in enumerate(LEARNABLE):
        table[q, RESPONSES.index((*map(int, f"{a + b:b}"), END))] = 1
    table[len(LEARNABLE) + len(UNSOLVABLE) :] = 1
    return table


# The positions of a prompt's tree: its first number, its second (the root), the beginnings of one digit and more.
_TOKENS = torch.tensor([[0, 0, *(node[-1] for node in NODES[1:])]])
_DEPTH = torch.tensor([0, 1, *(1 + len(node) for node in NODES[1:])])
_SEEN = torch.tensor(
    [[p == 0 or (p > 0 and n[: len(o)] == o) for p, o in enumerate([(), *NODES])] for n in [(), *NODES]]
)
_SEEN[0, 1:] = False  # the first number sees itself alone


def new_weights(seeds: list[int]) -> dict[str, torch.Tensor]:
    """(seeds, ...) each: what every run starts from, before `pretrain`."""
    shapes = {"first": (NUMBERS + 2, WIDTH), "second": (NUMBERS, WIDTH), "digit": (DIGITS, WIDTH)}
    shapes |= {"depth": (MAX_TOKENS + 1, WIDTH), "head": (WIDTH, DIGITS + 1)}
    for layer in range(LAYERS):
        shapes |= {f"qkv{layer}": (WIDTH, 3 * WIDTH), f"out{layer}": (WIDTH, WIDTH)}
        shapes |= {f"up{layer}": (WIDTH, 2 * WIDTH), f"down{layer}": (2 * WIDTH, WIDTH)}
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn.append({n: torch.randn(s, generator=generator) / s[0] ** 0.5 for n, s in shapes.items()})
    return {name: torch.stack([one[name] for one in drawn]) for name in shapes}


def node_log_probs(w: dict[str, torch.Tensor]) -> torch.Tensor:
    """(runs, prompts, 15, 3) log-probabilities of the next token after each beginning."""
    runs, prompts = w["head"].shape[0], len(PROMPTS)
    pairs = torch.tensor(PROMPTS)
    digits = w["digit"][:, _TOKENS[0, 2:]].unsqueeze(1).expand(-1, prompts, -1, -1)
    x = torch.cat([w["first"][:, pairs[:, :1]], w["second"][:, pairs[:, 1:]], digits], 2) + w["depth"][:, None, _DEPTH]
    x = x.reshape(runs, -1, WIDTH)

    def normed(x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    for layer in range(LAYERS):
        qkv = torch.bmm(normed(x), w[f"qkv{layer}"]).view(runs * prompts, len(_DEPTH), 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (WIDTH // HEADS) ** -0.5
        seen = scores.masked_fill(~_SEEN, -torch.inf).softmax(-1) @ v
        x = x + torch.bmm(seen.transpose(1, 2).reshape(runs, -1, WIDTH), w[f"out{layer}"])
        x = x + torch.bmm(torch.bmm(normed(x), w[f"up{layer}"]).relu(), w[f"down{layer}"])
    logits = torch.bmm(normed(x), w["head"]).view(runs, prompts, len(_DEPTH), DIGITS + 1)
    return logits[:, :, 1:].log_softmax(-1)


def token_log_probs(nodes: torch.Tensor) -> torch.Tensor:
    """(runs, prompts, 31, 4) log-probability of each token of each response; 0 past its end."""
    return nodes[:, :, AT, TOKEN].masked_fill(~MASK, 0.0)


def probabilities(nodes: torch.Tensor) -> torch.Tensor:
    """(runs, prompts, 31) of each response."""
    return token_log_probs(nodes).sum(-1).exp()


def start(least: float, most: float) -> torch.Tensor:
    """(prompts, 31): how a run answers before it learns. The right answers of the learnable prompts have
    probabilities spread evenly (in their logarithm) from `least` to `most`; the rest is spread over all others.
    """
    right = rewards()
    other = 3.0 ** -LENGTHS.double()
    found = torch.empty(len(PROMPTS), len(RESPONSES), dtype=torch.float64)
    chance = torch.logspace(torch.tensor(least).log10(), torch.tensor(most).log10(), len(LEARNABLE)).double()
    # In an order that mixes long and short answers.
    chance = chance[torch.arange(len(LEARNABLE)) * 7 % len(LEARNABLE)]
    for q in range(len(LEARNABLE)):
        rest = other * (1 - right[q])
        found[q] = chance[q] * right[q] + (1 - chance[q]) * rest / rest.sum()
    for q in DEAD:
        wanted = LENGTHS >= 3 if PROMPTS[q] in UNSOLVABLE else LENGTHS <= 2
        found[q] = other * torch.where(wanted, 1.0, 0.05)
        found[q] /= found[q].sum()
    return found.float()


def pretrain(w: dict[str, torch.Tensor], target: torch.Tensor, steps: int = 300) -> dict[str, torch.Tensor]:
    """The weights fitted to answer as `target`, by Adam on the exact cross entropy."""
    w = {name: value.clone().requires_grad_() for name, value in w.items()}
    optimizer = torch.optim.Adam(w.values(), lr=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        log_p = token_log_probs(node_log_probs(w)).sum(-1)
        loss = cross_entropy(log_p.movedim(-1, 1), target.expand_as(log_p).movedim(-1, 1), reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach() for name, value in w.items()}
