"""Names that the package lacks: the error says what to write. `python -m adam_jax`."""

import re
import shlex

import jax
import optax
import pytest

import adam_jax
from tests.catalogue.scripts import process


def message_of(name):
    with pytest.raises(AttributeError) as error:
        getattr(adam_jax, name)
    return str(error.value)


@pytest.mark.parametrize("name", sorted({*optax.__all__} - {*adam_jax.__all__}))
def test_every_name_of_optax_is_found_there_or_here(name):
    assert hasattr(adam_jax, name) or re.search(rf" optax\.(contrib\.)?{name}\.$", message_of(name))


@pytest.mark.parametrize(
    ("name", "instead"),
    {
        "MultiSteps": "adam_jax.accumulate(tx, every) or optax.MultiSteps",
        "apply_updates": "adam_jax.step(tx, grads, state, params)",
        "inject_hyperparams": "adam_jax.with_hyperparams(adamw)",
        "masked": "adam_jax.groups(adamw, ",
        "mup": "adam_jax.transfer.mup",
        "muon": "optax.contrib.muon",
    }.items(),
)
def test_what_is_elsewhere(name, instead):
    assert f"has no attribute {name!r}: write {instead}" in message_of(name)


def test_what_is_nowhere():
    assert message_of("adamv") == "module 'adam_jax' has no attribute 'adamv'"
    assert not hasattr(adam_jax, "__wrapped__")


@pytest.mark.slow
def test_the_package_as_a_command_and_the_commands_that_it_prints():
    first, dtypes, after = process("-m", "adam_jax").stdout.split("\n\n")
    assert first.startswith(f"adam_jax {adam_jax.__version__}, Python ")
    assert f" jax {jax.__version__} " in first
    assert dtypes.startswith(f"{jax.devices()[0]} (")
    said = dict(line.strip().split(": ") for line in dtypes.splitlines()[1:])
    assert len(said) == 7 and {*said.values()} == {"yes"}
    commands = [shlex.split(line) for line in after.splitlines()[1:]]
    names, page, advice = (process(*command[1:]).stdout for command in commands)
    assert names.split() == adam_jax.__all__ and "Loshchilov" in page
    assert "9x128" in advice and "Warning" not in advice
