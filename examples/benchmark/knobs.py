"""What the paper's knobs do: α and its two countings, F_norm and β_th, on a task whose difficulty is known and set.

    python examples/benchmark/knobs.py                                   # small: two cells, 4 seeds, a minute
    python examples/benchmark/knobs.py --cells all --optimizers all --seeds 30 --steps 25 --batches 2000 \\
        --out runs/knobs                                                 # the study of docs/method.md
    python examples/benchmark/knobs.py --draw runs/knobs                 # its table and pictures again

A small transformer (knobs_task.py) samples answers to sums in binary and learns from them: 16 prompts × 8 responses a
step. Advantages, loss and refill are gpg_verl.algorithm's; all seeds, and three or four learning rates each, are
computed at once. A cell sets the difficulty: the valid share, held at a value by prompts that are dead, or drifting
while the policy learns. Methods see the same random numbers, so a seed is a pair.

Contenders: the six of the paper's T3, α counted in tokens, and α as veRL 0.9.1's own `gpg` has it (samples over
samples with a reward that is not 0). GPG makes no update in a step without a valid group; the others do, with a
gradient of zero. GRPO and Dr. GRPO differ from T3 in that they get the same rates as all.

Measured: the exact success rate of the policy on the prompts that can be learned, averaged over the run (1) by step,
(2) by response generated and (3) by token computed: a token is 1 forward pass when it is generated and 3 in an update
(forward and backward), for GPG only in mixed groups; veRL's gpg, GRPO and Dr. GRPO update all rows and have one more
forward pass. (2) and (3) stop at one budget for all. Every method is taken at the rate that is best for it on the other
half of the seeds; by step also (4) all at one rate, as whoever only turns the knob. Intervals are 95 % (Student's t
over seeds), differences are paired, and p is after Holm's correction for all comparisons of a measure.

"gradient" compares one batch's gradient with the exact gradient of the expected reward, at the start of each cell: the
cosine of its expectation (1: no bias but a factor, which every optimizer's rate absorbs) and its noise, the length of a
batch's deviation from the expectation in lengths of the expectation. The study takes about
10 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from knobs_analysis import analyse, picture_curves, picture_differences, picture_gradients, tell
from knobs_study import CELLS, MEASURES, OPTIMIZERS, study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cells", default="held02,falling", help=f"of {', '.join(CELLS)}, or all (default: %(default)s)"
    )
    parser.add_argument("--optimizers", default="adamw_clip,sgd", help=f"of {', '.join(OPTIMIZERS)}, or all")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batches", type=int, default=500, help="draws for the gradients' expectations")
    parser.add_argument("--out", type=Path, default=Path("runs/knobs-small"), help="a cell found there stays")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="no training: tables and pictures of what is there")
    args = parser.parse_args()

    torch.set_num_threads(1)
    out = args.draw or args.out
    if not args.draw:
        cells = list(CELLS) if args.cells == "all" else args.cells.split(",")
        optimizers = list(OPTIMIZERS) if args.optimizers == "all" else args.optimizers.split(",")
        for name, allowed in [*((c, CELLS) for c in cells), *((o, OPTIMIZERS) for o in optimizers)]:
            if name not in allowed:
                parser.error(f"{name!r} is unknown; allowed: {', '.join(allowed)}")
        out.mkdir(parents=True, exist_ok=True)
        try:
            study(cells, optimizers, args.seeds, args.steps, args.batches, out)
        except ValueError as error:
            parser.error(str(error))
    found = analyse(out)
    if not found["methods"]:
        parser.error(f"--draw {out}: no cell is there; run the study with --out {out} first")
    (out / "knobs.json").write_text(json.dumps(found, indent=1) + "\n")
    for what in MEASURES:
        picture_differences(found, what, out / f"knobs-{what.replace(' ', '-')}.png")
    picture_curves(out, out / "knobs-curves.png")
    picture_gradients(found, out / "knobs-gradient.png")
    tell(found)
    print(f"\n{out}/knobs.json, knobs-*.png")


if __name__ == "__main__":
    main()
