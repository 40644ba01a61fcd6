"""Converts a picture of a digit, of any size, to the format of MNIST's digits."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from examples.mnist import data
from examples.shared.command_line import UserError

# What `digit_of` does; the metadata of an exported model repeats these words.
PREPROCESSING = {
    "side": data.SIDE,
    "box": 20,
    "pixels": "uint8, 0 paper to 255 ink",
    "placing": "cut to the ink, longer side scaled to the box, centre of mass in the middle",
}
FAINTEST_INK = 64  # above paper
SMALLEST = 5  # pixels along the longer side of a digit; the smallest fonts have 3x5


def open_picture(
    file: Path | BinaryIO, name: object, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """A picture whose header has been read, but not its pixels.

    Args:
      file: the picture.
      name: the name in errors.
      formats: Pillow's names of the allowed formats; None allows all.

    Raises:
      UserError: if it is not such a picture.
    """
    expected = "PNG, JPEG or IDX" if formats is None else " or ".join(formats)
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not a picture (its first bytes match no known format); expected {expected}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # Decoders raise anything for arbitrary bytes.
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{name} cannot be read ({error.strerror})") from error
        raise _no_picture(name, error) from error


def digit_of(picture: Image.Image, name: object) -> np.ndarray:
    """The digit that a picture shows, uint8 [28, 28], light on dark.

    The picture is converted to grey, inverted to light on dark if its border is light, cropped to
    the ink, scaled to a longer side of 20 pixels, and placed with its centre of mass in the middle
    of 28x28, like MNIST's own digits (LeCun et al. 1998, section III.A).

    Raises:
      UserError: if it cannot be decoded, or is blank.
    """
    try:
        grey = _grey(picture)
    except MemoryError:
        raise
    except Exception as error:
        raise _no_picture(name, error) from error
    if grey.shape == (data.SIDE, data.SIDE) and grey[[0, -1]].mean() < FAINTEST_INK:
        check_ink(grey, name)
        return grey  # One of MNIST's own digits stays unchanged.
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return _centred(255 - grey if border.mean() > 127 else grey, name)


def shows_a_digit(ink: np.ndarray) -> bool:
    """Whether an image, uint8 [height, width], is not blank.

    Paper of one grey, noise on it, and specks count as blank.
    """
    rows, columns = _inked(ink)
    contrast = int(ink.max()) - int(ink.min())
    return contrast > FAINTEST_INK and max(np.ptp(rows), np.ptp(columns)) >= SMALLEST - 1


def check_ink(ink: np.ndarray, name: object) -> None:
    """Raises UserError if an image, uint8 [height, width], is blank."""
    if not shows_a_digit(ink):
        raise _blank(name)


def read_digits(path: Path) -> np.ndarray:
    """Digits of a picture (PNG, JPEG, ...) or an IDX file, uint8 [count, 28, 28], light on dark.

    An IDX file is recognized by its name, like MNIST's: ...-ubyte or ....idx, plain or .gz. A
    picture is one digit.

    Raises:
      UserError: if the file is neither a picture nor an IDX file, or a digit is blank.
    """
    if path.name.removesuffix(".gz").endswith(("-ubyte", ".idx")):
        images = data.read_images(path)
        for i, image in enumerate(images):
            check_ink(image, f"{path}[{i}]")
        return images
    with open_picture(path, path) as picture:
        return digit_of(picture, path)[None]


def _blank(name: object) -> UserError:
    return UserError(f"{name} shows no digit; expected dark ink on light paper or the reverse")


def _no_picture(name: object, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{name} is not a picture that can be decoded ({reason})")


def _grey(picture: Image.Image) -> np.ndarray:
    # Upright: cameras store it in the sensor's orientation.
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        return (np.asarray(picture) >> 8).astype(np.uint8)  # Pillow's conversion clips at 255.
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode}; expected 8 or 16 bits")
    if picture.mode == "L" and "transparency" not in picture.info:
        return np.asarray(picture)
    # Transparent paper counts as white, not black.
    rgba = picture.convert("RGBA")
    paper = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(paper, rgba).convert("L"))


def _inked(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns with ink."""
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > FAINTEST_INK) for axis in (1, 0))
    return rows, columns


def _centred(ink: np.ndarray, name: object) -> np.ndarray:
    check_ink(ink, name)
    rows, columns = _inked(ink)
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = PREPROCESSING["box"] / max(box.shape)
    height, width = (max(1, round(side * scale)) for side in box.shape)
    small = np.asarray(
        Image.fromarray(box).resize((width, height), Image.Resampling.LANCZOS), np.float64
    )
    if not (weight := small.sum()):  # Dots that vanish at this size.
        raise _blank(name)
    top, left = (
        int(np.clip(round(13.5 - (small.sum(1 - axis) * np.arange(n)).sum() / weight), 0, 28 - n))
        for axis, n in enumerate(small.shape)
    )
    digit = np.zeros((data.SIDE, data.SIDE), np.uint8)
    digit[top : top + small.shape[0], left : left + small.shape[1]] = small.round()
    return digit
