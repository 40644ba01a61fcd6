"""Gradient release takes the same steps and, on a GPU, holds no array of all gradients."""

import functools

import pytest

from examples.usage import gradient_release as command

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("h200_compiler")
def test_on_a_gpu_it_needs_the_memory_of_one_layer():
    from benchmarks.gpu import compile_for_h200

    compiler = functools.partial(compile_for_h200, donate=(0,))
    whole, released = (
        command.bytes_per_parameter(step, 16, 512, compiler)[1] for step in command.STEPS.values()
    )
    assert released < 1 < 4 < whole


@pytest.mark.usefixtures("standard_promotion")
def test_the_parameters_are_those_of_the_usual_step(tmp_path, capsys):
    command.main(["--fast", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert float(said.split("largest difference of a parameter: ")[1]) < 1e-6
    assert len((tmp_path / "table.md").read_text().splitlines()) == 4
