"""From the body of a request to digits: PNG, JPEG, JSON, or several pictures in a form.

A body's own claims are checked before it is decoded: a few bytes can unpack to gigabytes, or take
minutes. Its kind is detected from its first bytes, because `curl --data-binary` sends a wrong one.
"""

import asyncio
import io
import json
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
from PIL import Image
from tornado.httputil import (
    HTTPFile,
    HTTPInputError,
    ParseBodyConfig,
    ParseMultipartConfig,
    parse_body_arguments,
)
from tornado.web import HTTPError

from examples.mnist import data, pictures

MAX_BODY = 1 << 20  # bytes
MAX_DIGITS = 64  # in one request
MAX_SIDE = 4096  # pixels
MAX_PIXELS = 1 << 22  # 4 MB of grey, 16 MB while colours and transparency are converted
MAX_SCANS = 32  # of a progressive JPEG, which has about ten; each is a pass over all pixels
MAX_PARTS = 100  # of a file besides its pixels; each may unpack to a megabyte
SMALL = 1 << 14  # pixels, bytes: decoding takes less time than calling another thread

FORMATS = ("PNG", "JPEG")
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
EXPECTED = "expected a PNG, a JPEG, a form of several, or a JSON array [28][28] or [count][28][28]"

# The empty part before the first boundary is counted too.
FORMS = ParseBodyConfig(multipart=ParseMultipartConfig(max_parts=MAX_DIGITS + 1))


class Refused(HTTPError):
    """A request that is answered with an error.

    Attributes:
      text: one line, for the client.
    """

    def __init__(self, status: int, text: str):
        super().__init__(status)
        self.text = text


async def digits_of(body: bytes, content_type: str, decoders: Executor) -> np.ndarray:
    """The digits of a body, uint8 [count, 28, 28], light on dark.

    Args:
      body: of at most MAX_BODY bytes.
      content_type: the header; only a form's matters.
      decoders: for large pictures; its number of threads limits concurrent decoding.

    Raises:
      Refused: if it holds no digit, or exceeds a limit.
    """
    if content_type.lower().startswith("multipart/form-data"):
        files = _files(body, content_type)
    elif body.startswith((b"\x89PNG", b"\xff\xd8")):
        files = [body]
    elif body.lstrip()[:1] == b"[":
        return pixels(body)
    else:
        raise Refused(415, f"the body has an unknown format; {EXPECTED}")
    names = ["the picture"] if len(files) == 1 else [f"picture {i}" for i in range(len(files))]
    try:
        return np.stack([await _digit(*each, decoders) for each in zip(files, names, strict=True)])
    except data.DataError as error:
        bomb = isinstance(error.__cause__, BOMBS)  # Pillow checks before this file does.
        raise Refused(413 if bomb else 400, str(error)) from error


def pixels(body: bytes) -> np.ndarray:
    """Digits of JSON, as MNIST stores them: integers from 0, paper, to 255, ink.

    Raises:
      Refused: if it is anything else, or a digit is blank.
    """
    try:
        found: Any = json.loads(body)
        images = found if isinstance(found[0][0], list) else [found]
        if len(images) > MAX_DIGITS:
            raise Refused(413, f"{len(images)} digits; expected 1 to {MAX_DIGITS}; send fewer")
        # `bytes` accepts only integers from 0 to 255; for a list, not for an integer.
        rows = [bytes(row) for image in images for row in image if isinstance(row, list)]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(400, f"the JSON is not pixels ({reason}); {EXPECTED} of 0 to 255") from error
    sides = {len(image) for image in images} | {len(row) for row in rows}
    if sides != {data.SIDE} or len(rows) != len(images) * data.SIDE:
        raise Refused(400, f"the JSON has the wrong shape; {EXPECTED} of 0 to 255")
    digits = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, data.SIDE, data.SIDE)
    for i, digit in enumerate(digits):
        if not pictures.shows_a_digit(digit):
            raise Refused(
                400, f"array {i} shows no digit; expected pixels from 0, paper, to 255, ink"
            )
    return digits


async def _digit(content: bytes, name: str, decoders: Executor) -> np.ndarray:
    loop = asyncio.get_running_loop()
    if len(content) > SMALL:  # Its header may be large.
        picture = await loop.run_in_executor(decoders, _opened, content, name)
    else:
        picture = _opened(content, name)
        if picture.width * picture.height <= SMALL:
            return pictures.digit_of(picture, name)
    return await loop.run_in_executor(decoders, pictures.digit_of, picture, name)


def _opened(content: bytes, name: str) -> Image.Image:
    if any(number > MAX_PARTS for number, _ in enumerate(_parts(content), 1)):
        raise Refused(
            413, f"{name} has more than {MAX_PARTS} parts besides pixels; save it without them"
        )
    picture = pictures.open_picture(io.BytesIO(content), name, FORMATS)
    _check(picture, content, name)
    return picture


def _parts(content: bytes) -> Iterator[bytes]:
    """The kinds of a PNG's chunks, without pixel chunks; of a JPEG's segments before the pixels."""
    if content.startswith(b"\x89PNG"):
        at = 8
        while at < len(content):
            size, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
            if kind != b"IDAT":
                yield kind
            at += 12 + size
    else:
        at = 2
        while content[at : at + 1] == b"\xff" and (kind := content[at + 1 : at + 2]) != b"\xda":
            yield kind
            # Any number of bytes 255 may precede a kind.
            at += 1 if kind == b"\xff" else 2 + int.from_bytes(content[at + 2 : at + 4])


def _check(picture: Image.Image, content: bytes, name: str) -> None:
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise Refused(
            413,
            f"{name} has {width} x {height} pixels; expected sides up to {MAX_SIDE} and"
            f" {MAX_PIXELS:,} pixels; make it smaller",
        )
    # In a JPEG's data a byte 255 is followed by a 0, so these two bytes mark the start of a scan.
    if picture.format == "JPEG" and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
        raise Refused(
            413, f"{name} has {scans} scans; expected up to {MAX_SCANS}; save it as a plain JPEG"
        )


def _files(body: bytes, content_type: str) -> list[bytes]:
    """The files of a form. Their file names are ignored."""
    texts: dict[str, list[bytes]] = {}
    files: dict[str, list[HTTPFile]] = {}
    try:
        parse_body_arguments(content_type, body, texts, files, config=FORMS)
    except HTTPInputError as error:
        raise Refused(400, f"the form cannot be read ({error}); {EXPECTED}") from error
    if texts or not files:
        raise Refused(400, f"the form has a text, or no file; {EXPECTED}")
    if len(files) > 1 and max(map(len, files.values())) > 1:
        # The parser groups files by name, which would lose their order.
        raise Refused(400, "the form's files have several names; give all the same")
    return [file["body"] for each in files.values() for file in each]
