"""Random search with successive halving: a population is trained at once, and the worst dropped.

Jamieson & Talwalkar 2016 (https://arxiv.org/abs/1502.07943), algorithm 1: of n members, all trained
for r steps, the third with the lowest loss on held-out digits continues to 3r steps, and so on.
Members continue from their states; nothing is trained twice.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from examples.shared import files, strict_json, study
from examples.shared.files import write_whole
from examples.studies import population
from examples.studies.population import Members, Numbers, Split

SCHEDULES = ("constant", "cosine", "warmup-cosine", "inverse-sqrt")
BATCH, HELD_OUT = 64, 1000

# The range of each hyperparameter; the search is uniform in its logarithm. For decay rates it is
# 1 - b, the inverse of the steps that an average remembers.
RANGES = {
    "learning_rate": (1e-4, 1e-1),
    "one_minus_b1": (0.01, 0.5),
    "one_minus_b2": (1e-4, 0.1),
    "eps": (1e-10, 1e-4),
    "weight_decay": (1e-5, 1.0),
}


def sample(seed: int, members: int) -> Numbers:
    """Hyperparameters for a population, float32 [members] each; `schedule` is an index."""
    keys = jax.random.split(jax.random.key(seed), len(RANGES) + 1)
    numbers = {
        name: jnp.exp(jax.random.uniform(key, (members,), minval=np.log(low), maxval=np.log(high)))
        for key, (name, (low, high)) in zip(keys, RANGES.items(), strict=False)
    }
    schedule = jax.random.randint(keys[-1], (members,), 0, len(SCHEDULES))
    return numbers | {"schedule": schedule}


def make_adamw(
    horizon: int,
    *,
    learning_rate: jax.Array,
    one_minus_b1: jax.Array,
    one_minus_b2: jax.Array,
    eps: jax.Array,
    weight_decay: jax.Array,
    schedule: jax.Array,
) -> adam_jax.Transformation:
    """AdamW with traced hyperparameters, among them the index of its schedule over `horizon`."""

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(count, jnp.float32)
        warmup = 0.1 * horizon
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * t / horizon))
        warmed = 0.5 * (1 + jnp.cos(jnp.pi * (t - warmup) / (horizon - warmup)))
        shapes = [
            jnp.ones_like(t),
            cosine,
            jnp.where(t < warmup, (t + 1) / (warmup + 1), warmed),
            1 / jnp.sqrt(t + 1),
        ]
        return learning_rate * jnp.select([schedule == i for i in range(len(shapes))], shapes)

    return adam_jax.adamw(
        rate, b1=1 - one_minus_b1, b2=1 - one_minus_b2, eps=eps, weight_decay=weight_decay
    )


@dataclasses.dataclass(frozen=True)
class Horizon:
    """`make_adamw` for that many steps; equal ones share a compiled program."""

    steps: int

    def __call__(self, **numbers: jax.Array) -> adam_jax.Transformation:
        """The optimizer of one member."""
        return make_adamw(self.steps, **numbers)


@dataclasses.dataclass(frozen=True)
class Rung:
    """A rung of the search: the number of members, and the steps they are trained to."""

    members: int
    steps: int


def rungs(members: int, least: int, most: int) -> list[Rung]:
    """`members` for `least` steps, then a third of them for three times as many, up to `most`."""
    ladder = [Rung(members, least)]
    while ladder[-1].members >= 3 and ladder[-1].steps * 3 <= most:
        ladder.append(Rung(ladder[-1].members // 3, ladder[-1].steps * 3))
    return ladder


class Halving:
    """The search's state between rungs, which a resumed study reads from a file."""

    def __init__(self, folder: Path, model: str, seed: int, ladder: list[Rung], train: Split):
        self.folder, self.model, self.ladder, self.train = folder, model, ladder, train
        self.horizon, self.seed = Horizon(ladder[-1].steps), seed
        self.numbers = sample(seed, ladder[0].members)
        self.keys = jax.random.split(jax.random.key(seed + 1), ladder[0].members)
        self.orders = population.orders(self.keys, len(train.labels), BATCH, ladder[-1].steps)

    def pieces(self, validation: Split) -> list[study.Piece]:
        """One piece per rung."""

        def piece(k: int) -> study.Piece:
            before = self.ladder[k - 1].steps if k else 0
            cost = self.ladder[k].members * (self.ladder[k].steps - before)
            return study.Piece(f"rung {k}", lambda: self.climb(k, before, validation), cost)

        return [piece(k) for k in range(len(self.ladder))]

    def climb(self, k: int, before: int, validation: Split) -> study.Result:
        """Trains the members of rung k from `before` to its steps; returns the survivors.

        Returns:
          `members`, their indices in the first population, and `validation_loss` of each; the file
          `rung-K.npz` holds the state of the best third.
        """
        rung = self.ladder[k]
        chosen, members = self.start() if k == 0 else self.read(k - 1)
        numbers = {name: x[chosen] for name, x in self.numbers.items()}
        members, _ = population.advance(
            members,
            numbers,
            self.orders[chosen, before : rung.steps],
            self.train,
            jax.random.key(self.seed),
            model=self.model,
            make=self.horizon,
        )
        loss, _ = population.evaluate(members.params, validation, model=self.model)
        loss = np.nan_to_num(np.asarray(loss), nan=np.inf)
        survivors = np.sort(np.argsort(loss, kind="stable")[: max(1, rung.members // 3)])
        kept = chosen[survivors].astype(np.int32), jax.tree.map(lambda x: x[survivors], members)
        files.save(self.folder / f"rung-{k}.npz", kept)
        return {"members": chosen, "validation_loss": loss.clip(max=1e9)}

    def start(self) -> tuple[np.ndarray, Members]:
        """All members before their first step."""
        params = population.initial(self.keys, model=self.model)
        everyone = np.arange(self.ladder[0].members)
        return everyone, population.start(params, self.numbers, self.horizon)

    def read(self, k: int) -> tuple[np.ndarray, Members]:
        """The survivors of rung k: their indices and their state."""
        count = max(1, self.ladder[k].members // 3)
        like = jax.eval_shape(
            lambda: jax.tree.map(lambda x: x[:count], (jnp.arange(count), self.start()[1]))
        )
        chosen, members = files.load(self.folder / f"rung-{k}.npz", like)
        return np.asarray(chosen), members


def described(numbers: dict[str, Any]) -> dict[str, Any]:
    """One member's hyperparameters as arguments of `adamw`, and the name of its schedule."""
    readable = {name: float(x) for name, x in numbers.items() if name != "schedule"}
    return {
        "learning_rate": readable["learning_rate"],
        "b1": 1 - readable["one_minus_b1"],
        "b2": 1 - readable["one_minus_b2"],
        "eps": readable["eps"],
        "weight_decay": readable["weight_decay"],
        "schedule": SCHEDULES[int(numbers["schedule"])],
    }


def write_best(folder: Path, best: dict[str, Any]) -> None:
    """Saves the best member."""
    write_whole(folder / "best.json", strict_json.dumps(best, indent=1) + "\n")
