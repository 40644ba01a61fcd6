"""Gradient release takes the same steps and, on a GPU, holds no array of all gradients."""

import functools

import jax
import numpy as np
import pytest

from examples.usage import gradient_release as command

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("standard_promotion")
def test_the_parameters_are_those_of_the_usual_step():
    x, y = jax.random.normal(jax.random.key(1), (2, 8, 64))
    start = command.init(command.TX, 4, 64, jax.random.key(0))
    ends = []
    for step in command.STEPS.values():
        state, train_step = start, jax.jit(lambda s, f=step: f(command.TX, s, x, y))
        losses = []
        for _ in range(4):
            state, loss = train_step(state)
            losses.append(float(loss))
        assert losses[-1] < losses[0]
        ends.append(state)
    for ours, theirs in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("h200_compiler")
def test_on_a_gpu_it_needs_the_memory_of_one_layer():
    from benchmarks.gpu import compile_for_h200

    compiler = functools.partial(compile_for_h200, donate=(0,))
    whole, released = (
        command.bytes_per_parameter(step, 16, 512, compiler)[1] for step in command.STEPS.values()
    )
    assert released < 1 < 4 < whole


@pytest.mark.usefixtures("standard_promotion")
def test_the_command(tmp_path, capsys):
    command.main(["--fast", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert float(said.split("largest difference of a parameter: ")[1]) < 1e-5
    assert len((tmp_path / "table.md").read_text().splitlines()) == 4
