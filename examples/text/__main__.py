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
from absl import logging as absl_logging

from examples import study
from examples.options import above_0, positive, rate, seed
from examples.study import StudyError
from examples.text import corpus, plots
from examples.text.run import Run, trained
from examples.text.sample import generate
from examples.text.train import FAST, Config, schedule


def parser() -> argparse.ArgumentParser:
    """The arguments of the two commands."""
    top = argparse.ArgumentParser(
        prog="python -m examples.text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)

    # argparse adds its own -h.
    shared = study.arguments("examples.text", None, digits=False)
    t = commands.add_parser("train", parents=[shared], conflict_handler="resolve")
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


def _train(arguments: argparse.Namespace) -> None:
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Config)
        if hasattr(arguments, field.name)
    }
    config = dataclasses.replace(FAST if arguments.fast else Config(), **given)
    text = corpus.load()
    run = Run(arguments.out, config, text)
    say = run.study.say
    say(
        f"{len(text.train):,} characters to train on, {len(text.validation):,} held out,"
        f" {len(text.vocabulary)} different;"
        f" {sum(x.size for x in jax.tree.leaves(run.state.params)):,} parameters, {config.dtype}"
    )
    stretches, found = run.train(), run.judge()
    ngrams = found["ngrams"]
    loss = stretches[-1]["validation_loss"]
    best = min(stretches, key=lambda stretch: stretch["validation_loss"])
    order = int(np.argmin(ngrams)) + 1
    yardsticks = {"unigrams": ngrams[0], "bigrams": ngrams[1], f"{order}-grams": ngrams[order - 1]}

    rows = [(name, *_nats_and_bits(value)) for name, value in yardsticks.items()]
    rows.append((f"transformer, {config.steps} steps", *_nats_and_bits(loss)))
    say(run.study.table(("model", "nats a character", "bits a character"), rows, "table"))
    say(
        f"Validation loss {loss:.3f} nats: {_beside(loss, ngrams[1])} the bigrams',"
        f" {_beside(loss, ngrams[order - 1])} that of the best n-grams (n = {order}, chosen on the"
        f" validation text itself). It was lowest at step {best['step']}:"
        f" {best['validation_loss']:.3f}."
    )
    by_context = found["by_context"]
    half = len(by_context) // 2
    near, far = np.mean(by_context[half // 2 : half]), np.mean(by_context[half:])
    gain = (
        f"With {half + 1} to {len(by_context)} characters seen, the transformer's loss is"
        f" {_beside(far, near)} that with {half // 2 + 1} to {half}"
    )
    say(f"{gain}.")
    for temperature, sample in found["samples"].items():
        say(f"\n--- temperature {temperature}\n{sample}")

    _write_samples(arguments.out / "samples.md", stretches, found["samples"])
    rates = np.asarray(jax.vmap(schedule(config))(np.arange(config.steps)))
    plots.loss_curves(
        stretches,
        yardsticks,
        rates,
        f"After {config.steps} steps {loss:.2f} nats a character,"
        f" {_beside(loss, ngrams[1], 2)} the bigrams'",
        arguments.out / "curves.png",
    )
    plots.context_curves(by_context, ngrams, gain, arguments.out / "context.png")


def _nats_and_bits(nats: float) -> tuple[str, str]:
    return f"{nats:.3f}", f"{nats / np.log(2):.3f}"


def _beside(loss: float, other: float, digits: int = 3) -> str:
    """The difference of a loss to another, in words."""
    return f"{abs(loss - other):.{digits}f} {'below' if loss < other else 'above (NOT below)'}"


def _write_samples(path: Path, stretches: list[study.Result], at_end: study.Result) -> None:
    """Samples of the model after each stretch of training, and at the end at each temperature."""
    texts = [
        (f"After {stretch['step']} steps, {stretch['validation_loss']:.3f} nats", stretch["sample"])
        for stretch in stretches
    ]
    texts += [(f"At the end, temperature {heat}", text) for heat, text in at_end.items()]
    path.write_text("\n".join(f"## {title}\n\n```\n{text}\n```\n" for title, text in texts))


def _sample(arguments: argparse.Namespace) -> None:
    if not arguments.prompt:
        raise StudyError("the prompt is empty; write at least one character")
    graph, params, config, vocabulary = trained(arguments.run)
    prompt = corpus.encode(arguments.prompt, vocabulary)
    key = jax.random.key(arguments.seed)
    written = generate(
        graph, params, prompt, arguments.length, arguments.temperature, config.context, key
    )
    print(arguments.prompt + corpus.decode(written, vocabulary))


def main(argv: list[str] | None = None) -> None:
    """Runs one command."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax reports every file it writes.
    arguments = parser().parse_args(argv)
    {"train": _train, "sample": _sample}[arguments.command](arguments)


if __name__ == "__main__":
    study.command(main)
