"""The program that README quotes: quoted whole, and as accurate as README says."""

import re

import pytest

from tests.catalogue.pages import ROOT, blocks
from tests.catalogue.scripts import process

PROGRAM = ROOT / "examples" / "flax_mnist.py"


def test_readme_quotes_the_program_whole():
    assert PROGRAM.read_text() in blocks(ROOT / "README.md", "python")


@pytest.mark.slow
def test_the_program_reads_97_of_100_digits():
    # Most of its time is steps, which XLA's usual optimizations make faster.
    said = process(PROGRAM, JAX_DISABLE_MOST_OPTIMIZATIONS="0", XLA_FLAGS="").stdout
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) == 7 and losses[-1] < losses[0] / 5
    assert float(re.search(r"test accuracy ([\d.]+)", said)[1]) > 0.965
