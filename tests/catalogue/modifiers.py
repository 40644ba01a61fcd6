"""The modifiers under test, by name."""

import functools

import adam_jax

MODIFIERS = {
    "cautious": adam_jax.cautious,
    "clip_update_rms": adam_jax.clip_update_rms,
    "atan2": adam_jax.atan2,
    "cautious_weight_decay": adam_jax.cautious_weight_decay,
    "corrected_weight_decay": functools.partial(
        adam_jax.corrected_weight_decay, peak_learning_rate=0.2
    ),
    "grams": adam_jax.grams,
}
