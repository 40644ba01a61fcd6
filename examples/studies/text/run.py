"""A training run on disk: pieces of training, a checkpoint after each, and the results."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.shared import files
from examples.shared.command_line import UserError
from examples.shared.study import Piece, Result, Study
from examples.studies.text import corpus
from examples.studies.text.corpus import Corpus
from examples.studies.text.sample import generate
from examples.studies.text.train import Config, build, train_steps, validate

STRIDE = 25  # Steps in one dispatch, between two validations.
ORDERS = 8  # Characters of the longest n-gram model, including the predicted one.
OPENING = "The "  # The prompt of a run's samples.
TEMPERATURES = (0.5, 0.8, 1.0)  # Of the samples.


class Run:
    """A study whose pieces are stretches of training, with checkpoints between them.

    FOLDER/N.npz   the training state after N steps, the last two. If a checkpoint has no piece yet,
                   the piece is computed again.
    """

    def __init__(self, folder: Path, config: Config, text: Corpus):
        """Opens or creates a run. Raises UserError if settings or text have changed."""
        if len(text.validation) <= config.context:
            raise UserError(f"context {config.context} is longer than the validation text")
        settings = dataclasses.asdict(config)
        settings |= {"vocabulary": text.vocabulary, "text": text.digest}
        self.study, self.config, self.text = Study(folder, settings), config, text
        self.graph, self.state = build(config, text.vocabulary)
        self.done = 0  # The number of steps in the state.

    def train(self) -> list[Result]:
        """Resumes training to the end; returns the results by stretches of training."""
        ends = [*range(0, self.config.steps, STRIDE), self.config.steps]
        pieces = [
            Piece(
                f"step {end}",
                functools.partial(self._advance, begin, end),
                cost=end - begin,
                loss="train_losses",
            )
            for begin, end in itertools.pairwise(ends)
        ]
        return list(self.study.run(pieces).values())

    def judge(self) -> tuple[list[float], dict[str, str]]:
        """The losses of n-gram models, and samples of the trained model by temperature."""
        pieces = [
            Piece("n-grams", lambda: {"losses": corpus.ngram_losses(self.text, ORDERS)}),
            Piece("samples", self._samples),
        ]
        results = self.study.run(pieces)
        return results["n-grams"]["losses"], results["samples"]

    def _reach(self, step: int) -> None:
        """Restores a checkpoint unless its state is already loaded."""
        if self.done != step:
            path = self.study.folder / f"{step}.npz"
            # Step 0 has no file.
            self.state = files.load(path, self.state) if step else self.state
            self.done = step

    def _advance(self, begin: int, end: int) -> Result:
        self._reach(begin)
        graph, config = self.graph, self.config
        state, losses = train_steps(
            self.state,
            jnp.asarray(self.text.train),
            count=end - begin,
            graph=graph,
            config=config,
        )
        self.state, self.done = state, end
        held_out = jnp.asarray(self.text.validation)
        validation = validate(
            state.params, held_out, stride=config.context, graph=graph, config=config
        )
        result = {
            "step": end,
            "train_losses": np.asarray(losses, np.float64).round(5),
            "validation_loss": float(validation.mean()),
        }
        files.save(self.study.folder / f"{end}.npz", state)
        (self.study.folder / f"{begin - STRIDE}.npz").unlink(missing_ok=True)
        return result

    def _samples(self) -> Result:
        self._reach(self.config.steps)
        return {f"{temperature:g}": self._sample(temperature, 400) for temperature in TEMPERATURES}

    def _sample(self, temperature: float, length: int) -> str:
        key = jax.random.key(self.config.seed)
        prompt = corpus.encode(OPENING, self.text.vocabulary)
        context = self.config.context
        written = generate(self.graph, self.state.params, prompt, length, temperature, context, key)
        return OPENING + corpus.decode(written, self.text.vocabulary)


def trained(folder: Path) -> tuple[Any, Any, Config, str]:
    """Of a run so far: the graph, the parameters, the settings, the vocabulary.

    Raises UserError if there is no run, or no checkpoint in it.
    """
    path = folder / "settings.json"
    if not path.exists():
        raise UserError(f"{folder} holds no run; train one with --out {folder}")
    settings = json.loads(path.read_text())
    vocabulary = settings.pop("vocabulary")
    del settings["text"]
    config = Config(**settings)
    steps = [int(path.stem) for path in folder.glob("*.npz")]
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet; continue training with --out {folder}")
    graph, state = build(config, vocabulary)
    return graph, files.load(folder / f"{max(steps)}.npz", state).params, config, vocabulary
