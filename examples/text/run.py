"""A training run on disk: pieces of training, a checkpoint after each, and the results."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from examples.study import Piece, Result, Study, StudyError
from examples.text import corpus
from examples.text.corpus import Corpus
from examples.text.sample import generate
from examples.text.train import Config, TrainState, build, train_steps, validate

STRIDE = 50  # Steps in one dispatch, between two validations.
ORDERS = 8  # Characters of the longest n-gram model, including the predicted one.
OPENING = "The "  # The prompt of a run's samples.
TEMPERATURES = (0.5, 0.8, 1.0)  # Of the final samples; earlier samples use the middle one.


class Run:
    """A study whose pieces are stretches of training, with checkpoints between them.

    FOLDER/checkpoints/N/   the training state after N steps (Orbax), the last two. If a checkpoint
                            has no piece yet, the piece is computed again.
    """

    def __init__(self, folder: Path, config: Config, text: Corpus):
        """Opens or creates a run. Raises StudyError if settings or text have changed."""
        if len(text.validation) <= config.context:
            raise StudyError(f"context {config.context} is longer than the validation text")
        settings = dataclasses.asdict(config)
        settings |= {"vocabulary": text.vocabulary, "text": text.digest}
        self.study, self.config, self.text = Study(folder, settings), config, text
        self.checkpoints = _checkpoints(folder)
        self.graph, self.state = build(config, text.vocabulary)
        self.done = 0  # The number of steps in the state.

    def train(self) -> list[Result]:
        """Resumes training to the end; returns the results by stretches of training."""
        ends = [*range(0, self.config.steps, STRIDE), self.config.steps]
        pieces = [
            Piece(f"step {end}", functools.partial(self._advance, begin, end), cost=end - begin)
            for begin, end in itertools.pairwise(ends)
        ]
        return list(self.study.run(pieces).values())

    def judge(self) -> Result:
        """Evaluates the trained model: its loss by characters seen, n-grams, samples."""
        pieces = [
            Piece("n-grams", lambda: {"losses": corpus.ngram_losses(self.text, ORDERS)}),
            Piece("context", self._by_context),
            Piece("samples", self._samples),
        ]
        results = self.study.run(pieces)
        return {
            "ngrams": results["n-grams"]["losses"],
            "by_context": results["context"]["losses"],
            "samples": results["samples"],
        }

    def _reach(self, step: int) -> None:
        """Restores a checkpoint unless its state is already loaded."""
        if self.done != step:
            self.state, self.done = restore(self.checkpoints, step, self.state), step

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
        result = {
            "step": end,
            "train_losses": np.asarray(losses, np.float64).round(5),
            "validation_loss": float(self._validate(config.context).mean()),
            "sample": self._sample(TEMPERATURES[1], 150),
        }
        if end in self.checkpoints.all_steps():
            self.checkpoints.delete(end)
        self.checkpoints.save(end, args=ocp.args.StandardSave(state))
        self.checkpoints.wait_until_finished()
        return result

    def _validate(self, stride: int) -> jax.Array:
        text = jnp.asarray(self.text.validation)
        return validate(
            self.state.params, text, stride=stride, graph=self.graph, config=self.config
        )

    def _by_context(self) -> Result:
        self._reach(self.config.steps)
        return {"losses": self._validate(max(1, self.config.context // 8))}

    def _samples(self) -> Result:
        self._reach(self.config.steps)
        return {f"{temperature:g}": self._sample(temperature, 400) for temperature in TEMPERATURES}

    def _sample(self, temperature: float, length: int) -> str:
        key = jax.random.key(self.config.seed)
        prompt = corpus.encode(OPENING, self.text.vocabulary)
        context = self.config.context
        written = generate(self.graph, self.state.params, prompt, length, temperature, context, key)
        return OPENING + corpus.decode(written, self.text.vocabulary)


def _checkpoints(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    return ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)


def restore(checkpoints: ocp.CheckpointManager, step: int, like: TrainState) -> TrainState:
    """Restores the state after a step, with the types and the devices of `like`."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return cast(TrainState, checkpoints.restore(step, args=ocp.args.StandardRestore(abstract)))


def trained(folder: Path) -> tuple[Any, Any, Config, str]:
    """Of a run so far: the graph, the parameters, the settings, the vocabulary.

    Raises StudyError if there is no run, or no checkpoint in it.
    """
    path = folder / "settings.json"
    if not path.exists():
        raise StudyError(f"{folder} holds no run; train one with --out {folder}")
    settings = json.loads(path.read_text())
    vocabulary = settings.pop("vocabulary")
    del settings["text"]
    config = Config(**settings)
    checkpoints = _checkpoints(folder)
    step = checkpoints.latest_step()
    if step is None:
        raise StudyError(f"{folder} has no checkpoint yet; continue training with --out {folder}")
    graph, state = build(config, vocabulary)
    return graph, restore(checkpoints, step, state).params, config, vocabulary
