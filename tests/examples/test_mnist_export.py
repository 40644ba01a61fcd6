"""An exported model has the checkpoint's outputs without Flax; damaged files are rejected."""

import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples.serving import png, untrained, write_untrained

from examples.mnist import data, evaluate, export, exported, pictures
from tests.examples.processes import ROOT, environment


@pytest.fixture(scope="module")
def images():
    return data.load().test_images[:7]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("exported") / "model.stablehlo")


def test_any_batch_gets_the_models_outputs(images, tmp_path):
    graph, params = untrained("small-cnn")
    export.write(export.classifier("small-cnn", graph, params), tmp_path / "model")
    read = exported.load(tmp_path / "model")
    expected = evaluate.log_probabilities(graph, params, images)
    for count in (1, 7):
        found = read.log_probabilities(images[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-6)


def test_the_file_says_what_goes_in_and_comes_out(file):
    with zipfile.ZipFile(file) as archive:
        metadata = json.loads(archive.read("metadata.json"))
    assert metadata["platforms"] == ["cpu", "cuda"]
    assert metadata["input_shape"] == ["batch", 28, 28] and metadata["input_dtype"] == "uint8"
    assert metadata["labels"] == list("0123456789")
    assert metadata["preprocessing"] == pictures.PREPROCESSING
    program = exported.load(file).program
    assert program.platforms == ("cpu", "cuda")
    assert program.in_avals[0].dtype == jnp.uint8


WITHOUT = """
import runpy, sys
for name in ("flax", "orbax", "orbax.checkpoint", "examples.mnist.models"):
    sys.modules[name] = None  # To import it is an error.
sys.argv[0] = "examples.mnist"
runpy.run_module("examples.mnist", run_name="__main__")
"""


@pytest.mark.smoke
def test_the_file_is_enough_without_flax_and_the_models_code(file, images, tmp_path):
    picture = tmp_path / "digit.png"
    picture.write_bytes(png(images[0]))
    command = [sys.executable, "-W", "error", "-c", WITHOUT, "predict", "--exported", file, picture]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [p] = np.exp(exported.load(file).log_probabilities(images[:1]))
    assert done.stdout == f"{picture}: {p.argmax()} ({p.max():.1%})\n"


def one_line(path, *parts):
    with pytest.raises(exported.ExportError) as error:
        exported.load(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    assert all(part in message for part in parts), message


@settings(max_examples=60, deadline=None, database=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_one_line_or_the_same_model(file, place, flip, cut):
    content = bytearray(file.read_bytes())
    i = int(place * len(content))
    damaged = file.with_name("damaged")
    content[i] ^= flip
    damaged.write_bytes(content[:i] if cut else content)
    try:
        read = exported.load(damaged)
    except exported.ExportError as error:
        assert "\n" not in str(error)
    else:  # Times and flags of a zip archive are ignored.
        assert read.to_bytes() == file.read_bytes()


def packed(path, metadata, program, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(exported.METADATA, metadata)
        archive.writestr(exported.PROGRAM, program)
    return path


def test_a_file_of_another_kind_is_one_line(file, tmp_path):
    path = tmp_path / "wrong"
    with zipfile.ZipFile(file) as archive:
        metadata, program = (archive.read(name) for name in exported.MAX_BYTES)
    one_line(path, "No such file")
    path.write_text("no archive")
    one_line(path, "not a zip file", "export RUN")
    # A file that declares gigabytes is neither unpacked nor read.
    packed(path, metadata, bytes(1 << 22), compression=zipfile.ZIP_DEFLATED)
    one_line(path, "compressed")
    packed(path, bytes(1 << 17), program)
    one_line(path, "metadata.json", "131,072")
    packed(path, metadata, b"no program")
    one_line(path, "not an exported model")
    for name, other in (("format", "2"), ("preprocessing", {}), ("labels", [])):
        packed(path, json.dumps(json.loads(metadata) | {name: other}), program)
        one_line(path, name)
    packed(path, "[" * 5000, program)
    one_line(path, "not an exported model")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../other", b"")
    one_line(path, "expected the members")


@pytest.mark.parametrize("kind", ["fixed batch", "other sides", "custom call"])
def test_a_program_that_is_not_a_classifier_is_one_line(file, tmp_path, kind):
    def program(x):
        flat = x.reshape(x.shape[0], -1).astype(jnp.float32)[:, :10]
        # Calls LAPACK on a CPU.
        return flat @ jnp.linalg.eigh(flat[:1].T @ flat[:1])[1] if kind == "custom call" else flat

    sides = {"fixed batch": "4, 28, 28", "other sides": "b, 9, 9"}.get(kind, "b, 28, 28")
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sides), jnp.uint8)
    wrong = jax.export.export(jax.jit(program), platforms=["cpu"])(shape)
    metadata = exported.describe("wrong", wrong, list("0123456789"))
    path = packed(tmp_path / "wrong", json.dumps(metadata), bytes(wrong.serialize()))
    said = {"fixed batch": "fixed batch size", "other sides": "(9, 9)", "custom call": "lapack"}
    one_line(path, said[kind])
