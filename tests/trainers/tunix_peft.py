"""Tunix's PeftTrainer: python -m tests.trainers.tunix_peft (in an environment with Tunix)."""
# pyright: reportMissingImports=false

import contextlib
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from tunix.sft import peft_trainer
from tunix.tests import test_common

from tests.trainers.cells import RATE, Run, arrays, measure, mesh_of

BAD = 6  # The batch whose mask, and therefore loss and gradient, is NaN.


def batches(bad: bool, count: int = 40) -> list[dict]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        tokens = rng.integers(0, 128, (4, 16)).astype(np.int32)
        mask = np.full(tokens.shape, np.nan if bad and i == BAD else 1.0, np.float32)
        out.append(peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask))
    return out


def model_input(x: peft_trainer.TrainingInput) -> dict:
    positions = np.broadcast_to(np.arange(16), (4, 16))
    rest = dict(positions=positions, attention_mask=np.ones((4, 16, 16), bool))
    return dict(input_tokens=x.input_tokens, input_mask=x.input_mask, **rest)


def model(mesh: jax.sharding.Mesh | None) -> nnx.Module:
    config = test_common.ModelConfig(num_layers=1, vocab_size=128)
    made = test_common.ToyTransformer(config, rngs=nnx.Rngs(0))
    if mesh is not None:  # As `create_model` of Tunix's command line.
        state = nnx.state(made)
        shardings = nnx.get_named_sharding(state, mesh)
        nnx.update(made, jax.device_put(state, shardings))
    return made


def runner(mesh: jax.sharding.Mesh | None, enter, folder: Path):
    def run(make, steps: int, name: str) -> Run:
        root = folder / name.replace(" ", "-")
        config = peft_trainer.TrainingConfig(
            eval_every_n_steps=100,
            max_steps=steps,
            checkpoint_root_directory=str(root),
            checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=steps),
        )
        with enter():
            trainer = peft_trainer.PeftTrainer(model(mesh), make(RATE), config)
            trainer.with_gen_model_input_fn(model_input)
            trainer.train(batches("skip" in name))
        logged = trainer.metrics_logger
        rates = "learning_rate"
        has_rates = logged.metric_exists("", rates, "train")
        return Run(
            logged.get_metric_history("", "loss", "train"),
            logged.get_metric_history("", rates, "train") if has_rates else [],
            arrays((nnx.state(trainer.model), nnx.state(trainer.optimizer))),
        )

    return run


def main() -> None:
    if jax.device_count() == 1:
        ways = {"1 device": (None, contextlib.nullcontext)}
    else:
        one, two = mesh_of(("fsdp", "tp"), (4, 1)), mesh_of(("fsdp", "tp"), (2, 2))
        ways = {
            "with mesh, fsdp 4": (one, lambda: one),
            "with mesh, fsdp 2, tp 2": (two, lambda: two),
            "jax.set_mesh, fsdp 4": (one, lambda: jax.set_mesh(one)),
        }
    with tempfile.TemporaryDirectory() as folder:
        for name, (mesh, enter) in ways.items():
            measure("Tunix", name, runner(mesh, enter, Path(folder)))


if __name__ == "__main__":
    main()
