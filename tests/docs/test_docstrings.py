"""`help(adam_jax.adamw)` explains every argument, another member those that are its own."""

import inspect
import re
import typing
from collections import Counter

import pytest

import adam_jax

FUNCTIONS = {n: f for n in adam_jax.__all__ if inspect.isfunction(f := getattr(adam_jax, n))}
MEMBERS = {
    name: function
    for name, function in FUNCTIONS.items()
    if function.__module__.startswith("adam_jax.family.")
}


REST = re.compile(
    r"^(?:The|u and the) (other )?arguments"
    r"((?:, the arithmetic)?(?: and|,) the errors(?: and the differences from Optax)?)?"
    r" are those of\s`(\w+)`(, which explains all else)?\.",
    re.MULTILINE,
)
"""Where the rest is explained: in the same file, or by `adamw`."""

STEP = "θ ← θ - α_t·u"
FILES = sorted({f.__module__ for f in MEMBERS.values()} - {"adam_jax.family.alias"})


def explained(function):
    """The entries of `Args:` by argument, in their order."""
    args = re.search(r"^Args:\n(.*?)\n\n", inspect.getdoc(function), re.DOTALL | re.MULTILINE)
    if args is None:
        return {}
    entries = re.split(r"^  (?=\w)", args[1], flags=re.MULTILINE)
    assert entries.pop(0) == ""
    return {name: " ".join(text.split()) for name, text in (e.split(": ", 1) for e in entries)}


def rest_of(function):
    """The sentence that names the function whose docstring has the rest; None if there is none."""
    doc = inspect.getdoc(function)
    assert doc.count("are those of") == len(REST.findall(doc)) <= 1
    return REST.search(doc)


def sources(function):
    """The function and those that explain the rest of its arguments, in the order of reading."""
    found, sentence = [function], rest_of(function)
    while sentence is not None:
        before, function = function, MEMBERS[sentence[3]]
        assert function.__module__ == before.__module__ or function is adam_jax.adamw
        found.append(function)
        sentence = rest_of(function)
    return found


@pytest.mark.parametrize("name", MEMBERS)
def test_every_argument_is_explained(name):
    function = MEMBERS[name]
    parameters = inspect.signature(function).parameters.values()
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    entries, (_, *rest) = explained(function), sources(function)
    assert all(entries.values())
    assert list(entries) == [p.name for p in parameters if not rest or p.name in entries]
    assert not rest or bool(entries) == bool(rest_of(function)[1])
    others = [p for p in parameters if p.name not in entries]
    assert bool(others) == bool(rest)
    for parameter in others:
        first = next(source for source in rest if parameter.name in explained(source))
        assert same_kind(parameter, first)


def same_kind(parameter, function):
    """Whether a function has an argument of this name and type; None may be allowed as well."""
    there = inspect.signature(function).parameters[parameter.name].annotation
    alternatives = {str(x) for x in typing.get_args(there)} or {str(there)}
    here = {str(x) for x in typing.get_args(parameter.annotation)} or {str(parameter.annotation)}
    return here - {str(type(None))} == alternatives - {str(type(None))}


@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_as_elsewhere_is_explained_there(name):
    parameters = inspect.signature(MEMBERS[name]).parameters
    for argument, text in explained(MEMBERS[name]).items():
        assert "see `" not in text, argument
        for other in re.findall(r"as in `(\w+)`", text):
            assert "as in `" not in explained(adam_jax.__dict__[other])[argument]
            assert same_kind(parameters[argument], adam_jax.__dict__[other])
    doc = inspect.getdoc(MEMBERS[name])
    for other in re.findall(r"The\s+state\s+is\s+that\s+of\s+`(\w+)`", doc):
        assert re.search(r"state is a tuple:\s", inspect.getdoc(MEMBERS[other]))
    as_there = r"(?:the differences from Optax are those of|iffers from Optax(?:'s)? as)\s+`(\w+)`"
    for other in re.findall(as_there, doc):
        assert "\nDiffers from Optax in: " in inspect.getdoc(MEMBERS[other])


def test_each_file_explains_an_argument_once():
    entries = [
        (function.__module__, *entry)
        for function in MEMBERS.values()
        for entry in explained(function).items()
    ]
    assert [entry for entry, n in Counter(entries).items() if n > 1] == []


def formula(function):
    """The indented lines before the first heading."""
    beginning, *_ = re.split(r"^\w+:$", inspect.getdoc(function), flags=re.MULTILINE)
    return re.findall(r"^    (\S.*)$", beginning, re.MULTILINE)


@pytest.mark.parametrize("file", FILES)
def test_each_file_has_the_formula_once(file):
    functions = [f for f in MEMBERS.values() if f.__module__ == file]
    [full] = [f for f in functions if len(formula(f)) > 1]
    assert any(re.search(r"^[xθ] +← .*[uz]", line) for line in formula(full))
    for function in functions:
        if function is full:
            continue
        is_alias = "learning_rate" in inspect.signature(function).parameters
        assert formula(function) == [STEP] * is_alias
        sentence = rest_of(function)
        assert sentence[0].startswith("u and the ") and sentence[3] == full.__name__


@pytest.mark.parametrize("name", MEMBERS)
def test_the_state_the_errors_and_the_paper(name):
    doc, rest = inspect.getdoc(MEMBERS[name]), rest_of(MEMBERS[name])
    assert re.search(r"^Returns:\n(?:  .*\n)*?  .*\bstate\b|\bThe state is\s", doc, re.MULTILINE)
    if rest and rest[4]:
        assert not any(heading in doc for heading in ("\nRaises:\n", "\nReference: "))
        doc, rest = inspect.getdoc(MEMBERS[rest[3]]), rest_of(MEMBERS[rest[3]])
    headings = [] if rest and rest[2] else ["\nReturns:\n", "\nRaises:\n"]
    if name != "scale_by_learning_rate":
        headings.append("\nReference: ")
    places = [doc.find(heading) for heading in headings]
    assert -1 not in places and places == sorted(places), dict(zip(headings, places, strict=True))
    assert not (rest and rest[2]) or "\nRaises:\n" in inspect.getdoc(MEMBERS[rest[3]])
