"""The same search as an Optuna study: sequential trials through one compiled program."""

import argparse
import csv
import math

import jax
import jax.numpy as jnp
import optuna
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from examples.mnist import population
from examples.mnist.population import Split
from examples.study import Study, StudyError
from examples.tune.search import BATCH, RANGES, SCHEDULES, Horizon, Rung, described, write_best


def tune(options: argparse.Namespace, ladder: list[Rung], parts: tuple[Split, ...]) -> None:
    """Runs trials until the study has the requested number; continues an existing study.

    Args:
      options: of the command.
      ladder: a trial may be pruned at the end of each rung.
      parts: training, held-out and test digits.
    """
    train, validation, test = parts
    settings = {"driver": "optuna", "model": options.model, "seed": options.seed}
    settings |= {"data_dir": str(options.data_dir), "steps": [rung.steps for rung in ladder]}
    Study(options.out, settings)  # Raises an error if the folder holds another search.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(highlight=False)
    trials = options.trials or (4 if options.fast else 60)
    model, ends = options.model, [rung.steps for rung in ladder]
    make = Horizon(ends[-1])
    keys = jax.random.split(jax.random.key(options.seed), 1)
    params = population.initial(keys, model=model)
    order = population.orders(keys, len(train.labels), BATCH, ends[-1])

    def objective(trial: optuna.Trial) -> float:
        numbers = {
            name: jnp.full(1, trial.suggest_float(name, low, high, log=True), jnp.float32)
            for name, (low, high) in RANGES.items()
        }
        schedule = SCHEDULES.index(trial.suggest_categorical("schedule", SCHEDULES))
        numbers["schedule"] = jnp.full(1, schedule, jnp.int32)
        state, loss = population.start(params, numbers, make), math.inf
        for before, end in zip([0, *ends], ends, strict=False):
            rows = order[:, before:end]
            state, _ = population.advance(
                state, numbers, rows, train, keys[0], model=model, make=make
            )
            loss = float(population.evaluate(state.params, validation, model=model)[0][0])
            loss = loss if math.isfinite(loss) else 1e9
            trial.report(loss, end)
            if trial.should_prune():
                raise optuna.TrialPruned
        test_loss, test_accuracy = population.evaluate(state.params, test, model=model)
        trial.set_user_attr("test_loss", float(test_loss[0]))
        trial.set_user_attr("test_accuracy", float(test_accuracy[0]))
        return loss

    done = optuna.create_study(
        storage=f"sqlite:///{options.out / 'optuna.db'}",
        study_name=f"{model}, seed {options.seed}, {ends[-1]} steps",
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(ends[0], 3),
    )
    # An interrupted trial counts as failed, and not towards the requested number.
    whole = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    finished = done.get_trials(states=whole)
    if finished:
        console.print(f"{len(finished)} of {trials} trials were done before")
    # The sampler's state is not in the file, so a resumed study has another seed.
    done.sampler = optuna.samplers.TPESampler(seed=options.seed + len(finished))
    columns = (TextColumn("trial"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    terminal = console.is_terminal
    with Progress(*columns, console=console, disable=not terminal, transient=True) as bar:
        task = bar.add_task("", total=trials, completed=len(finished))

        def tell(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            bar.advance(task)
            if not terminal:
                last = list(trial.intermediate_values.values())[-1]
                console.print(f"trial {trial.number}: {trial.state.name.lower()}, loss {last:.4f}")

        done.optimize(objective, n_trials=max(0, trials - len(finished)), callbacks=[tell])
    if not done.get_trials(states=whole[:1]):
        raise StudyError(f"no trial in {options.out} is complete yet; ask for more --trials")
    best = done.best_trial
    numbers = {**best.params, "schedule": SCHEDULES.index(best.params["schedule"])}
    arguments = described(numbers)
    write_best(options.out, arguments | best.user_attrs | {"validation_loss": best.value})
    with (options.out / "runs.csv").open("w", newline="") as file:
        names = [*RANGES, "schedule"]
        writer = csv.writer(file)
        writer.writerow(["trial", "state", *names, "steps", "validation loss"])
        for t in done.trials:
            last = max(t.intermediate_values, default=0)
            values = [t.params.get(name, "") for name in names]
            writer.writerow(
                [t.number, t.state.name, *values, last, t.intermediate_values.get(last)]
            )
    pruned = sum(t.state == optuna.trial.TrialState.PRUNED for t in done.trials)
    console.print(f"best of {len(done.trials)} trials, {pruned} of them pruned: {arguments}")
    console.print(
        f"held-out loss {best.value:.4f}, test accuracy {best.user_attrs['test_accuracy']:.4f};"
        f" {options.out}/optuna.db, runs.csv, best.json",
        soft_wrap=True,
    )
