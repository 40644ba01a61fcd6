"""The optimizers of the comparison; after adding a line: `examples.studies.compare --publish`."""

import functools

import optax

import adam_jax
from examples.studies.population import Make

Entry = tuple[Make, float]
"""The optimizer and the middle of its grid of learning rates."""

OPTAX: dict[str, Entry] = {
    "sgd": (optax.sgd, 0.3),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), 0.03),
    "nesterov": (functools.partial(optax.sgd, momentum=0.9, nesterov=True), 0.03),
    "adagrad": (optax.adagrad, 0.1),
    "adadelta": (optax.adadelta, 3.0),
    "rmsprop": (optax.rmsprop, 3e-3),
}
# Without corrected_weight_decay: at a constant learning rate it has no effect.
OURS: dict[str, Entry] = {
    "adam": (adam_jax.adam, 3e-3),
    "adamw": (adam_jax.adamw, 3e-3),
    "nadam": (adam_jax.nadam, 3e-3),
    "amsgrad": (adam_jax.amsgrad, 3e-3),
    "adamax": (adam_jax.adamax, 1e-2),
    "radam": (adam_jax.radam, 3e-2),
    "adabelief": (adam_jax.adabelief, 3e-3),
    "yogi": (adam_jax.yogi, 1e-2),
    "adan": (adam_jax.adan, 3e-3),
    "lion": (adam_jax.lion, 1e-3),
    "laprop": (adam_jax.laprop, 3e-3),
    "laprop, weight_decay=1e-4": (functools.partial(adam_jax.laprop, weight_decay=1e-4), 3e-3),
    "mars_adamw": (adam_jax.mars_adamw, 1e-2),
    "adamw, AdamMini()": (functools.partial(adam_jax.adamw, nu_dtype=adam_jax.AdamMini()), 3e-3),
    "grams(adamw)": (adam_jax.grams(adam_jax.adamw), 1e-2),
}
OPTIMIZERS = OPTAX | OURS
