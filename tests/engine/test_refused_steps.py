"""A rejected step changes only counters: members x storage x wrappers.

The cases cover each pair of a storage and a member or a wrapper, and of AdamW and a wrapper;
`python -m tests.refused` runs all combinations.
"""

import pytest

from tests import refused

CASES = [
    pytest.param(
        case, id=case.name, marks=[] if case.member.name == "adamw" else [pytest.mark.slow]
    )
    for case in refused.pairs()
]


@pytest.mark.parametrize("case", CASES)
def test_a_refused_step_changes_nothing(case):
    assert refused.changed(case) == []


def test_each_pair_is_in_a_case():
    found = refused.pairs()
    for kept in (lambda case: case.member.name, lambda case: case.wrapper):
        wanted = {(case.stored, kept(case)) for case in refused.cases()}
        assert wanted == {(case.stored, kept(case)) for case in found}
    assert {x.wrapper for x in found if x.member.name == "adamw"} == set(refused.AROUND)


def test_a_step_that_is_taken_changes_parameters():
    found = {case.wrapper: case for case in refused.pairs() if case.member.name == "adamw"}
    assert all(refused.moved(found[name]) for name in ("alone", "recipe", "pack_small_leaves"))
