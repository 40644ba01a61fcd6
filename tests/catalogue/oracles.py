"""Naive float64 versions in NumPy, written from the papers: the reference of the numerical tests.

Each takes the gradients of all steps, float64[T, ...] or complex, and yields the direction u of
each step, to be multiplied by -α. Arguments and defaults are those of Optax's scale_by_*. For a
complex g, the second moment averages |g|², for both parts together.
"""

import numpy as np


def ratio(a, b):
    """a / b, or 0 where both are 0."""
    return a / np.where((a == 0) & (b == 0), 1.0, b)


def sign(x):
    """x / |x|, and 0 at 0."""
    return ratio(x, np.abs(x))


def stored(v):
    """The second moment as steps read it. Tests of storage replace this function."""
    return v


class Moving:
    """A decay rate of numbers[t-1] in step t, which the caller sets; b**t is their product."""

    t = 1

    def __init__(self, numbers):
        self.numbers = np.asarray(numbers, np.float64)

    def now(self):
        return self.numbers[self.t - 1]

    def __mul__(self, other):
        return self.now() * other

    __rmul__ = __mul__

    def __rsub__(self, other):
        return other - self.now()

    def __rtruediv__(self, other):
        return other / self.now()

    def __pow__(self, t):
        return np.prod(self.numbers[:t])

    @property
    def following(self):
        return self.numbers[self.t]


def following(b):
    """The rate of the next step."""
    return getattr(b, "following", b)


def first_moment(m, g, b1, t, nesterov):
    """The EMA m after bias correction; with nesterov, m̂ in Dozat 2016."""
    if nesterov:
        return following(b1) * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return m / (1 - b1**t)


def moments(gradients, b1, b2):
    """t, g and the uncorrected averages m of g and v of |g|²."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = stored(b2 * v + (1 - b2) * np.abs(g) ** 2)
        yield t, g, m, v


def adam(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False, eps_hat=0.0):
    """Kingma & Ba 2015, algorithm 1; eps_hat is ε̂ in section 2; nesterov as Optax, v̂ as Adam's."""
    for t, g, m, v in moments(gradients, b1, b2):
        root = np.sqrt(v / (1 - b2**t) + eps_root)
        denominator = root + eps + eps_hat / np.sqrt(1 - b2**t)
        yield ratio(first_moment(m, g, b1, t, nesterov), denominator)


def nadam(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, momentum_decay=None):
    """Dozat 2016, algorithm 2, b1 scheduled in m̂ only, as PyTorch; None: constant, as Optax."""
    if momentum_decay is None:
        yield from adam(gradients, b1, b2, eps, eps_root, nesterov=True)
        return
    product = 1.0
    for t, g, m, v in moments(gradients, b1, b2):
        now = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        ahead = following(b1) * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        product = product * now
        first = m * ahead / (1 - product * ahead) + g * (1 - now) / (1 - product)
        yield ratio(first, np.sqrt(v / (1 - b2**t) + eps_root) + eps)


def amsgrad(
    gradients,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    bias_correction_mu=True,
    bias_correction_nu=True,
    max_before_correction=False,
    eps_hat=0.0,
):
    """Reddi, Kale & Kumar 2018, algorithm 2; the two optional bias corrections are Optax's.

    Optax takes the maximum of the corrected v; with max_before_correction it is of v, as PyTorch.
    ε̂ is added to the uncorrected √v, and is divided by the same correction as √v.
    """
    v_max = 0.0
    for t, _, m, v in moments(gradients, b1, b2):
        m_hat = m / (1 - b1**t) if bias_correction_mu else m
        correction = 1 - b2**t if bias_correction_nu else 1.0
        if max_before_correction:
            v_max = stored(np.maximum(v_max, v))
            v_hat = v_max / correction
        else:
            v_hat = v_max = stored(np.maximum(v_max, v / correction))
        yield ratio(m_hat, np.sqrt(v_hat + eps_root) + eps + eps_hat / np.sqrt(correction))


def adamax(gradients, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 2, with eps added to |g| as in Optax; the paper has no eps."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = stored(np.maximum(b2 * v, np.abs(g) + eps))
        yield ratio(m / (1 - b1**t), v)


def radam(
    gradients,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    threshold=5.0,
    nesterov=False,
    eps_hat=0.0,
):
    """Liu et al. 2020, algorithm 2, with ρ >= threshold instead of ρ > 4, and eps as in Optax."""
    for t, g, m, v in moments(gradients, b1, b2):
        m_hat = first_moment(m, g, b1, t, nesterov)
        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        if rho < threshold:
            yield m_hat
            continue
        r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        root = np.sqrt(v / (1 - b2**t) + eps_root)
        yield ratio(r * m_hat, root + eps + eps_hat / np.sqrt(1 - b2**t))


def belief(gradients, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False):
    """Zhuang et al. 2020, algorithm 2: eps_root is the ε stored in s; nesterov as Optax."""
    m = s = 0.0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        s = stored(b2 * s + (1 - b2) * np.abs(g - m) ** 2 + eps_root)
        yield ratio(first_moment(m, g, b1, t, nesterov), np.sqrt(s / (1 - b2**t)) + eps)


def yogi(gradients, b1=0.9, b2=0.999, eps=1e-3, eps_root=0.0, initial_accumulator_value=1e-6):
    """Zaheer et al. 2018, algorithm 2, with Optax's initial values and bias corrections."""
    m = v = initial_accumulator_value
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = stored(v - (1 - b2) * np.sign(v - np.abs(g) ** 2) * np.abs(g) ** 2)
        yield ratio(m / (1 - b1**t), np.sqrt(v / (1 - b2**t) + eps_root) + eps)


def adan(gradients, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0, change_weight=None):
    """Xie et al. 2022, algorithm 1, with b = 1 - the paper's β and Optax's bias corrections.

    Optax weights the difference of gradients by 1 - b2; the paper and its code use b2.
    """
    m = v = n = 0.0
    previous = gradients[0]
    for t, g in enumerate(gradients, start=1):
        weight = 1 - b2 if change_weight is None else change_weight
        difference = g - previous
        previous = g
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * difference
        n = stored(b3 * n + (1 - b3) * np.abs(g + weight * difference) ** 2)
        first = m / (1 - b1**t) + weight * v / (1 - b2**t)
        yield ratio(first, np.sqrt(n / (1 - b3**t) + eps_root) + eps)


def lion(gradients, b1=0.9, b2=0.99, mode="hard", smooth_beta=1.0):
    """Chen et al. 2023, algorithm 2; the modes "smooth" and "refined" are Optax's."""
    m = 0.0
    for g in gradients:
        c = b1 * m + (1 - b1) * g
        m = b2 * m + (1 - b2) * g
        if mode == "hard":
            yield sign(c)
        elif mode == "smooth":
            yield np.tanh(smooth_beta * c)
        elif mode == "refined":
            yield np.where(np.abs(c) < 1, c, sign(c))
        else:
            raise ValueError(mode)


def adopt(gradients, b1=0.9, b2=0.9999, eps=1e-6, nesterov=False, use_clipping=True):
    """Taniguchi et al. 2024, ADOPT, and with use_clipping clipped ADOPT; nesterov as Optax.

    The first gradient only initializes v. Clipping acts on the magnitude: t^(1/4) bounds |x|.
    """
    m, v = np.zeros_like(gradients[0]), stored(np.abs(gradients[0]) ** 2)
    yield m
    for t, g in enumerate(gradients[1:], start=1):
        x = ratio(g, np.maximum(np.sqrt(v), eps))
        if use_clipping:
            x = sign(x) * np.minimum(np.abs(x), t**0.25)
        m = b1 * m + (1 - b1) * x
        v = stored(b2 * v + (1 - b2) * np.abs(g) ** 2)
        yield b1 * m + (1 - b1) * x if nesterov else m


def laprop(gradients, b1=0.9, b2=0.999, eps=1e-15):
    """Ziyin, Wang & Ueda 2020, algorithm 1."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        v = stored(b2 * v + (1 - b2) * np.abs(g) ** 2)
        x = ratio(g, np.sqrt(v / (1 - b2**t)) + eps)
        m = b1 * m + (1 - b1) * x
        yield m / (1 - b1**t)


def mars(gradients, b1=0.95, b2=0.99, eps=1e-8, gamma=0.025):
    """Yuan et al. 2024, approximate MARS-AdamW: uses the gradient of the previous step.

    One leaf. x_1 = x_0 as in the paper, so nothing is added to the first gradient.
    """

    def corrected():
        previous = gradients[0]
        for g in gradients:
            c = g + gamma * b1 / (1 - b1) * (g - previous)
            yield c / max(1.0, np.linalg.norm(c))
            previous = g

    yield from adam(corrected(), b1, b2, eps)


def ademamix(gradients, b1=0.9, b2=0.999, b3=0.9999, alpha=6.0, eps=1e-8, eps_root=0.0):
    """Pagliardini, Ablin & Grangier 2024, algorithm 1, for a constant b3 and alpha."""
    m2 = 0.0
    for t, g, m1, v in moments(gradients, b1, b2):
        m2 = b3 * m2 + (1 - b3) * g
        root = np.sqrt(v / (1 - b2**t) + eps_root)
        yield ratio(m1 / (1 - b1**t) + alpha * m2, root + eps)


def nadam_product(steps, b1, decay):
    """The product of NAdam's momenta up to a step: `mu_product` in PyTorch."""
    out = 1.0
    for t in range(1, steps + 1):
        out *= b1 * (1 - 0.5 * 0.96 ** (t * decay))
    return out
