"""Full determinism for groups: seeds and orders that depend on nothing but the run's own state.

That a resumed run samples what the undisturbed one did is shown by a real one: tests/test_run.py and tests/drills.
"""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from gpg_verl.determinism import priority_of, seed_of
from gpg_verl.training.keys import RowKey, in_dispatch_order

STEPS, PLACES, SESSIONS = (0, 1, 2, 499), range(20), range(8)
RESPONSES = list(itertools.product(STEPS, (False, True), PLACES, SESSIONS))


def test_every_response_has_a_seed_and_a_name_of_its_own():
    seeds = {seed_of(seed, *response) for seed in (0, 42) for response in RESPONSES}
    assert len(seeds) == 2 * len(RESPONSES)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({priority_of(*response) for response in RESPONSES}) == len(RESPONSES)


def test_a_seed_is_the_same_in_every_process():
    assert seed_of(42, 1, False, 0, 0) == 3493009573867764305


def test_names_are_in_the_order_of_dispatch():
    in_order = sorted((r for r in RESPONSES if not r[1]), key=lambda r: (r[0], r[2], r[3]))
    assert in_order == sorted(in_order, key=lambda r: priority_of(*r))
    assert 0 <= priority_of(2**19, True, 2**25, 2**15) < 2**63  # what vLLM and TransferQueue take


@given(st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_when_they_finished(chance: random.Random):
    expected = [f"{uid}_{session}_{output}" for uid in "cab" for session in range(11) for output in range(2)]
    keys = chance.sample(expected, len(expected))
    order = in_dispatch_order([RowKey.of(key) for key in keys], {uid: place for place, uid in enumerate("cab")})
    assert [keys[row] for row in order] == expected
