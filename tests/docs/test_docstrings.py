"""`help(adam_jax.nadamw)` explains every argument, without references to other docstrings."""

import inspect
import re

import pytest

import adam_jax

FUNCTIONS = {n: f for n in adam_jax.__all__ if inspect.isfunction(f := getattr(adam_jax, n))}
MEMBERS = {
    name: function
    for name, function in FUNCTIONS.items()
    if name.startswith("scale_by_") or "learning_rate" in inspect.signature(function).parameters
}


def explained(function):
    """The entries of `Args:` by argument, in their order."""
    args = re.search(r"^Args:\n(.*?)\n\n", inspect.getdoc(function), re.DOTALL | re.MULTILINE)
    assert args
    entries = re.split(r"^  (?=\w)", args[1], flags=re.MULTILINE)
    assert entries.pop(0) == ""
    return {name: " ".join(text.split()) for name, text in (e.split(": ", 1) for e in entries)}


def test_all_members_are_looked_at():
    aliases = {name for name in MEMBERS if not name.startswith("scale_by_")}
    assert len(aliases) >= 18 and {"adamw", "lamb", "schedule_free_adamw"} <= aliases
    assert len(MEMBERS) - len(aliases) >= 13


@pytest.mark.parametrize("name", MEMBERS)
def test_every_argument_is_explained(name):
    function = MEMBERS[name]
    parameters = inspect.signature(function).parameters.values()
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    entries = explained(function)
    assert list(entries) == [p.name for p in parameters]
    assert all(entries.values())


@pytest.mark.parametrize("name", MEMBERS)
def test_nobody_is_sent_elsewhere(name):
    assert {a: text for a, text in explained(MEMBERS[name]).items() if "see `" in text} == {}


@pytest.mark.parametrize("name", MEMBERS)
def test_the_state_the_errors_and_the_paper(name):
    doc = inspect.getdoc(MEMBERS[name])
    headings = ["\nReturns:\n", "\nRaises:\n"]
    if name != "scale_by_learning_rate":
        headings.append("\nReference: ")
    places = [doc.find(heading) for heading in headings]
    assert -1 not in places and places == sorted(places), dict(zip(headings, places, strict=True))
    assert "state" in doc[places[0] : places[1]]
