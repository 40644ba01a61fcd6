"""`help(adam_jax.nadamw)` explains every argument, `help(adam_jax.nadam)` those that it adds."""

import inspect
import re
from collections import Counter

import pytest

import adam_jax

FUNCTIONS = {n: f for n in adam_jax.__all__ if inspect.isfunction(f := getattr(adam_jax, n))}
MEMBERS = {
    name: function
    for name, function in FUNCTIONS.items()
    if name.startswith("scale_by_") or "learning_rate" in inspect.signature(function).parameters
}


REST = re.compile(
    r"^The (other )?arguments are those of `(\w+)`"
    r"(?:, which lists errors, differences and sources)?\.$",
    re.MULTILINE,
)


def explained(function):
    """The entries of `Args:` by argument, in their order."""
    args = re.search(r"^Args:\n(.*?)\n\n", inspect.getdoc(function), re.DOTALL | re.MULTILINE)
    if args is None:
        return {}
    entries = re.split(r"^  (?=\w)", args[1], flags=re.MULTILINE)
    assert entries.pop(0) == ""
    return {name: " ".join(text.split()) for name, text in (e.split(": ", 1) for e in entries)}


def explains_the_rest(function):
    """The function whose docstring has the other arguments; None if this one has them all."""
    doc = inspect.getdoc(function)
    assert doc.count("arguments are those of") == len(REST.findall(doc)) <= 1
    sentence = REST.search(doc)
    return sentence and MEMBERS[sentence[2]]


def test_all_members_are_looked_at():
    aliases = {name for name in MEMBERS if not name.startswith("scale_by_")}
    assert len(aliases) >= 18 and {"adamw", "lamb", "schedule_free_adamw"} <= aliases
    assert len(MEMBERS) - len(aliases) >= 13


@pytest.mark.parametrize("name", MEMBERS)
def test_every_argument_is_explained(name):
    function = MEMBERS[name]
    parameters = inspect.signature(function).parameters.values()
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    entries, rest = explained(function), explains_the_rest(function)
    assert all(entries.values())
    assert list(entries) == [p.name for p in parameters if rest is None or p.name in entries]
    if rest is not None:
        assert rest.__module__ == function.__module__ and explains_the_rest(rest) is None
        assert bool(entries) == bool(REST.search(inspect.getdoc(function))[1])
        others = {p.name for p in parameters} - set(entries)
        assert others and others <= set(inspect.signature(rest).parameters)
        assert others <= set(explained(rest))


def test_each_file_explains_an_argument_once():
    entries = [
        (function.__module__, *entry)
        for function in MEMBERS.values()
        for entry in explained(function).items()
    ]
    assert [entry for entry, n in Counter(entries).items() if n > 1] == []


@pytest.mark.parametrize("name", MEMBERS)
def test_nobody_is_sent_elsewhere(name):
    assert {a: text for a, text in explained(MEMBERS[name]).items() if "see `" in text} == {}


@pytest.mark.parametrize("name", MEMBERS)
def test_the_state_the_errors_and_the_paper(name):
    doc, rest = inspect.getdoc(MEMBERS[name]), explains_the_rest(MEMBERS[name])
    returns = re.search(r"^Returns:\n(?:  .*\n?)+", doc, re.MULTILINE)
    assert returns and "state" in returns[0]
    headings = ["\nReturns:\n", "\nRaises:\n"]
    if name != "scale_by_learning_rate":
        headings.append("\nReference: ")
    if rest is not None and "which lists errors" in doc:
        assert not any(heading in doc for heading in headings[1:])
        doc = inspect.getdoc(rest)
    places = [doc.find(heading) for heading in headings]
    assert -1 not in places and places == sorted(places), dict(zip(headings, places, strict=True))
