"""Preprocessing of digits: scaling, and for training random shifts and rotations.

`python -m examples.studies.preprocessing` measures their effect.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def normalise(images: jax.typing.ArrayLike) -> jax.Array:
    """Images uint8 [count, 28, 28] as float32 [count, 28, 28, 1], 0 to 1."""
    return jnp.asarray(images).astype(jnp.float32)[..., None] / 255


def shift_and_rotate(image: jax.Array, shift: jax.Array, angle: jax.Array) -> jax.Array:
    """One image, float32 [28, 28], rotated about its centre, then shifted; the outside is paper, 0.

    The shift is float32 [2], in pixels down and right; the angle is in radians, from down to right.
    Pixel p of the result reads R(-angle)·(p - centre - shift) + centre with a single bilinear
    interpolation. Interpolating separately for rotation and shift would blur the strokes twice.
    """
    side = len(image)
    centre = (side - 1) / 2
    axis = jnp.arange(side, dtype=jnp.float32) - centre
    down, right = axis[:, None] - shift[0], axis[None, :] - shift[1]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source = [cos * down + sin * right + centre, cos * right - sin * down + centre]
    return map_coordinates(image, source, order=1)


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images float32 [batch, 28, 28, 1], each shifted by up to ±2 pixels, rotated by up to ±10°."""
    shift_key, angle_key = jax.random.split(key)
    shifts = jax.random.uniform(shift_key, (len(images), 2), jnp.float32, -2, 2)
    angles = math.radians(10) * jax.random.uniform(angle_key, (len(images),), jnp.float32, -1, 1)
    return jax.vmap(shift_and_rotate)(images[..., 0], shifts, angles)[..., None]
