"""docs/migrating/optax.md: each table row matches both signatures, and runs in both libraries."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue.pages import DOCS, code, codes, table

PAGE = DOCS / "migrating" / "optax.md"
ADAMW = table(PAGE, "## Every argument of `optax.adamw`")
OTHERS = table(PAGE, "## The other members")
READ_DIFFERENTLY = table(PAGE, "## Where arguments are read differently")
REQUIRED = inspect.Parameter.empty
VALUES = {"AT_LEAST_FLOAT32": adam_jax.AT_LEAST_FLOAT32, "required": REQUIRED, "...": "a function"}

pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax needs it.

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array([0.5, -0.25, 2.0])}
# For each argument a value that is not the default and that both libraries accept.
GIVEN = {
    "learning_rate": lambda count: 0.1 / (1 + count),
    "b1": 0.7,
    "b2": 0.9,
    "b3": 0.95,
    "alpha": 3.0,
    "eps": 1e-2,
    "eps_root": 1e-3,
    "mu_dtype": jnp.bfloat16,
    "weight_decay": 0.3,
    "mask": {"w": True, "b": False},
    "nesterov": True,
    "bias_correction_mu": False,
    "bias_correction_nu": False,
    "threshold": 4.5,
    "use_clipping": False,
    "clip_value_fn": lambda step: 0.3 + 0 * step,
    "warmup_steps": 3,
    "weight_lr_power": 1.0,
    "state_dtype": jnp.float32,
}


def value(text):
    return VALUES[text] if text in VALUES else eval(text, {})


def shown(default):
    return "a function" if callable(default) and default is not REQUIRED else default


def defaults(f):
    """Arguments and their defaults; functions are replaced by one placeholder."""
    return {p.name: shown(p.default) for p in inspect.signature(f).parameters.values()}


def optax_member(name):
    module = optax.contrib if name.startswith("contrib.") else optax
    return getattr(module, name.removeprefix("contrib."))


def arguments(cell):
    """Parses `b1=0.9`, `mask=None` into a dictionary."""
    parts = [text.partition("=") for text in codes(cell)]
    return {name: value(text or "required") for name, _, text in parts}


def path(tx, params, steps=6, scale=1.0):
    """The parameters after some steps with gradients of various magnitudes."""
    rng = np.random.default_rng(0)
    state, found, update = tx.init(params), [], jax.jit(tx.update)
    for _ in range(steps):
        grads = jax.tree.map(
            lambda p: jnp.asarray(scale * rng.normal(size=p.shape), p.dtype), params
        )
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.concatenate([np.ravel(np.float32(x)) for x in jax.tree.leaves(params)]))
    return np.stack(found)


def same(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_every_argument_of_adamw_is_there_with_its_defaults():
    theirs, ours = defaults(optax.adamw), defaults(adam_jax.adamw)
    assert [code(row["argument"]) for row in ADAMW] == list(theirs)
    for row in ADAMW:
        name = code(row["argument"])
        assert value(row["default in Optax"].strip("`")) == theirs[name], name
        assert value(row["default here"].strip("`")) == ours[name], name
        assert row["meaning here"].startswith("the same"), name


def test_every_argument_of_the_other_members_is_there_with_its_defaults():
    members = {"adamw"} | {code(row["Optax"]).removeprefix("contrib.") for row in OTHERS}
    aliases = {name for name in adam_jax.__all__ if next_parameter(name) == "learning_rate"}
    aliases = {name for name in aliases if hasattr(optax, name) or hasattr(optax.contrib, name)}
    assert members == aliases - {"scale_by_learning_rate"}
    for row in OTHERS:
        name = code(row["Optax"])
        listed = arguments(row["its arguments and their defaults"])
        assert list(listed) == [n for n in defaults(optax_member(name))]
        assert listed == defaults(optax_member(name)), name
        ours = defaults(getattr(adam_jax, name.removeprefix("contrib.")))
        expected = listed | arguments(row["other defaults here"])
        assert {n: ours[n] for n in listed} == expected, name


def next_parameter(name):
    f = getattr(adam_jax, name)
    return next(iter(inspect.signature(f).parameters), None) if inspect.isfunction(f) else None


# Arguments that hide another one, or that round, are tested alone.
ALONE = ("mu_dtype", "use_clipping")
# Here schedule_free_adamw follows its authors, see tests/family/test_schedule_free.py.
UNLIKE = ("warmup_steps",)
CASES = [
    pytest.param(name, given, id=f"{name}-{'-'.join(given)}")
    for name in ["adamw", *(code(row["Optax"]) for row in OTHERS)]
    for known in [list(defaults(optax_member(name)))]
    for given in [
        [n for n in known if n not in ALONE + UNLIKE],
        *([n] for n in ALONE if n in known),
    ]
]


@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_arguments_do_what_they_do_in_optax(name, given):
    numbers = {"learning_rate": 0.1} | {argument: GIVEN[argument] for argument in given}
    theirs = optax_member(name)(**numbers)
    ours = getattr(adam_jax, name.removeprefix("contrib."))(**numbers)
    # bfloat16 averages: Optax rounds the terms before adding them, we round the sum.
    tolerance = 2e-2 if "mu_dtype" in given else 2e-5
    same(path(ours, PARAMS), path(theirs, PARAMS), tolerance)


def test_all_that_members_take_besides_is_listed():
    besides = {}
    for row in [*OTHERS, {"Optax": "`adamw`"}]:
        name = code(row["Optax"])
        ours = inspect.signature(getattr(adam_jax, name.removeprefix("contrib."))).parameters
        for argument in ours.keys() - defaults(optax_member(name)).keys():
            assert ours[argument].kind == inspect.Parameter.KEYWORD_ONLY, (name, argument)
            besides.setdefault(argument, set()).add(ours[argument].default)
    rows = table(PAGE, "## Arguments that Optax lacks")
    listed = {code(row["argument"]): {value(code(row["default"]))} for row in rows}
    assert listed == besides


@pytest.mark.parametrize(
    "row", table(PAGE, "## Wrappers and combinators"), ids=lambda row: row["Optax"][:40]
)
def test_what_goes_around_makes_the_same_steps(row):
    names = {"o": optax, "a": adam_jax}
    ours, theirs = (eval(code(row[column]), names) for column in ("here", "Optax"))
    theirs = theirs if hasattr(theirs, "update") else theirs.gradient_transformation()
    same(path(ours, PARAMS, steps=8), path(theirs, PARAMS, steps=8))


def dtypes(state):
    return [x.dtype for x in jax.tree.leaves(state)]


def moments(library, params):
    return dtypes(library.adamw(1e-3).init(params)[0].mu)


BFLOAT16 = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)


def bfloat16_parameters():
    assert set(moments(optax, BFLOAT16)) == {np.dtype(jnp.bfloat16)}
    assert set(moments(adam_jax, BFLOAT16)) == {np.dtype(np.float32)}


def zero_gradient():
    params = {"w": jnp.ones(3, jnp.float16)}
    assert np.isnan(path(optax.adam(1e-3), params, 1, scale=0.0)).all()
    assert (path(adam_jax.adam(1e-3), params, 1, scale=0.0) == 1).all()


def state_in_float16():
    params = {"w": jnp.ones(3, jnp.float16)}
    state = optax.adam(1e-3).init(params)
    assert state[0].nu["w"].dtype == jnp.float16
    with pytest.raises(ValueError, match="convert_state"):
        adam_jax.adam(1e-3).update(params, state, params)


def wider_gradients():
    def changes(library):
        tx = library.adamw(1e-3)
        state = tx.init(BFLOAT16)
        return dtypes(state) != dtypes(tx.update(PARAMS, state, BFLOAT16)[1])

    assert (changes(optax), changes(adam_jax)) == (True, False)


def hyperparameters_in_the_state():
    assert np.isnan(path(optax.inject_hyperparams(optax.adamw)(1e-3), BFLOAT16)).any()
    ours = path(adam_jax.with_hyperparams(adam_jax.adamw)(1e-3), BFLOAT16)
    np.testing.assert_array_equal(ours, path(adam_jax.adamw(1e-3), BFLOAT16))


def b2_of_one():
    assert np.isnan(path(optax.adamw(1e-3, b2=1.0), PARAMS)).any()
    with pytest.raises(ValueError, match="b2 must be in"):
        adam_jax.adamw(1e-3, b2=1.0)


def integers_among_the_parameters():
    params = {"w": jnp.ones(2), "n": jnp.arange(2)}
    grads = {"w": jnp.ones(2), "n": None}
    new, state = adam_jax.step(
        adam_jax.adamw(1e-3), grads, adam_jax.adamw(1e-3).init(params), params
    )
    np.testing.assert_array_equal(new["n"], params["n"])
    assert isinstance(state[0].mu["n"], optax.MaskedNode)
    assert optax.adamw(1e-3).init(params)[0].mu["n"].dtype == jnp.int32
    with pytest.raises(ValueError, match="'n'"):
        real = {"w": jnp.ones(2), "n": jnp.ones(2)}
        adam_jax.step(adam_jax.adamw(1e-3), real, adam_jax.adamw(1e-3).init(params), params)


def the_same_numbers():
    assert optax.adamw(1e-3) != optax.adamw(1e-3)
    assert adam_jax.adamw(1e-3) == adam_jax.adamw(1e-3)
    assert hash(adam_jax.adamw(1e-3)) == hash(adam_jax.adamw(1e-3))


def another_learning_rate():
    compiled = []

    @jax.jit
    def one_step(tx, grads, state, params):
        compiled.append(1)
        return tx.update(grads, state, params)

    for rate in (1e-3, 1e-2):
        tx = adam_jax.adamw(rate)
        one_step(tx, PARAMS, tx.init(PARAMS), PARAMS)
    assert len(compiled) == 1
    with pytest.raises(TypeError):
        tx = optax.adamw(1e-3)
        one_step(tx, PARAMS, tx.init(PARAMS), PARAMS)


DIFFERENCES = {
    "bfloat16 parameters": bfloat16_parameters,
    "float16 parameters, a gradient of zero": zero_gradient,
    "float16 parameters, a state of Optax's": state_in_float16,
    "gradients wider than the parameters": wider_gradients,
    "hyperparameters in the state, bfloat16 parameters": hyperparameters_in_the_state,
    "`b2=1.0`": b2_of_one,
    "integers, booleans, random keys among the parameters": integers_among_the_parameters,
    "two optimizers with the same numbers": the_same_numbers,
    "another learning rate, the transformation an argument of jit": another_learning_rate,
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_where_the_results_differ(case):
    DIFFERENCES[case]()


def test_no_difference_is_claimed_that_is_not_tested():
    assert [row["case"] for row in table(PAGE, "## Where the results differ")] == list(DIFFERENCES)


def test_a_mask_that_is_a_function_is_asked_about_the_parameters():
    """The row of `mask`: Optax calls it with the updates, which may have other dtypes."""
    asked = []

    def mask(tree):
        asked.append(jax.tree.leaves(tree)[0].dtype)
        return jax.tree.map(lambda x: True, tree)

    for library, seen in ((optax, jnp.float32), (adam_jax, jnp.bfloat16)):
        tx = library.adamw(1e-3, mask=mask)
        state = tx.init(BFLOAT16)
        asked.clear()
        tx.update(PARAMS, state, BFLOAT16)
        assert set(asked) == {np.dtype(seen)}, library


def test_mu_dtype_none_is_the_dtype_of_the_parameter():
    mu = adam_jax.adamw(1e-3, mu_dtype=None).init(BFLOAT16)[0].mu
    assert set(dtypes(mu)) == {np.dtype(jnp.bfloat16)}


def made(library, row):
    written = code(row["written"])
    if library is adam_jax:
        written = written.replace("contrib.", "")
    return eval(written, {"o": library, "jnp": jnp})


def update(library, row, grads, params=None):
    tx = made(library, row)
    return tx.update(grads, tx.init(params if params is not None else grads), params)[0]


def scalar_parameter(row):
    shapes = [update(o, row, jnp.ones(()), jnp.ones(())).shape for o in (optax, adam_jax)]
    assert shapes == [(1,), ()]


def gradient_of_zero(row):
    theirs, ours = (update(o, row, jnp.zeros(3)) for o in (optax, adam_jax))
    assert np.isnan(theirs).all() and (ours == 0).all()


def nan_in_the_gradient(row):
    grads = jnp.array([1.0, jnp.nan])
    assert np.isnan(update(optax, row, grads)).all()
    np.testing.assert_array_equal(update(adam_jax, row, grads), grads)


def no_links(row):
    with pytest.raises(ValueError, match="not enough values"):
        made(optax, row)
    np.testing.assert_array_equal(update(adam_jax, row, jnp.ones(3)), 1)


def python_floats(row):
    params, grads = {"w": 2.0}, {"w": 0.5}
    with pytest.raises(AttributeError, match="dtype"):
        update(optax, row, grads, params)
    expected = update(adam_jax, row, *(jax.tree.map(jnp.asarray, tree) for tree in (grads, params)))
    np.testing.assert_array_equal(update(adam_jax, row, grads, params)["w"], expected["w"])


def refused(row):
    assert row["here"].startswith("an error")
    grads = {"w": jnp.ones(3), "b": jnp.ones(1)}
    shapes = jax.tree.map(jnp.shape, update(optax, row, grads, grads))
    assert shapes["b"] == ((3,) if "(3," in row["written"] else (1,))
    assert ("shape" in row["Optax 0.2.8"]) == (shapes["b"] == (3,))
    with pytest.raises(ValueError, match="must be"):
        made(adam_jax, row)


DIFFERENT = {
    "a parameter that is a scalar": scalar_parameter,
    "a gradient of zero": gradient_of_zero,
    "a NaN in the gradient": nan_in_the_gradient,
    "": refused,
    "parameters that are Python floats": python_floats,
}


def words(row):
    """The difference, behind the expression; nothing where ours is an error."""
    return re.sub(r"^`[^`]*`(, )?", "", row["written"])


@pytest.mark.parametrize("row", READ_DIFFERENTLY, ids=lambda row: row["written"])
def test_what_is_written_does_what_the_row_says(row):
    check = no_links if code(row["written"]) == "o.chain()" else DIFFERENT[words(row)]
    check(row)


def test_every_kind_of_row_is_there():
    assert {words(row) for row in READ_DIFFERENTLY} == set(DIFFERENT)
