"""Adam and its family for JAX, as Optax transformations."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from adam_jax import schedules, sharding
from adam_jax.adam_mini import AdamMini
from adam_jax.core.states import register_optax_states
from adam_jax.core.transformation import Transformation, step
from adam_jax.family.adabelief import adabelief, scale_by_belief
from adam_jax.family.adam import adam, adamw, scale_by_adam
from adam_jax.family.adamax import adamax, adamaxw, scale_by_adamax
from adam_jax.family.adan import adan, scale_by_adan
from adam_jax.family.ademamix import ademamix, scale_by_ademamix
from adam_jax.family.adopt import adopt, scale_by_adopt
from adam_jax.family.alias import scale_by_learning_rate
from adam_jax.family.amsgrad import amsgrad, scale_by_amsgrad
from adam_jax.family.lamb import lamb
from adam_jax.family.laprop import ScaleByLapropState, laprop, scale_by_laprop
from adam_jax.family.lion import lion, scale_by_lion
from adam_jax.family.mars import ScaleByMarsState, mars_adamw, scale_by_mars
from adam_jax.family.nadam import nadam, nadamw, scale_by_nadam
from adam_jax.family.radam import radam, scale_by_radam
from adam_jax.family.schedule_free import schedule_free_adamw
from adam_jax.family.yogi import scale_by_yogi, yogi
from adam_jax.formats.block_means import BlockMeans
from adam_jax.formats.blockwise import Quantized
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.formats.factored import Factored
from adam_jax.formats.policy import by_path, stochastic
from adam_jax.groups import groups
from adam_jax.hyperparams import hyperparams, set_hyperparams, with_hyperparams
from adam_jax.modifiers import (
    atan2,
    cautious,
    cautious_weight_decay,
    clip_update_rms,
    corrected_weight_decay,
    grams,
    with_kernel,
    with_layers,
)
from adam_jax.rates import DecayRateLike, ScheduledRatesState
from adam_jax.roles import Role, decay_mask, roles
from adam_jax.sphere import ScaleOnSphereState, adamh, scale_on_sphere
from adam_jax.wrap.accumulate import AccumulateState, accumulate
from adam_jax.wrap.chain import chain
from adam_jax.wrap.clip import clip_by_global_norm
from adam_jax.wrap.ema import EmaParamsState, averaged, ema_params
from adam_jax.wrap.history import HistoryState, clip_by_history, clipped
from adam_jax.wrap.leaf_counts import LeafCountsState, count_per_leaf
from adam_jax.wrap.noise_scale import NoiseScaleState, estimate_noise_scale, noise_scale
from adam_jax.wrap.skip import Skipped, skip_nonfinite, skipped
from adam_jax.wrap.telemetry import TelemetryState, measured, telemetry
from adam_jax.wrap.weights import (
    WeightsState,
    float32_weights,
    master_residual,
    split_float32_weights,
    stochastic_rounding,
)

if TYPE_CHECKING:
    from adam_jax import convert, inspect, transfer
    from adam_jax.convert.moments import convert_state

__version__ = "0.1.0"

__all__ = [
    "AT_LEAST_FLOAT32",
    "AccumulateState",
    "AdamMini",
    "BlockMeans",
    "DecayRateLike",
    "EmaParamsState",
    "Factored",
    "HistoryState",
    "LeafCountsState",
    "NoiseScaleState",
    "Quantized",
    "Role",
    "ScaleByLapropState",
    "ScaleByMarsState",
    "ScaleOnSphereState",
    "ScheduledRatesState",
    "Skipped",
    "TelemetryState",
    "Transformation",
    "WeightsState",
    "accumulate",
    "adabelief",
    "adam",
    "adamax",
    "adamaxw",
    "adamh",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "atan2",
    "averaged",
    "by_path",
    "cautious",
    "cautious_weight_decay",
    "chain",
    "clip_by_global_norm",
    "clip_by_history",
    "clip_update_rms",
    "clipped",
    "convert",
    "convert_state",
    "corrected_weight_decay",
    "count_per_leaf",
    "decay_mask",
    "ema_params",
    "estimate_noise_scale",
    "float32_weights",
    "grams",
    "groups",
    "hyperparams",
    "inspect",
    "lamb",
    "laprop",
    "lion",
    "mars_adamw",
    "master_residual",
    "measured",
    "nadam",
    "nadamw",
    "noise_scale",
    "radam",
    "register_optax_states",
    "roles",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_belief",
    "scale_by_laprop",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_mars",
    "scale_by_nadam",
    "scale_by_radam",
    "scale_by_yogi",
    "scale_on_sphere",
    "schedule_free_adamw",
    "schedules",
    "set_hyperparams",
    "sharding",
    "skip_nonfinite",
    "skipped",
    "split_float32_weights",
    "step",
    "stochastic",
    "stochastic_rounding",
    "telemetry",
    "transfer",
    "with_hyperparams",
    "with_kernel",
    "with_layers",
    "yogi",
]


# Names in Optax of what this package does in another way.
_OPTAX_NAMES = {
    "MultiSteps": "accumulate(tx, every)",
    "apply_if_finite": "skip_nonfinite(tx)",
    "apply_updates": "step(tx, grads, state, params)",
    "inject_hyperparams": "with_hyperparams(adamw)(learning_rate=1e-3)",
    "masked": 'groups(adamw, {"frozen/.*": None}, learning_rate=1e-3)',
    "partition": 'groups({".*kernel": adamw(1e-3), ".*": lion(1e-4)})',
}
_MODULES = ("convert", "inspect", "schedules", "sharding", "transfer")


def __getattr__(name: str) -> Any:
    """Imports what few programs use when it is first used; Pallas is imported by a kernel."""
    if name in _MODULES:
        return importlib.import_module(f"adam_jax.{name}")
    if name == "convert_state":
        return importlib.import_module("adam_jax.convert.moments").convert_state
    message = f"module {__name__!r} has no attribute {name!r}"
    if name.startswith("_"):
        raise AttributeError(message)
    instead = [f"adam_jax.{_OPTAX_NAMES[name]}"] if name in _OPTAX_NAMES else []
    for where in (*(f"adam_jax.{module}" for module in _MODULES), "optax.contrib", "optax"):
        module = importlib.import_module(where)
        if name in getattr(module, "__all__", vars(module)):
            message += f": write {' or '.join([*instead, f'{where}.{name}'])}."
            raise AttributeError(message)
    raise AttributeError(message, name=name, obj=sys.modules[__name__])  # Python finds typos.


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
