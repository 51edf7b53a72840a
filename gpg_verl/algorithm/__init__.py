"""The paper (arXiv 2504.02546): pure functions on plain tensors and lists, without veRL.

    Â_i = α · (r_i − mean{r_1..r_G}) / F_norm       advantage.py
    α   = B / (B − M)                               advantage.py
    J   = E[1/Σ|o_i| · Σ_i Σ_t log π_θ(o_i,t) · Â_i]   loss.py, updates.py (its denominators)
    β_th, the least share of valid groups           refill.py

This module imports nothing, so that settings can be read without torch.
"""

F_NORMS = ("1", "std")  # F_norm: the paper's choice, and its ablation
ALPHAS = ("sample", "token", "none")  # α: B/(B−M) in samples, the same in response tokens, 1
