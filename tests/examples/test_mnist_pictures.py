"""Reading pictures written by cameras and other programs."""

import io

import numpy as np
import pytest
from PIL import Image

from examples.mnist import data, pictures
from examples.shared.command_line import UserError
from tests.examples.processes import idx, scan


@pytest.fixture(scope="module")
def drawn():
    """A digit on paper, and the image that the reader makes of it."""
    paper = scan(data.load().test_images[1])
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
    exif[0x0112] = 6  # Stored in the sensor's orientation: rotate by 90°.
    found = stored(paper.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(found, expected)


def test_numbers_of_no_known_range_are_refused():
    with pytest.raises(UserError, match="mode F"):
        stored(Image.fromarray(np.zeros((50, 50), np.float32)), "TIFF")


def blank(level, side=28):
    return np.full((side, side), level, np.uint8)


def noisy(level, side=28):
    return np.random.default_rng(0).integers(level - 15, level + 15, (side, side), np.uint8)


def speck(level, side):
    paper = blank(255 - level, side)
    paper[side // 2, side // 2] = level
    return paper


BLANK = {
    **{f"grey {level}": lambda side, v=level: blank(v, side) for level in (0, 40, 100, 255)},
    **{f"noise about {level}": lambda side, v=level: noisy(v, side) for level in (15, 128, 240)},
    "16 bits": lambda side: blank(200, side) * np.uint16(257),
    "a black speck": lambda side: speck(0, side),
    "a white speck": lambda side: speck(255, side),
    "1 bit": lambda side: blank(0, side) > 0,
    "black, transparent": lambda side: np.dstack([blank(0, side)] * 4),
    "red": lambda side: np.dstack([blank(255, side), *[blank(0, side)] * 2]),
    "an alpha of a digit, without a colour": lambda side: np.dstack(
        [*[blank(255, side)] * 3, np.eye(side, dtype=np.uint8) * 255]
    ),
}


@pytest.mark.parametrize("side", [28, 100])
@pytest.mark.parametrize("name", BLANK)
def test_a_blank_picture_shows_no_digit(name, side):
    with pytest.raises(UserError, match="^it shows no digit; expected dark ink"):
        stored(Image.fromarray(BLANK[name](side)))


def test_a_blank_digit_of_an_idx_file_is_named(tmp_path):
    digits = data.load().test_images[:3].copy()
    path = tmp_path / "few-idx3-ubyte"
    for level in (0, 255):
        digits[1] = level
        path.write_bytes(idx(digits))
        with pytest.raises(UserError, match=r"few-idx3-ubyte\[1\] shows no digit"):
            pictures.read_digits(path)


def test_every_digit_of_mnist_shows_one():
    digits = data.load()
    for image in (*digits.train_images, *digits.test_images):
        assert pictures.shows_a_digit(image)
