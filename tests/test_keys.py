"""veRL's names of rows, `{uid}_{session}_{output}`: read alike everywhere, whatever a uid holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_verl.training.keys import RowKey, in_dispatch_order, sessions_of

UIDS = st.text("ab_-09", min_size=1, max_size=8)


@given(uid=UIDS, session=st.integers(0, 99), output=st.integers(0, 99))
def test_a_uid_may_hold_the_separator(uid, session, output):
    assert RowKey.of(f"{uid}_{session}_{output}") == (uid, session, output)


def keys(*names: str) -> list[RowKey]:
    return [RowKey.of(name) for name in names]


@pytest.mark.parametrize(
    ("names", "of_row", "final"),
    [
        (["a_0_0", "a_1_0", "b_0_0"], None, None),
        (["a_0_0", "a_0_1", "b_0_0"], [0, 0, 1], [1, 2]),
        (["a_0_10", "a_0_9", "a_1_0"], [0, 0, 1], [0, 2]),  # numbers, not text
        (["p_1_0_0", "p_2_0_0", "p_1_0_1", "p_2_0_1"], [0, 1, 0, 1], [2, 3]),  # two prompts whose uids hold "_"
        (["b_0_1", "a_0_0", "b_0_0"], [0, 1, 0], [0, 1]),  # as they finished
    ],
)
def test_sessions(names, of_row, final):
    sessions = sessions_of(keys(*names))
    found = (None, None) if sessions is None else (sessions.of_row.tolist(), sessions.final.tolist())
    assert found == (of_row, final)


def test_the_order_of_dispatch():
    names = ["p_1_0_0", "p_2_10_0", "p_2_9_1", "p_2_9_0", "unknown_0_0"]
    order = in_dispatch_order(keys(*names), {"p_2": 0, "p_1": 1})
    assert [names[i] for i in order] == ["unknown_0_0", "p_2_9_0", "p_2_9_1", "p_2_10_0", "p_1_0_0"]
