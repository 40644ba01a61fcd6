"""A box constraint, and two ways to decay parameters.

Box: each step is projected on the box. Adam scales each coordinate of its step separately, and a
box constrains each coordinate separately, so the two do not interfere: the path slides along the
wall to the minimum inside the box. Projecting the unconstrained minimum once ends elsewhere.

Decay: L2 adds λ·θ to the gradient, which Adam then divides by the gradient's size, so parameters
with large gradients hardly decay. Decoupled weight decay (AdamW) shrinks all parameters by the same
factor.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.patches import Rectangle
from scipy.optimize import lsq_linear

import adam_jax
from examples.shared import style
from examples.shared.study import Result
from examples.usage.basics import page

# The loss ‖A·θ - b‖²/2: a narrow valley, whose minimum (2.2, 0.3) lies outside the box.
A = np.array([[2.0, -2.0], [0.5, 0.5]])
B = A @ np.array([2.2, 0.3])
START, LOWER, UPPER = (0.2, 0.9), -1.0, 1.0
SCALES = np.array([0.01, 0.1, 1.0, 10.0], np.float32)  # of the gradient's noise
COLOURS = style.sequence(len(SCALES))
RATE, DECAY = 1e-3, 1.0


def loss_of(theta: jax.Array) -> jax.Array:
    """Squared residuals of two equations in θ [2]."""
    return optax.l2_loss(jnp.float32(A) @ theta, jnp.float32(B)).sum()


def boxed_path(box: bool, steps: int) -> jax.Array:
    """Adam's path, [steps, 2], with or without the projection after each step."""
    tx = adam_jax.adam(optax.cosine_decay_schedule(0.1, steps))

    def one_step(carry, _):
        theta, state = carry
        theta, state = adam_jax.step(tx, jax.grad(loss_of)(theta), state, theta)
        if box:
            theta = optax.projections.projection_box(theta, LOWER, UPPER)
        return (theta, state), theta

    theta = jnp.array(START)
    return jax.lax.scan(one_step, (theta, tx.init(theta)), None, length=steps)[1]


def decayed(tx: optax.GradientTransformation, noise: jax.Array) -> jax.Array:
    """Parameters that start at 1 and whose gradient is pure noise.

    Args:
      tx: the optimizer, with one kind of decay.
      noise: the gradients, [steps, scales, copies].

    Returns:
      The parameters after each step, averaged over the copies, [steps, scales].
    """

    def one_step(carry, gradient):
        theta, state = adam_jax.step(tx, gradient, carry[1], carry[0])
        return (theta, state), theta.mean(axis=-1)

    theta = jnp.ones(noise.shape[1:])
    return jax.lax.scan(one_step, (theta, tx.init(theta)), noise)[1]


def compute(setting: page.Setting) -> Result:
    """Both experiments."""
    steps = 300 if setting.fast else 1000
    copies = 32 if setting.fast else 256
    noise = setting.normal(steps, len(SCALES), copies) * SCALES[:, None]
    return {
        "free": jax.jit(boxed_path, static_argnums=(0, 1))(False, steps),
        "boxed": jax.jit(boxed_path, static_argnums=(0, 1))(True, steps),
        # Solved by an active-set method, not by descent.
        "solution": lsq_linear(A, B, (LOWER, UPPER), method="bvls").x,
        "L2": jax.jit(lambda g: decayed(adam_jax.adam(RATE, l2=DECAY), g))(noise),
        "decoupled": jax.jit(lambda g: decayed(adam_jax.adamw(RATE, weight_decay=DECAY), g))(noise),
    }


def listed(values: np.ndarray) -> str:
    """With two decimals."""
    return "(" + ", ".join(f"{value:.2f}" for value in values) + ")"


def findings(result: Result) -> list[tuple[Any, str]]:
    """The ends of the paths; how far parameters decay, by the noise of their gradient."""
    solution, boxed = np.array(result["solution"]), np.array(result["boxed"][-1])
    once = np.clip(result["free"][-1], LOWER, UPPER)
    steps = len(result["L2"])
    left, left_decoupled = result["L2"][-1], result["decoupled"][-1]
    expected = (1 - RATE * DECAY) ** steps
    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    return [
        (
            np.linalg.norm(boxed - solution) < 1e-2,
            f"projecting after each step ends at the minimum inside the box, {listed(solution)}:"
            f" {np.linalg.norm(boxed - solution):.1e} from it",
        ),
        (
            np.linalg.norm(once - solution) > 0.1,
            f"projecting once, at the end, does not: {listed(once)},"
            f" {np.linalg.norm(once - solution):.2f} from it",
        ),
        (
            left[0] < expected < left[-1],
            f"L2 decays parameters with small gradients most: after {steps} steps"
            f" {listed(left)} remain for gradients of size {scales}",
        ),
        (
            bool(np.allclose(left_decoupled, expected, atol=0.03)),
            f"decoupled decay treats all parameters alike: {listed(left_decoupled)};"
            f" (1 - α·λ)^{steps} = {expected:.2f}",
        ),
    ]


def picture(result: Result, path: Path) -> None:
    """The two paths on the contours; the remaining parameter by step, for each decay."""
    figure, (box, key, l2, decoupled) = style.panels(2, 2, height=2.7)
    u, v = np.linspace(-1.5, 3.0, 200), np.linspace(-1.5, 3.0, 200)
    residuals = np.einsum("ij,jvu->ivu", A, np.stack(np.meshgrid(u, v))) - B[:, None, None]
    page.contours(box, u, v, (residuals**2).sum(axis=0) / 2, 0.03)
    box.add_patch(Rectangle((-1, -1), 2, 2, color=style.GREY, alpha=0.35))
    for name, colour, label in (
        ("free", style.BLUE, "unconstrained"),
        ("boxed", style.VERMILION, "projected after each step"),
    ):
        way = np.array([START, *result[name]])
        box.plot(*way.T, color=colour, label=label)
    once = np.clip(result["free"][-1], LOWER, UPPER)
    box.plot(*START, "o", color="black", label="start")
    box.plot(
        *result["solution"], "*", color=style.VERMILION, markersize=14, label="minimum in the box"
    )
    box.plot(*once, "X", color=style.BLUE, markersize=9, label="projected once, at the end")
    box.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", aspect="equal")
    box.set_title("Adam with a box constraint (grey)")
    key.axis("off")
    key.legend(*box.get_legend_handles_labels(), loc="center left")
    titles = {"L2": "L2 penalty: adam(l2=1)", "decoupled": "decoupled decay: adamw(weight_decay=1)"}
    for axis, (name, title) in zip((l2, decoupled), titles.items(), strict=True):
        values = np.array(result[name])
        for i, colour in enumerate(COLOURS):
            # Each line is thinner than the one below it, which it may cover.
            axis.plot(values[:, i], color=colour, linewidth=8 - 2 * i, label=f"{SCALES[i]:g}")
        axis.plot(
            (1 - RATE * DECAY) ** np.arange(len(values)), "k:", label=r"$(1-\alpha\lambda)^t$"
        )
        axis.set(xlabel="step", ylabel="parameter (initially 1)", ylim=(-0.05, 1.05))
        axis.set_title(title)
    l2.legend(title="gradient scale")
    title = (
        "A box constraint, and two forms of weight decay on parameters whose gradients are noise"
    )
    style.save(figure, path, title)
