"""How right and how fast the rewards are: against labels, against math-verify, against veRL's own scorers.

    python examples/benchmark/rewards.py --data DIR                     # about 20 minutes on 2 cores
    python examples/benchmark/rewards.py --data DIR --only throughput   # or agreement

DIR holds `verifier/gsm8k_model_solutions.jsonl` (openai/grade-school-math, each solution with OpenAI's label),
`verifier/math_model_solutions.jsonl` (Qwen2.5-Math, 8 outputs per question with a rule-based grader's labels) and
`eval/` (the evaluation sets' gold answers). Every disagreement is printed.

Plain math-verify is `verify(parse(gold), parse(text))`; "by default" in veRL are `gsm8k` and `math_reward`.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from reward_fns import answer, compute_score, expression, grammar, gsm8k, guard, units
from reward_fns.kinds import number

GSM8K, MATH = "openai/gsm8k", "lighteval/MATH"


# ---- data: lists of (gold, text, label), the answers to one question next to each other ------------------------


def gsm8k_solutions(data: Path, mark: str) -> list[tuple[str, str, bool]]:
    """Solutions that end in "A: n", or with `####` in place of "A:"."""
    items = []
    for row in _jsonl(data / "verifier/gsm8k_model_solutions.jsonl"):
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        solutions = [value for value in row.values() if isinstance(value, dict)]
        items += [(gold, s["solution"].replace("\nA: ", f"\n{mark} "), s["is_correct"]) for s in solutions]
    return items


def math_outputs(data: Path) -> list[tuple[str, str, bool]]:
    rows = _jsonl(data / "verifier/math_model_solutions.jsonl")
    return [(row["gt"], text, label) for row in rows for text, label in zip(row["code"], row["score"], strict=True)]


def eval_golds(data: Path) -> dict[str, list]:
    """Every gold answer of the evaluation sets; a list is a list of accepted ones."""
    folder = data / "eval"
    return {
        "MATH-500": [row["answer"] for row in _jsonl(folder / "math500.jsonl")],
        "AIME24": [str(row["answer"]) for row in _jsonl(folder / "aime24.jsonl")],
        "AMC23": [str(row["answer"]) for row in _jsonl(folder / "amc23.jsonl")],
        "Minerva": [row["answer"] for row in json.loads((folder / "minerva.json").read_text())],
        "OlympiadBench": [row["final_answer"] for row in _jsonl(folder / "olympiadbench.jsonl")],
    }


def _jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the scorers: (gold, text) -> right or not -----------------------------------------------------------------


def ours_gsm8k(gold: str, text: str) -> bool:
    return compute_score(GSM8K, text, gold, last_number=True)["acc"] == 1


def ours_math(gold, text: str) -> bool:
    return compute_score(MATH, text, gold)["acc"] == 1


def math_verify(gold, text: str) -> bool:
    from math_verify import parse, verify

    golds = [gold] if isinstance(gold, str) else gold
    parsed = parse(text)
    return any(verify(parse(f"\\boxed{{{g}}}"), parsed) for g in golds)


@cache
def parsed(text: str) -> list:
    from math_verify import parse

    return parse(text)


def math_verify_parsed_once(gold, text: str) -> bool:
    """The same verdict; for the agreement, where a text meets many golds."""
    from math_verify import verify

    return any(verify(parsed(f"\\boxed{{{g}}}"), parsed(text)) for g in ([gold] if isinstance(gold, str) else gold))


def verl_math_verify(gold: str, text: str) -> bool:
    from verl.utils.reward_score import math_verify

    return math_verify.compute_score(text, gold) == 1


def verl_gsm8k(gold: str, text: str) -> bool:
    from verl.utils.reward_score import gsm8k

    # veRL writes golds without commas.
    return gsm8k.compute_score(text, gold.replace(",", ""), method="strict" if "####" in text else "flexible") == 1


def verl_math_reward(gold: str, text: str) -> bool:
    from verl.utils.reward_score import math_reward

    return math_reward.compute_score(text, gold) == 1


# ---- agreement -------------------------------------------------------------------------------------------------


def agreement(data: Path, others: int) -> None:
    gsm8k_as_is, gsm8k_marked, math = gsm8k_solutions(data, "A:"), gsm8k_solutions(data, "####"), math_outputs(data)
    print("Agreement with labels and with math-verify\n")
    print(f"{'set':44}{'answers':>9}{'labels':>10}{'math-verify':>13}")
    disagreements = []
    for name, items, score in (
        ('GSM8K solutions as they are ("A: n")', gsm8k_as_is, ours_gsm8k),
        ("GSM8K solutions with ####", gsm8k_marked, ours_gsm8k),
        ("MATH outputs", math, ours_math),
    ):
        with_labels = with_theirs = 0
        for gold, text, label in items:
            ours, theirs = score(gold, text), math_verify_parsed_once(gold, text)
            with_labels += ours == label
            with_theirs += ours == theirs
            if not ours == label == theirs:
                disagreements.append((name, gold, text[-70:], f"label {label}, math-verify {theirs}, ours {ours}"))
        n = len(items)
        print(f"{name:44}{n:9}{with_labels / n:10.2%}{with_theirs / n:13.2%}")

    print(
        f"\nEvery answer against golds of other items\n\n{'set':44}{'pairs':>9}{'wrongly right':>15}{'math-verify':>13}"
    )
    for name, items, score, kin in (
        ("GSM8K solutions with ####", gsm8k_marked, ours_gsm8k, gsm8k_value),
        ("MATH outputs", math, ours_math, str),
    ):
        pairs = list(strangers(items, others, kin))
        wrong = 0
        same = 0
        for gold, text in pairs:
            ours, theirs = score(gold, text), math_verify_parsed_once(gold, text)
            same += ours == theirs
            # Two questions can have one answer, written alike or not: right then, and math-verify says so too.
            wrong += ours and not theirs
            if ours != theirs:
                disagreements.append((f"{name}, others", gold, text[-70:], f"math-verify {theirs}, ours {ours}"))
        print(f"{name:44}{len(pairs):9}{wrong:15}{same / len(pairs):13.2%}")

    print(f"\nEvery gold against itself, and against {others} others of its set, each boxed\n")
    print(f"{'set':44}{'golds':>9}{'itself':>10}{'others':>9}{'math-verify':>13}")
    for name, golds in eval_golds(data).items():
        rng = random.Random(0)
        itself = same = pairs = 0
        for gold in golds:
            first = gold if isinstance(gold, str) else gold[0]
            right = ours_math(gold, f"\\boxed{{{first}}}")
            itself += right
            if not right:
                disagreements.append((f"{name}, itself", gold, first, "ours False"))
            for other in [gold, *rng.choices(golds, k=others)]:
                text = f"\\boxed{{{other if isinstance(other, str) else other[0]}}}"
                ours, theirs = ours_math(gold, text), math_verify_parsed_once(gold, text)
                pairs += 1
                same += ours == theirs
                if ours != theirs:
                    disagreements.append((f"{name}, others", gold, text, f"math-verify {theirs}, ours {ours}"))
        print(f"{name:44}{len(golds):9}{itself / len(golds):10.2%}{pairs - len(golds):9}{same / pairs:13.2%}")

    print(f"\n{len(disagreements)} disagreements")
    for where, gold, text, verdicts in disagreements:
        print(f"  {where}: gold {gold!r}, answer {text!r}: {verdicts}")


@cache
def gsm8k_value(gold: str):
    return gsm8k.read_gold(gold)


def strangers(items, others: int, kin):
    """(another item's gold, text): for each answer `others` golds drawn from those that differ from its own."""
    rng = random.Random(0)
    golds = sorted({gold for gold, _, _ in items})
    for own, text, _ in items:
        for gold in rng.sample(golds, others):
            if kin(gold) != kin(own):
                yield gold, text


# ---- throughput ------------------------------------------------------------------------------------------------


def forget() -> None:
    """Empties every cache of ours: this process's, and the workers' by having fresh ones forked. As in training, and as
    plain math-verify is here, sympy is warm: the fresh worker has compared other answers before.
    """
    cached = [expression._readable, expression._same, answer.read, grammar.mark, number.number]
    cached += [gsm8k.read_gold, units.read, guard._asked]
    for function in cached:
        function.cache_clear()
    for pid in guard.pool().processes()[1:]:
        os.kill(pid, signal.SIGKILL)
    for other in ("\\sqrt{2} + 1", "\\frac{2}{x}"):
        guard.equal(("\\frac{3}{x}",), (other,))


def passes(items, load: str, repeated: bool) -> list[list]:
    """The items in one pass, or the first answer to every question, then the second, ... with no question twice."""
    if repeated:
        return [items]
    answers = ANSWERS[load]
    return [items[i::answers] for i in range(answers)]


def seconds(score, items, load: str, repeated: bool, threads: int = 1) -> float:
    total = 0.0
    for part in passes(items, load, repeated):
        if score in (ours_gsm8k, ours_math):
            forget()
        if threads == 1:
            start = time.perf_counter()
            for gold, text, _ in part:
                score(gold, text)
        else:
            with ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                list(pool.map(lambda item: score(*item[:2]), part))
        total += time.perf_counter() - start
    return total


def half(name: str, load: str, data: str, which: int, repeated: bool, barrier: float) -> float:
    """Seconds for every second question, in a process of its own that begins at the time `barrier`."""
    logging.disable(logging.WARNING)
    items = LOADERS[load](Path(data))
    part = [item for i, item in enumerate(items) if i // ANSWERS[load] % 2 == which]
    globals()[name](*part[0][:2])
    forget()
    time.sleep(max(0.0, barrier - time.time()))
    return seconds(globals()[name], part, load, repeated)


LOADERS = {
    "GSM8K, A: n": lambda data: gsm8k_solutions(data, "A:"),
    "GSM8K, ####": lambda data: gsm8k_solutions(data, "####"),
    "MATH": math_outputs,
}
ANSWERS = {"GSM8K, A: n": 4, "GSM8K, ####": 4, "MATH": 8}  # to each question


def throughput(data: Path, repeat: int) -> None:
    print(
        "\nThroughput: answers a second, as a multiple of plain math-verify in one process, and agreement with labels\n"
    )
    print(f"{'set':14}{'scorer':34}{'processes':>10}{'golds':>12}{'answers/s':>12}{'ratio':>8}{'labels':>9}")
    for load, scorers in (
        ("GSM8K, A: n", (math_verify, ours_gsm8k, verl_math_verify, verl_gsm8k)),
        ("GSM8K, ####", (math_verify, ours_gsm8k, verl_math_verify, verl_gsm8k)),
        ("MATH", (math_verify, ours_math, verl_math_verify, verl_math_reward)),
    ):
        items = LOADERS[load](data)
        base = {}
        for score in scorers:
            labels = sum(score(gold, text) == label for gold, text, label in items) / len(items)  # also warms up
            # veRL's math_verify has a pool of four of its own, and is called from threads.
            threads = 8 if score is verl_math_verify else 1
            for repeated in (True, False):
                took = statistics.median(seconds(score, items, load, repeated, threads) for _ in range(repeat))
                rate = len(items) / took
                base.setdefault(repeated, rate)
                line(load, score, "4 + 1" if threads > 1 else "1", repeated, rate, base[repeated], labels)
            if score in (math_verify, ours_gsm8k, ours_math):
                for repeated in (True, False):
                    rate = len(items) / in_two_processes(score, load, data, repeated)
                    line(load, score, "2", repeated, rate, base[repeated], labels)
        print()


def in_two_processes(score, load: str, data: Path, repeated: bool) -> float:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        barrier = time.time() + 12  # both have imported and loaded by then
        halves = [pool.submit(half, score.__name__, load, str(data), i, repeated, barrier) for i in range(2)]
        return max(h.result() for h in halves)


def line(load: str, score, processes: str, repeated: bool, rate: float, base: float, labels: float) -> None:
    golds = "repeated" if repeated else "once"
    print(
        f"{load:14}{score.__name__:34}{processes:>10}{golds:>12}{rate:12.0f}{rate / base:7.1f}x{labels:9.2%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with verifier/ and eval/")
    parser.add_argument("--only", choices=("agreement", "throughput"))
    parser.add_argument("--others", type=int, default=10, help="golds of other items that each answer is tried on")
    parser.add_argument("--repeat", type=int, default=3, help="each figure is the median of so many runs")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    if args.only != "throughput":
        agreement(args.data, args.others)
    if args.only != "agreement":
        throughput(args.data, args.repeat)


if __name__ == "__main__":
    main()
