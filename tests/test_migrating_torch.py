"""docs/migrating/pytorch.md: its arguments are PyTorch's, and its pairs make the same steps."""

import numpy as np
import optax
import pytest

import adam_jax
from tests.migrating import check_arguments, pairs
from tests.pages import DOCS, codes, table

torch = pytest.importorskip("torch", reason="PyTorch is in a group of its own: make test-peers")

from tests.test_torch import double_precision, our_path, torch_path  # noqa: E402, F401

PAGE = DOCS / "migrating" / "pytorch.md"
CLASSES = {"Adam": "adam", "AdamW": "adamw", "NAdam": "nadam", "RAdam": "radam", "Adamax": "adamax"}


def test_every_argument_is_there_with_its_defaults():
    check_arguments(PAGE, {getattr(torch.optim, name): ours for name, ours in CLASSES.items()})


@pytest.mark.parametrize(("theirs", "ours"), pairs(PAGE, "PyTorch"), ids=lambda code: code)
def test_the_same_numbers(theirs, ours):
    def build(params, setting):
        del setting
        return [eval(theirs, {"o": torch.optim, "params": list(params.values())})]

    tx = eval(ours, {"a": adam_jax, "optax": optax})
    tiny = np.finfo(np.float64).tiny
    np.testing.assert_allclose(our_path(tx), torch_path(build, None), rtol=1e-9, atol=tiny)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, as it is imported.
def test_what_the_training_loop_names_is_there():
    for row in table(PAGE, "## The rest of a training loop"):
        for name in codes(row["PyTorch"]):
            if name.startswith("torch."):
                __import__(name.rpartition(".")[0])
                assert eval(name, {"torch": torch}), name
        for name in codes(row["here"]):
            assert eval(name.removeprefix("adam_jax."), vars(adam_jax) | {"optax": optax}), name
