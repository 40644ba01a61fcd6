"""Redraws docs/watch-page.png and docs/watch-terminal.svg, from a training on MNIST.

    python -m tests.tools.watch_pictures DATA_DIR [OUT]

A small CNN learns the digits of DATA_DIR. In two steps loss and gradients are a thousand times
too large, in another they are NaN. The records are in OUT (default: runs/watch). Needs Chromium.
"""

import argparse
import io
import re
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import adam_jax
from adam_jax.inspect import append_json_line
from adam_jax.inspect.watch import server, table, views
from examples.mnist import data
from examples.mnist.models import MODELS
from examples.mnist.preprocessing import normalise
from tests.catalogue.browser import chromium

DOCS = Path(__file__).parents[2] / "docs"
FACTORS = {600: 1e3, 1000: np.nan, 1401: 1e3}  # of loss and gradients, by step


def train(digits, out):
    """Writes the records of 1,800 steps of four times 32 digits."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, 1800, 3e-4)
    tx = adam_jax.clip_by_history(adam_jax.adamw(rate, weight_decay=1e-2))
    tx = adam_jax.skip_nonfinite(adam_jax.telemetry(tx, every=10))
    tx = adam_jax.estimate_noise_scale(adam_jax.accumulate(tx, 4), decay=0.99, every=1)
    graph, params = nnx.split(MODELS["small-cnn"](nnx.Rngs(0)))
    state, random = tx.init(params), np.random.default_rng(0)

    def loss_of(params, x, y):
        logits = nnx.merge(graph, params)(normalise(x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train_step(params, state, x, y, factor):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        grads = jax.tree.map(lambda g: factor * g, grads)
        return *adam_jax.step(tx, grads, state, params, weight=32.0), loss * factor

    test_loss = jax.jit(loss_of)
    loss = None
    for step in range(1, 1801):
        for batch in random.integers(0, len(digits.train_labels), (4, 32)):
            x, y = digits.train_images[batch], digits.train_labels[batch].astype(np.int32)
            params, state, loss = train_step(params, state, x, y, FACTORS.get(step, 1.0))
        record = adam_jax.measured(state)
        if step % 10 == 0 or step in FACTORS:
            record |= {"step": step, "loss": loss, "learning_rate": rate(step)}
            record["skipped"] = adam_jax.skipped(state).total
            if step % 100 == 0:
                y = digits.test_labels[:2000].astype(np.int32)
                record["test_loss"] = test_loss(params, digits.test_images[:2000], y)
            append_json_line(out / "telemetry.jsonl", record)


def main():
    """Trains unless there are records, and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/watch"))
    options = parser.parse_args()
    if not options.out.exists():
        train(data.load(options.data_dir), options.out)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(table(next(views(options.out)), console.width))
    console.print()  # Rich cuts the last line off.
    svg = console.export_svg(title="python -m adam_jax watch runs/watch")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # They are on another host.
    (DOCS / "watch-terminal.svg").write_text(svg)
    with tempfile.TemporaryDirectory() as profile, server(options.out, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        browser = chromium(profile)
        for scheme, picture in (
            ("dark", options.out / "dark.png"),
            ("light", DOCS / "watch-page.png"),
        ):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            size = {"width": 1340, "height": 790, "deviceScaleFactor": 1.5, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(f"http://127.0.0.1:{serving.server_port}")
            browser.implicitly_wait(30)
            browser.find_element("tag name", "section")
            browser.save_screenshot(str(picture))
        browser.quit()
        serving.shutdown()


if __name__ == "__main__":
    main()
