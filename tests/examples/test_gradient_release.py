"""Gradient release takes the same steps and, on a GPU, holds no array of all gradients."""

import sys

import jax
import numpy as np
import pytest

from examples.usage.gradient_release import __main__ as command
from examples.usage.gradient_release import training

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("standard_promotion")
def test_the_parameters_are_those_of_the_usual_step():
    x, y = jax.random.normal(jax.random.key(1), (2, 8, 64))
    start = training.init(command.TX, 4, 64, jax.random.key(0))
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
    [_, compiler] = command.compilers().values()
    found = command.bytes_per_parameter(compiler, 16, 512)
    assert found["released"][1] < 1 < 4 < found["whole"][1]


@pytest.mark.usefixtures("standard_promotion")
def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gradient_release", "--layers", "1", "--steps", "2"])
    command.main()
    said = capsys.readouterr().out
    assert "whole: loss" in said and "released: loss" in said
    difference = float(said.split("largest difference of a parameter: ")[1].split()[0])
    assert difference < 1e-5
    assert said.count("| cpu |") == 2
