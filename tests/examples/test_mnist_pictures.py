"""Pictures as cameras and other programs write them."""

import io

import numpy as np
import pytest
from PIL import Image

from examples.mnist import data, pictures


@pytest.fixture(scope="module")
def drawn():
    """A digit, dark on light and larger than MNIST's, and what is made of it."""
    digit = Image.fromarray(255 - data.load().test_images[1]).resize((90, 120))
    paper = Image.new("L", (200, 260), 255)
    paper.paste(digit, (60, 70))
    return paper, pictures.digit_of(paper, "paper")


def stored(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return pictures.digit_of(pictures.open_picture(file, "it"), "it")


def test_sixteen_bits_are_as_eight(drawn):
    paper, expected = drawn
    deep = Image.fromarray(np.asarray(paper).astype(np.uint16) * 257)
    np.testing.assert_array_equal(stored(deep), expected)


def test_a_picture_is_turned_as_it_is_to_be_seen(drawn):
    paper, expected = drawn
    exif = Image.Exif()
    exif[0x0112] = 6  # Stored as the sensor lies: to be turned by a quarter.
    found = stored(paper.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(found, expected)


def test_numbers_of_no_known_range_are_refused():
    with pytest.raises(data.DataError, match="mode F"):
        stored(Image.fromarray(np.zeros((50, 50), np.float32)), "TIFF")
