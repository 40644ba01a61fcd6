"""Levanter's Trainer: python -m tests.trainers.levanter_trainer (in an environment with it)."""
# pyright: reportMissingImports=false

import re
import tempfile
from pathlib import Path

import draccus
import equinox as eqx
import haliax as hax
import jax
import levanter.tracker
import numpy as np
import yaml
from levanter.checkpoint import CheckpointerConfig
from levanter.optim.config import OptimizerConfig
from levanter.tracker import NoopConfig
from levanter.tracker.tracker import NoopTracker
from levanter.trainer import Trainer, TrainerConfig
from levanter.utils.mesh import MeshConfig

from tests.trainers import cells
from tests.trainers.cells import CASES, RATE, STEPS, Case, Run, arrays, far, measure

BAD = 6  # The batch that is NaN.
BATCH, EMBED, MLP = hax.Axis("batch", 8), hax.Axis("embed", 64), hax.Axis("mlp", 128)


class Recorder(NoopTracker):
    def __init__(self):
        self.rows = {}

    def log(self, metrics, *, step, commit=None):
        for name, value in metrics.items():
            self.rows.setdefault(name, []).append(np.asarray(value))


class Model(eqx.Module):
    up: hax.nn.Linear
    down: hax.nn.Linear

    @staticmethod
    def init(key):
        one, two = jax.random.split(key)
        up = hax.nn.Linear.init(EMBED, MLP, key=one)
        return Model(up, hax.nn.Linear.init(MLP, EMBED, key=two))

    def __call__(self, x):
        return self.down(hax.nn.gelu(self.up(x)))


def loss(model, x, key=None):
    return hax.mean((model(x) - hax.roll(x, 1, EMBED)) ** 2), {}


def batches(bad: bool, start: int):
    rng = np.random.default_rng(0)
    for i in range(STEPS):
        x = np.float32(rng.normal(size=(BATCH.size, EMBED.size)))
        if i >= start:
            yield hax.named(x * np.nan if bad and i == BAD else x, (BATCH, EMBED))


def runner(ways: dict, folder: Path):
    def run(make, steps: int, name: str) -> Run:
        place = str(folder / name.replace(" ", "-"))
        config = TrainerConfig(
            id="run",
            tracker=NoopConfig(),
            log_dir=Path(place),
            log_jaxprs=False,
            log_xla_hlo=False,
            train_batch_size=BATCH.size,
            num_train_steps=steps,
            crash_on_nan=False,
            require_accelerator=False,
            checkpointer=CheckpointerConfig(base_path=place, save_interval=None, keep=None),
            **ways,
        )
        key, recorder = jax.random.PRNGKey(0), Recorder()
        with levanter.tracker.current_tracker(recorder):
            with Trainer(config, make(RATE), loss) as trainer:
                state = trainer.initial_state(key, model_init=lambda: Model.init(key))
                data = batches("skip" in name, int(state.step))
                state = trainer.train(state, data).state
        rates = recorder.rows.get("optim/learning_rate", [])
        return Run(recorder.rows["train/loss"], rates, arrays(state))

    return run


def registered() -> dict[str, Case]:
    """The page's configuration beside `type: adam`, as Levanter parses them."""
    exec(cells.on_page("register_subclass"), {"__name__": "page"})

    def configured(text: str):
        config = draccus.decode(OptimizerConfig, yaml.safe_load(text))
        return lambda rate: config.build(STEPS)

    pattern = r"^```yaml\noptimizer: (.*)$"
    [bits] = re.findall(pattern, cells.PAGE.read_text(), re.MULTILINE)
    dense = re.sub(r", \w+: int8", "", bits)
    theirs = configured(dense.replace("adam_jax", "adam"))
    return {
        "type: adam_jax": Case(configured(dense), theirs),
        "type: adam_jax, int8": Case(configured(bits), theirs, 2e-2),
    }


def main() -> None:
    ways = {"data 4": {}, "data 2, model 2": dict(mesh=MeshConfig(axes={"data": 2, "model": 2}))}
    if jax.device_count() == 1:
        ways = {"1 device": {}}
    own = registered()
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in ways.items():
            run, both = runner(settings, Path(folder)), own["type: adam_jax"]
            measure("Levanter", name, run, CASES | own)
            run(both.optax, STEPS // 2, f"{name} continued")
            rest = run(both.ours, STEPS, f"{name} continued").losses
            whole = run(both.optax, STEPS, f"{name} whole").losses
            assert far(rest, whole[-len(rest) :]) < 1e-5, "of Levanter's own checkpoint"


if __name__ == "__main__":
    main()
