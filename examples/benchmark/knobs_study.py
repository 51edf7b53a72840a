"""The study of knobs.py: its methods and cells, and training all runs of one at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import knobs_task as task
import numpy as np
import torch
from rich.progress import Progress

from gpg_verl.algorithm.advantage import group_statistics
from gpg_verl.algorithm.loss import gpg_token_loss
from gpg_verl.algorithm.refill import GroupStatus, Refill

GROUPS, RESPONSES, MAX_BATCHES = 16, 8, 20
CLIP = 1.0
REWARDS = task.rewards()


@dataclass(frozen=True)
class Method:
    label: str
    f_norm: str = "1"
    alpha: str = "none"  # the project's, or "verl"
    beta_th: float = 0.0
    mean: str = "token"  # how the loss is averaged: "token", "sequence" (each response's mean first), "constant"
    verls: bool = False  # updates all rows, after a pass for old log-probs


METHODS = {
    "gpg": Method("F_norm=1, α=1"),
    "gpg_std": Method("F_norm=std, α=1", f_norm="std"),
    "gpg_alpha": Method("α by sample", alpha="sample"),
    "gpg_alpha_beta": Method("α by sample, β_th=0.6", alpha="sample", beta_th=0.6),
    "alpha_token": Method("α by token", alpha="token"),
    "verl_alpha": Method("α as veRL's gpg", alpha="verl", verls=True),
    "grpo": Method("GRPO", f_norm="std", mean="sequence", verls=True),
    "dr_grpo": Method("Dr. GRPO", mean="constant", verls=True),
}
PAIRS = (  # what is compared with what
    ("gpg_std", "gpg"),
    ("gpg_alpha", "gpg"),
    ("alpha_token", "gpg_alpha"),
    ("verl_alpha", "gpg_alpha"),
    ("gpg_alpha_beta", "gpg_alpha"),
    ("grpo", "gpg"),
    ("dr_grpo", "gpg"),
)


@dataclass(frozen=True)
class Cell:
    """share: the valid share that dead prompts hold; None for none of them. start: least and largest success rate of
    a learnable prompt before training.
    """

    label: str
    share: float | None
    start: tuple[float, float] = (0.05, 0.7)
    shaped: str = ""  # what is done to the reward


CELLS = {
    "held005": Cell("valid share held at 0.05", 0.05),
    "held02": Cell("held at 0.2", 0.2),
    "held05": Cell("held at 0.5", 0.5),
    "held09": Cell("held at 0.9 as long as it can", 0.9, (0.25, 0.7)),
    "rising": Cell("drifting, from hard", None, (0.003, 0.1)),
    "falling": Cell("drifting, from easy", None, (0.5, 0.95)),
    "scales": Cell("held at 0.5, rewards of other sizes", 0.5, shaped="scales"),
    "bonus": Cell("held at 0.2, small bonus for length", 0.2, shaped="bonus"),
}
OPTIMIZERS = {  # label, rates, the one rate
    "adamw_clip": ("AdamW, clipped at 1", (0.001, 0.003, 0.01), 0.003),
    "adamw": ("AdamW", (0.001, 0.003, 0.01), 0.003),
    "sgd": ("SGD", (0.01, 0.05, 0.2, 0.8), 0.2),
}
MEASURES = {
    "step": "by step",
    "responses": "by response generated",
    "passes": "by token computed",
    "one rate": "by step, all at one rate",
}


def shaped_rewards(cell: Cell) -> torch.Tensor:
    """(prompts, 31) what training sees. "scales": a third of the prompts pays 0.1, a third 10. "bonus": 0.01 a token
    that a response is shorter than allowed, so that hardly a group has only one reward.
    """
    if cell.shaped == "scales":
        return REWARDS * torch.tensor([0.1, 1.0, 10.0])[torch.arange(len(task.PROMPTS)) % 3].unsqueeze(-1)
    if cell.shaped == "bonus":
        return REWARDS + 0.01 * (task.MAX_TOKENS - task.LENGTHS)
    return REWARDS


def random_numbers(seeds: int, steps: int, batches: int) -> torch.Tensor:
    """(steps, seeds, batches · GROUPS, 3 + RESPONSES) uniform: whether a prompt is dead, which, and its responses."""
    drawn = [
        torch.rand(steps, batches * GROUPS, 3 + RESPONSES, generator=torch.Generator().manual_seed(1000 + seed))
        for seed in range(seeds)
    ]
    return torch.stack(drawn, 1)


def draw(cell: Cell, p: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts (runs, groups) and their responses (runs, groups, RESPONSES), of the policies p (runs, prompts, 31)."""
    learnable = len(task.LEARNABLE)
    alive = torch.ones(len(p))
    if cell.share is not None:
        right = (p * REWARDS).sum(-1)[:, :learnable]
        valid = (1 - right**RESPONSES - (1 - right) ** RESPONSES).mean(-1)
        alive = (cell.share / valid).clamp(max=1.0)
    alive = u[..., 0] < alive.unsqueeze(-1)
    # Each rounded down by itself: a sum may round up to one prompt too many.
    prompts = torch.where(alive, (u[..., 1] * learnable).long(), learnable + (u[..., 2] * len(task.DEAD)).long())
    up_to = p.cumsum(-1)[torch.arange(len(p)).unsqueeze(-1), prompts][..., :-1].contiguous()
    return prompts, torch.searchsorted(up_to, u[..., 3:].contiguous())


def refilled(rewards: torch.Tensor, beta_th: float) -> tuple[torch.Tensor, torch.Tensor]:
    """β_th: (runs, GROUPS) the groups of each run's step, of all that could be drawn, and (runs,) how many were."""
    mixed = (rewards.amax(-1) > rewards.amin(-1)).tolist()
    selected, dispatched = [], []
    for of_run in mixed:
        refill = Refill(GROUPS, beta_th, MAX_BATCHES)
        while (cut := refill.select()) is None:
            first = len(refill.order)
            new = range(first, first + refill.num_prompts_to_request())
            refill.dispatch(new)
            for i in new:
                refill.judge(i, GroupStatus.VALID if of_run[i] else GroupStatus.ZERO_VARIANCE)
        selected.append(cut.selected)
        dispatched.append(len(refill.order))
    return torch.tensor(selected), torch.tensor(dispatched)


@dataclass
class Batch:
    """A step of every run. `rows`, `lengths`, `advantages` and `valid`: (runs, GROUPS · RESPONSES)."""

    rows: torch.Tensor  # prompt · 31 + response
    lengths: torch.Tensor
    advantages: torch.Tensor
    valid: torch.Tensor
    alpha: torch.Tensor  # (runs,)
    generated: torch.Tensor  # (runs,) responses
    passes: torch.Tensor  # (runs,) over a token


def advantages(method: Method, scores: torch.Tensor, lengths: torch.Tensor):
    """(advantages, valid) of (runs, rows) and α (runs,). All runs go through `group_statistics` at once, each with
    groups of its own; only α, one number per run, is counted here.
    """
    runs, rows = scores.shape
    index = np.arange(runs * rows // RESPONSES).repeat(RESPONSES)
    found = group_statistics(scores.flatten(), index, lengths.flatten(), f_norm=method.f_norm, alpha="none")
    deviation, valid = found.advantages.view(runs, rows), found.valid.view(runs, rows)
    if method.alpha == "none":
        alpha = torch.ones(runs)
    elif method.alpha == "verl":
        alpha = rows / scores.count_nonzero(-1).clamp(min=1)
    else:
        weight = lengths if method.alpha == "token" else torch.ones_like(lengths)
        trained = (weight * valid).sum(-1)
        alpha = torch.where(trained > 0, weight.sum(-1) / trained.clamp(min=1), 1.0)
    return deviation * alpha.unsqueeze(-1), valid, alpha


def sample(cell: Cell, method: Method, p: torch.Tensor, u: torch.Tensor) -> Batch:
    """One step's responses and advantages; u as in `random_numbers`, for these runs."""
    table = shaped_rewards(cell)
    u = u if method.beta_th else u[:, :GROUPS]
    prompts, responses = draw(cell, p, u)
    lengths = task.LENGTHS[responses]
    generated = torch.full((len(p),), GROUPS)
    tokens = lengths.sum((1, 2))
    if method.beta_th:
        chosen, generated = refilled(table[prompts.unsqueeze(-1), responses], method.beta_th)
        tokens = (lengths.sum(-1) * (torch.arange(u.shape[1]) < generated.unsqueeze(-1))).sum(-1)
        prompts = prompts.gather(1, chosen)
        responses, lengths = (x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, RESPONSES)) for x in (responses, lengths))
    rows = (prompts.unsqueeze(-1) * len(task.RESPONSES) + responses).flatten(1)
    lengths = lengths.flatten(1)
    found, valid, alpha = advantages(method, table.flatten()[rows], lengths)
    update = 4 * lengths.sum(-1) if method.verls else 3 * (lengths * valid).sum(-1)
    return Batch(rows, lengths, found, valid, alpha, generated * RESPONSES, tokens + update)


def losses(method: Method, token_log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(runs,) the loss of each, from `task.token_log_probs`."""
    tokens = token_log_probs.flatten(1, 2).gather(1, batch.rows.unsqueeze(-1).expand(-1, -1, task.MAX_TOKENS))
    loss = gpg_token_loss(tokens, batch.advantages.unsqueeze(-1))  # past a response's end log_prob is 0
    return (loss * row_weights(method, batch.lengths).unsqueeze(-1)).sum((1, 2))


def row_weights(method: Method, lengths: torch.Tensor) -> torch.Tensor:
    """(runs, rows) what a token of the row weighs in the loss."""
    if method.mean == "token":
        return 1 / lengths.sum(-1, keepdim=True).expand_as(lengths)
    rows = lengths.shape[1]
    return (
        1 / (lengths * rows) if method.mean == "sequence" else torch.full(lengths.shape, 1 / (rows * task.MAX_TOKENS))
    )


class Learner:
    """The weights of all runs as one matrix (runs, weights), and their optimizer."""

    def __init__(self, weights: dict[str, torch.Tensor], rates: torch.Tensor, optimizer: str):
        self.shapes = {name: value.shape[1:] for name, value in weights.items()}
        self.flat = torch.cat([value.flatten(1) for value in weights.values()], 1).requires_grad_()
        self.rates, self.optimizer = rates.unsqueeze(-1), optimizer
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.updates = torch.zeros(len(rates), 1)

    def weights(self) -> dict[str, torch.Tensor]:
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()], 1)
        return {n: x.view(-1, *shape) for (n, shape), x in zip(self.shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def update(self, updates: torch.Tensor) -> torch.Tensor:
        """A step of the runs in `updates` (runs,) bool; returns the norm of each run's gradient (runs,)."""
        gradient = self.flat.grad
        self.flat.grad = None
        norm = gradient.norm(dim=-1, keepdim=True)
        if self.optimizer == "adamw_clip":
            gradient = gradient * (CLIP / (norm + 1e-6)).clamp(max=1.0)
        if self.optimizer == "sgd":
            change = gradient
        else:  # torch's AdamW, with veRL's defaults
            moving = updates.unsqueeze(-1)
            self.updates += moving
            n = self.updates.clamp(min=1)
            self.first = torch.where(moving, self.first.lerp(gradient, 0.1), self.first)
            self.second = torch.where(moving, self.second.lerp(gradient.square(), 0.001), self.second)
            change = self.first / (1 - 0.9**n) / ((self.second / (1 - 0.999**n)).sqrt() + 1e-8) + 0.01 * self.flat
        self.flat -= self.rates * change * updates.unsqueeze(-1)
        return norm.squeeze(-1)


def train(cell: Cell, method: Method, optimizer: str, start: dict, rates: torch.Tensor, u: torch.Tensor) -> Iterator:
    """Trains all runs. Yields before each step, and after the last, what each run has: (runs,) numbers by name."""
    learner = Learner(start, rates, optimizer)
    spent = {"responses": torch.zeros(len(rates)), "passes": torch.zeros(len(rates))}
    for step in range(len(u) + 1):
        last = step == len(u)
        with torch.set_grad_enabled(not last):
            tokens = task.token_log_probs(task.node_log_probs(learner.weights()))
        p = tokens.detach().sum(-1).exp()
        record = {name: value.clone() for name, value in spent.items()}
        record["success"] = (p * REWARDS).sum(-1)[:, : len(task.LEARNABLE)].mean(-1)
        if not last:
            batch = sample(cell, method, p, u[step])
            losses(method, tokens, batch).sum().backward()
            record["valid"] = batch.valid.float().mean(-1)
            record["alpha"] = batch.alpha
            record["norm"] = learner.update(batch.valid.any(-1) | method.verls)
            spent["responses"] += batch.generated
            spent["passes"] += batch.passes
        yield record


def gradients(cell: Cell, weights: dict, batches: int, seed: int) -> dict[str, dict[str, float]]:
    """Method → how its gradient of one batch relates to that of the expected reward, at one policy (one run): the
    cosine of its expectation, what one batch adds in noise (in lengths of the expectation), and how much α varies.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    log_p = task.token_log_probs(task.node_log_probs(leaves)).sum(-1).flatten()
    eye = torch.eye(len(log_p))
    each = torch.autograd.grad(log_p, list(leaves.values()), eye, is_grads_batched=True)
    each = torch.cat([x.flatten(1) for x in each], 1)  # (prompts · 31, weights): ∇ log π of every response
    p = log_p.detach().exp().view(1, len(task.PROMPTS), -1)
    pays = shaped_rewards(cell) if cell.shaped == "scales" else REWARDS  # a bonus is not what is wanted
    wanted = (p[0] * pays)[: len(task.LEARNABLE)].flatten() @ each[: len(task.LEARNABLE) * len(task.RESPONSES)]
    u = torch.rand(batches, MAX_BATCHES * GROUPS, 3 + RESPONSES, generator=torch.Generator().manual_seed(10_000 + seed))
    found = {}
    for name, method in METHODS.items():
        batch = sample(cell, method, p.expand(batches, -1, -1), u)
        weight = batch.advantages * row_weights(method, batch.lengths)
        of_row = torch.zeros(batches, len(each)).scatter_add_(1, batch.rows, weight)
        seen = of_row @ each  # (batches, weights)
        mean, spread = seen.mean(0), seen.var(0).sum()
        # |mean of n|² is too large by the spread over n.
        length = (mean.square().sum() - spread / batches).clamp(min=1e-30).sqrt()
        found[name] = {
            "cosine": min(1.0, float(mean @ wanted / length / wanted.norm())),
            "noise": float(spread.sqrt() / length),
            "alpha": float(batch.alpha.mean()),
            "alpha varies": float(batch.alpha.std() / batch.alpha.mean()),
        }
    return found


def measure(cell: Cell, optimizer: str, start: dict, u: torch.Tensor, tick) -> dict[str, np.ndarray]:
    """Trains every method; "method/what" → (seeds, rates, steps) of what `train` yields."""
    _, rates, _ = OPTIMIZERS[optimizer]
    seeds = u.shape[1]
    of_run = torch.arange(seeds).repeat_interleave(len(rates))
    found = {}
    for name, method in METHODS.items():
        runs = train(
            cell,
            method,
            optimizer,
            {n: w[of_run] for n, w in start.items()},
            torch.tensor(rates).repeat(seeds),
            u[:, of_run, : None if method.beta_th else GROUPS],
        )
        records = []
        for record in runs:
            records.append(record)
            tick()
        for what in records[0]:
            column = torch.stack([record[what] for record in records if what in record], -1)
            found[f"{name}/{what}"] = column.view(seeds, len(rates), -1).numpy().astype(np.float32)
    return found


def study(cells: list[str], optimizers: list[str], seeds: int, steps: int, batches: int, out: Path) -> None:
    """Everything into `out`, a file for each cell; what is there already stays. Raises ValueError where it is of other
    settings.
    """
    settings = f"seeds={seeds} steps={steps} batches={batches} optimizers={','.join(optimizers)}"
    for file in out.glob("*.npz"):
        there = str(np.load(file)["settings"])
        if there != settings:
            raise ValueError(f"{file} is of {there}, not {settings}: name another --out, or delete it")
    u = random_numbers(seeds, steps, MAX_BATCHES)
    fresh = task.new_weights(list(range(seeds)))
    starts: dict[tuple, dict] = {}
    with Progress() as progress:
        bar = progress.add_task("", total=len(cells) * len(optimizers) * len(METHODS) * (steps + 1))
        for name in cells:
            cell, file = CELLS[name], out / f"{name}.npz"
            progress.update(bar, description=cell.label)
            if file.exists():
                progress.advance(bar, len(optimizers) * len(METHODS) * (steps + 1))
                continue
            if cell.start not in starts:
                starts[cell.start] = task.pretrain(fresh, task.start(*cell.start))
            start = starts[cell.start]
            found = {"settings": np.array(settings)}
            for optimizer in optimizers:
                columns = measure(cell, optimizer, start, u, lambda: progress.advance(bar))
                found |= {f"{optimizer}/{key}": column for key, column in columns.items()}
            of_seeds = [
                gradients(cell, {n: w[i : i + 1] for n, w in start.items()}, batches, i) for i in range(min(seeds, 10))
            ]
            for method in METHODS:
                for what in of_seeds[0][method]:
                    found[f"gradient/{method}/{what}"] = np.array([one[method][what] for one in of_seeds])
            np.savez_compressed(file, **found)
