"""A rejected step changes only counters: members x storage x wrappers.

The cases cover what `tests.tools.refused.wanted` lists; `python -m tests.tools.refused` runs all.
"""

import pytest

from tests.tools import refused

CASES = [
    pytest.param(
        case, id=case.name, marks=[] if case.member.name == "adamw" else [pytest.mark.slow]
    )
    for case in refused.few()
]


@pytest.mark.parametrize("case", CASES)
def test_a_refused_step_changes_nothing(case):
    assert refused.changed(case) == []


def test_all_that_is_wanted_is_in_a_case():
    found = {parts for case in refused.few() for parts in case.combined()}
    possible = {parts for case in refused.cases() for parts in case.combined()}
    assert set(refused.wanted()) & possible <= found
    assert {x.wrapper for x in refused.few() if x.member.name == "adamw"} == set(refused.AROUND)


def test_a_step_that_is_taken_changes_parameters():
    found = {case.wrapper: case for case in refused.few() if case.member.name == "adamw"}
    assert all(refused.moved(found[name]) for name in ("alone", "recipe"))
