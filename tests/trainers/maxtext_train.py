"""MaxText's training loop: python -m tests.trainers.maxtext_train (in an environment with it)."""
# pyright: reportMissingImports=false

import contextlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import jax
import optax
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train import train

from tests.trainers.cells import CASES, STEPS, Case, Run, arrays, measure, on_page

THEIRS = optimizers.get_optimizer
CONFIG = Path(importlib.util.find_spec("maxtext").origin).parent / "configs" / "base.yml"
SETTINGS = dict(
    base_emb_dim=32,
    base_num_query_heads=2,
    base_num_kv_heads=2,
    base_mlp_dim=64,
    base_num_decoder_layers=1,
    head_dim=16,
    vocab_size=128,
    max_target_length=16,
    dtype="float32",
    weight_dtype="float32",
    matmul_precision="highest",
    attention="dot_product",
    dataset_type="synthetic",
    tokenizer_type="tiktoken",
    learning_rate=3e-3,
    learning_rate_schedule_steps=STEPS,
    gradient_clipping_threshold=0,
    enable_checkpointing=True,
    async_checkpointing=False,
    checkpoint_period=STEPS // 2,
    skip_jax_distributed_system=True,
    enable_goodput_recording=False,
    monitor_goodput=False,
    jax_cache_dir="",
    log_config=False,
    sharding_tolerance=1.0,
)


def runner(ways: dict, folder: Path):
    def run(make, steps: int, name: str) -> Run:
        place = folder / "".join(c if c.isalnum() else "-" for c in name)
        place.mkdir(exist_ok=True)
        metrics = place / f"metrics-{steps}.jsonl"
        settings = dict(SETTINGS, per_device_batch_size=4 // jax.device_count(), **ways)
        settings |= dict(base_output_directory=folder, run_name=place.name, steps=steps)
        settings["metrics_file"] = metrics
        optimizers.get_optimizer = lambda config, rate, *args, **kwargs: make(rate)
        if isinstance(make, str):
            optimizers.get_optimizer, optimizers.optax = THEIRS, optax
            exec(make, {})
            settings |= dict(mu_dtype="int8") if make else {}
        with contextlib.redirect_stdout(sys.stderr):
            words = [f"{key}={value}" for key, value in settings.items()]
            config, recorder = train.initialize(["", str(CONFIG), *words])
            state = train.train_loop(config, recorder)
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        losses = [row["learning/loss"] for row in rows]
        rates = [row["learning/current_learning_rate"] for row in rows]
        return Run(losses, rates, arrays(state))

    return run


def main() -> None:
    if jax.device_count() == 1:
        ways = {"1 device": {}}
    else:
        ways = {
            "ici_fsdp_parallelism=4": dict(ici_fsdp_parallelism=4),
            "ici_data_parallelism=4": dict(ici_data_parallelism=4),
            "data 4, shard_optimizer_over_data": dict(
                ici_data_parallelism=4, ici_fsdp_parallelism=1, shard_optimizer_over_data=True
            ),
            "ici_tensor_parallelism=2, fsdp 2": dict(
                ici_fsdp_parallelism=2, ici_tensor_parallelism=2
            ),
        }
    # MaxText logs the schedule's rate, whatever the state holds: one case of hyperparameters.
    cases = {name: case for name, case in CASES.items() if ", with_hyper" not in name}
    cases["opt_type=adamw, the page's lines"] = Case(on_page("optimizers.optax ="), "", 1e-3)
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in ways.items():
            measure("MaxText", name, runner(settings, Path(folder)), cases)


if __name__ == "__main__":
    main()
