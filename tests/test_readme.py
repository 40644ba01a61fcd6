"""The README's samples run and end where their comments say; its tables are measured."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.smoke
def test_the_samples_run():
    first, *others = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(first, str(README), "exec"), names)
    np.testing.assert_allclose(names["params"]["w"], [1.0, -2.0, 0.5], atol=0.02)
    np.testing.assert_allclose(names["params"]["b"], 4.0, atol=0.02)
    states, kinds = {}, {"frozen/": "groups", "int8": "bits", "shard_state": "split"}
    for code in others:
        exec(compile(code, str(README), "exec"), names)
        kind = next((kind for word, kind in kinds.items() if word in code), "recipe")
        states[kind] = names["state"]
    assert jax.tree.structure(states["groups"][0].mu["frozen"]["w"]).num_leaves == 0
    assert states["recipe"].gradient_step == 1
    assert "data" in states["split"][0].mu["w"].sharding.spec
    assert states["bits"].inner_state[1][0].mu["w"].codes.dtype == np.int8


def section(heading):
    """The rows of the table under a heading."""
    text = re.split(r"\n#", README.read_text().partition(heading)[2])[0]
    return [line for line in text.partition("\n\nWhere")[0].splitlines() if line[:3] == "| `"]


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows():
    """The table of members: names, slots, bytes."""
    for line in section("### Members"):
        names, _, _, slots, size, _ = cells(line)
        yield re.findall(r"`(\w+)`", names), slots.split(", "), int(size)


def test_the_table_of_members_is_complete():
    def is_alias(f):
        return inspect.isfunction(f) and next(iter(inspect.signature(f).parameters)) == (
            "learning_rate"
        )

    aliases = {n for n in adam_jax.__all__ if is_alias(getattr(adam_jax, n))}
    aliases -= {"scale_by_learning_rate"}
    assert {name for names, _, _ in rows() for name in names} == aliases


@pytest.mark.parametrize(("names", "slots", "size"), list(rows()), ids=str)
def test_states_and_bytes_of_the_table_of_members(names, slots, size):
    params = jax.ShapeDtypeStruct((1000,), jnp.float32)
    for name in names:
        state = jax.eval_shape(getattr(adam_jax, name)(1e-3).init, params)
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        large = {path[-1].name: x for path, x in leaves if x.size > 1}
        assert set(large) == set(slots)
        assert sum(x.size * x.dtype.itemsize for x in large.values()) == 1000 * size


def test_members_that_decay_and_by_how_much():
    for line in section("### Members"):
        names, _, decay, *_ = cells(line)
        by_name = dict(re.findall(r"`(\w+)`: ([\d.e-]+)", decay))
        for name in re.findall(r"`(\w+)`", names):
            parameter = inspect.signature(getattr(adam_jax, name)).parameters.get("weight_decay")
            shown = by_name.get(name, decay if decay and not by_name else None)
            assert (parameter is None) == (shown is None), name
            assert parameter is None or parameter.default == float(shown), name


def test_the_table_of_modifiers_says_where_each_does_not_go():
    aliases = {name for names, _, _ in rows() for name in names}
    for line in section("### Modifiers"):
        (name,), _, excluded, _ = (re.findall(r"`?([^`]*)`?", c)[:1] for c in cells(line))
        modifier = getattr(adam_jax, name)
        refused = set()
        for member in aliases:
            try:
                modifier(getattr(adam_jax, member)(1e-3))
            except ValueError:
                refused.add(member)
        if excluded == ["members without λ"]:
            signatures = {m: inspect.signature(getattr(adam_jax, m)) for m in aliases}
            assert refused == {m for m in aliases if "weight_decay" not in signatures[m].parameters}
        else:
            listed = set(excluded[0].split(", ")) - {""}
            assert refused == listed | {m + "w" for m in listed if m + "w" in aliases}, name


def test_the_sample_of_scale_runs(capsys):
    page = README.parent / "docs" / "scale.md"
    [code] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile(code, str(page), "exec"), {})
    assert capsys.readouterr().out == "(32, 64)\n"


ROOT = README.parent
PAGES = [
    README,
    *(ROOT / page for page in ("examples/README.md", "docs/scale.md", "docs/interchange.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    anchors = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert len(links) >= 2
    paths = [link.partition("#")[0] for link in links if not link.startswith("#")]
    assert [link for link in paths if not (page.parent / link).exists()] == []
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
