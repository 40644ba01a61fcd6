"""`train --rewind-after`: the epoch of a spike is trained again, with other batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.mnist import data, train
from examples.mnist.runs import Config, Run

BAD = np.arange(640)  # White images: a batch of them, all of one class, is a spike.


@pytest.fixture
def digits():
    its = data.load()
    images, labels = its.train_images[:3200].copy(), its.train_labels[:3200].copy()
    images[BAD], labels[BAD] = 255, BAD // 64
    small = dict(test_images=its.test_images[:200], test_labels=its.test_labels[:200])
    return dataclasses.replace(its, train_images=images, train_labels=labels, **small)


def trained(folder, digits, **settings):
    config = Config(model="softmax", epochs=3, **settings)
    Run.prepare(folder, config)
    train.train(Run(folder), digits)
    run = Run(folder)
    state = run.restore(train.build(config, 150)[1])[1]
    return [x["train_loss"] for x in run.metrics(3)], state


@pytest.mark.slow
def test_the_epoch_of_a_spike_is_repeated_from_the_checkpoint_before(
    tmp_path, digits, monkeypatch, capsys
):
    plain, spiked = data.batches, []
    second = jax.random.fold_in(jax.random.split(jax.random.key(0))[0], 1)

    def batches(key, count, size):
        order = np.asarray(plain(key, count, size))
        if np.array_equal(jax.random.key_data(key), jax.random.key_data(second)):
            spiked.append(len(order))
            order = np.concatenate([order[~np.isin(order, BAD)], BAD]).reshape(order.shape)
        return jnp.asarray(order)

    monkeypatch.setattr(data, "batches", batches)
    losses, state = trained(tmp_path / "rewound", digits, rewind_after=5)
    said = capsys.readouterr().out
    assert said.count("were spikes: again from the checkpoint before") == 1 and len(spiked) == 1
    assert int(state.step) == 3 * 50 and losses[1] < losses[0]
    kept, _ = trained(tmp_path / "kept", digits)
    assert "again" not in capsys.readouterr().out
    assert losses[0] == pytest.approx(kept[0], rel=1e-4) and losses[1] != kept[1]
