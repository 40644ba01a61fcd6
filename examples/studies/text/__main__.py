"""Trains a character-level transformer on the Python language reference, and samples from it.

The text is that of Python's own `help()`: chapters of the language reference (Copyright Python
Software Foundation, PSF licence version 2), about 340,000 characters. It differs slightly between
versions of Python. The last 10 % are held out.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np

from examples.shared import study
from examples.shared.command_line import UserError, above_0, positive, rate, seed
from examples.studies.text import corpus, plots
from examples.studies.text.run import Run, trained
from examples.studies.text.sample import generate
from examples.studies.text.train import FAST, Config, schedule

SHARED = study.Parser("studies.text", None, fast=15, full=247)


def parser() -> argparse.ArgumentParser:
    """The arguments of the two commands."""
    top = argparse.ArgumentParser(
        prog="python -m examples.studies.text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)

    # argparse adds its own -h.
    t = commands.add_parser("train", parents=[SHARED], conflict_handler="resolve")
    for name, kind in (
        ("steps", positive),
        ("batch_size", positive),
        ("context", positive),
        ("width", positive),
        ("layers", positive),
        ("heads", positive),
        ("learning_rate", rate),
        ("weight_decay", rate),
    ):
        default, fast = getattr(Config(), name), getattr(FAST, name)
        t.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            help=f"default {default:g}" + (f", with --fast {fast:g}" if fast != default else ""),
        )
    t.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default=argparse.SUPPRESS,
        help="of parameters and computation; the moments are always float32 (default float32)",
    )

    s = commands.add_parser("sample", help="generate text with a trained model")
    s.add_argument("run", type=Path, metavar="RUN")
    s.add_argument("--prompt", default="The ", help="the start of the text")
    s.add_argument("--length", type=positive, default=400, help="characters (%(default)s)")
    s.add_argument("--temperature", type=above_0, default=0.8, help="(%(default)s)")
    s.add_argument("--seed", type=seed, default=0)
    return top


def train(arguments: argparse.Namespace) -> None:
    """Trains a model, or continues to; writes table.md and curves.png."""
    SHARED.announce(arguments)
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Config)
        if hasattr(arguments, field.name)
    }
    config = dataclasses.replace(FAST if arguments.fast else Config(), **given)
    text = corpus.load()
    run = Run(arguments.out, config, text)
    print(
        f"{len(text.train):,} characters to train on, {len(text.validation):,} held out,"
        f" {len(text.vocabulary)} different;"
        f" {sum(x.size for x in jax.tree.leaves(run.state.params)):,} parameters, {config.dtype}"
    )
    stretches, ngrams, samples = run.train(), *run.judge()
    order = int(np.argmin(ngrams)) + 1
    losses = {"unigrams": ngrams[0], "bigrams": ngrams[1], f"{order}-grams": ngrams[order - 1]}
    rates = np.asarray(jax.vmap(schedule(config))(np.arange(config.steps)))
    plots.loss_curves(stretches, losses, rates, arguments.out / "curves.png")
    losses[f"transformer, {config.steps} steps"] = stretches[-1]["validation_loss"]
    rows = [(name, f"{x:.3f}", f"{x / np.log(2):.3f}") for name, x in losses.items()]
    print(run.study.table(("model", "nats a character", "bits a character"), rows, "table"))
    for temperature, sample in samples.items():
        print(f"--- temperature {temperature}\n{sample}\n")


def sample(arguments: argparse.Namespace) -> None:
    """Prints text that a trained model generates."""
    if not arguments.prompt:
        raise UserError("the prompt is empty; write at least one character")
    graph, params, config, vocabulary = trained(arguments.run)
    prompt = corpus.encode(arguments.prompt, vocabulary)
    key = jax.random.key(arguments.seed)
    written = generate(
        graph, params, prompt, arguments.length, arguments.temperature, config.context, key
    )
    print(arguments.prompt + corpus.decode(written, vocabulary))


def main(argv: list[str] | None = None) -> None:
    """Runs one command."""
    arguments = parser().parse_args(argv)
    {"train": train, "sample": sample}[arguments.command](arguments)


if __name__ == "__main__":
    study.command(main)
