"""An exported model has the checkpoint's outputs without Flax; damaged files are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from examples.mnist import data, export
from examples.mnist.runs import Config, Run
from examples.mnist.train import build, log_probabilities
from examples.shared.command_line import UserError
from tests.catalogue.scripts import process
from tests.examples.processes import refused


@pytest.fixture(scope="module")
def images():
    return data.load().test_images[:7]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run of a CNN with a checkpoint of its initial state."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    Run.prepare(folder, Config(model="small-cnn"))
    Run(folder).save(1, build(Run(folder).config, steps=1)[1])
    return folder


@pytest.fixture(scope="module")
def file(untrained):
    path = untrained / "model.stablehlo"
    export.write(export.of_run(untrained), path)
    return path


def test_any_batch_gets_the_models_outputs(images, file, untrained):
    graph, state, _, _ = build(Run(untrained).config, steps=1)
    expected = np.exp(log_probabilities(graph, state.params, images))
    program = export.load(file)
    assert program.platforms == ("cpu", "cuda")
    for count in (1, 7):
        found = export.predictor(program)(images[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=1e-6, atol=1e-6)


WITHOUT = """
import runpy, sys
for name in {missing}:
    sys.modules[name] = None  # To import it is an error.
sys.argv[0] = "examples.mnist"
runpy.run_module("examples.mnist", run_name="__main__")
"""


def without(*missing, words, status=0):
    return process("-W", "error", "-c", WITHOUT.format(missing=missing), *words, status=status)


@pytest.mark.smoke
def test_the_file_is_enough_without_flax_and_the_models_code(file, images, tmp_path):
    picture = tmp_path / "digit.png"
    Image.fromarray(images[0]).save(picture)
    done = without("flax", "examples.mnist.models", words=["predict", file, picture])
    [p] = export.predictor(export.load(file))(images[:1])
    assert done.stdout == f"{picture}: {p.argmax()} ({p.max():.1%})\n"


@pytest.mark.slow
def test_without_flatbuffers_an_error_says_what_to_install(untrained, tmp_path):
    words = ["export", untrained, tmp_path / "model"]
    said = without("flatbuffers", words=words, status=1).stderr
    assert said.startswith("error: Please install 'flatbuffers'") and said.count("\n") == 1
    assert "pip install -e '.[examples,serve]'" in said


@settings(max_examples=60, deadline=None, database=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_one_line_or_a_program(file, place, flip, cut):
    content = bytearray(file.read_bytes())
    i = int(place * min(len(content), 2000))  # The rest are weights, as they are.
    damaged = file.with_name("damaged")
    content[i] ^= flip
    damaged.write_bytes(content[:i] if cut else content)
    try:
        export.load(damaged)
    except UserError as error:
        assert "\n" not in str(error) and str(damaged) in str(error)


@pytest.mark.parametrize(("sides", "words"), [("b, 9, 9", "(9, 9)"), (None, "not an exported")])
def test_a_file_of_another_kind_is_one_line(tmp_path, sides, words):
    path = tmp_path / "wrong"
    path.write_text("no program")
    if sides:
        shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sides), jnp.uint8)
        export.write(jax.export.export(jax.jit(lambda x: x), platforms=["cpu"])(shape), path)
    with pytest.raises(UserError, match="write one with: python -m") as error:
        export.load(path)
    assert words in str(error.value)


def test_a_run_without_a_checkpoint_is_one_line(tmp_path):
    Run.prepare(tmp_path / "run", Config())
    said = refused("export", tmp_path / "run")
    assert "has no checkpoint yet; finish an epoch with --resume" in said
