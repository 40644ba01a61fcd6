"""States and parameters equal the recorded ones, so that refactoring changes no bit."""

import pytest

from tests.tools import record

EVERY = 24  # `python -m tests.tools.record --check` checks all cases.


@pytest.fixture(scope="module")
def on_record():
    return record.read()


def test_the_record_has_all_cases(on_record):
    assert {name for name, _ in record.cases()} <= {
        name.rsplit(", ", 1)[0] for name in on_record
    } | {name.rsplit(", ", 2)[0] for name in on_record}
    assert len(on_record) > 900


@pytest.mark.slow
@pytest.mark.bits
def test_states_and_parameters_are_those_on_record(on_record):
    made = list(record.outcomes(slice(0, None, EVERY)))
    assert len(made) > 30
    assert [x for name, *now in made for x in record.differences(name, on_record[name], now)] == []
