"""The character transformer: its text, n-gram losses, training and sampling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.shared.command_line import UserError
from examples.studies.text import corpus
from examples.studies.text.__main__ import main
from examples.studies.text.run import trained
from examples.studies.text.sample import generate
from examples.studies.text.train import FAST, Config, build, schedule, train_steps
from tests.examples.processes import pieces, shows_something

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run of the fast setting."""
    out = tmp_path_factory.mktemp("text") / "run"
    main(["train", "--fast", "--out", str(out)])
    return out


def test_the_held_out_text_is_not_in_the_training_text():
    text = corpus.load()
    train, validation = (corpus.decode(t, text.vocabulary) for t in (text.train, text.validation))
    assert train + validation == corpus.text()
    assert 0.09 < len(validation) / len(train + validation) < 0.11
    size = 30
    seen = {train[i : i + size] for i in range(len(train))}
    windows = [validation[i : i + size] for i in range(len(validation) - size)]
    assert np.mean([window in seen for window in windows]) < 0.05


def test_ngram_losses_by_hand():
    text = corpus.Corpus("ab", np.array([0, 0, 1, 0, 0], np.int32), np.array([1, 0], np.int32))
    a, b = (4 + 2 * 1 / 2) / (5 + 2), (1 + 2 * 1 / 2) / (5 + 2)
    # After a: a, b, a, and a again because the text wraps. After b: a.
    b_after_a, a_after_b = (1 + 2 * b) / (4 + 2), (1 + 1 * a) / (1 + 1)
    by_hand = [-math.log(a * b) / 2, -math.log(b_after_a * a_after_b) / 2]
    assert corpus.ngram_losses(text, 2) == pytest.approx(by_hand)


def test_the_schedule_rises_falls_and_ends_at_a_tenth():
    config = Config(steps=100, learning_rate=1e-3)
    rates = jax.jit(jax.vmap(schedule(config)))(jnp.array([0, 5, 10, 55, 100]))
    assert rates.tolist() == pytest.approx([0, 5e-4, 1e-3, 5.5e-4, 1e-4])


def test_it_learns_more_than_pairs_of_characters(finished, capsys):
    found = pieces(finished)
    last = found[f"step {FAST.steps}"]["validation_loss"]
    unigrams, bigrams, *_ = found["n-grams"]["losses"]
    assert last < bigrams < unigrams < math.log(103)
    assert found["step 50"]["validation_loss"] > last + 0.3
    assert shows_something(finished / "curves.png", 800)
    # A second run trains nothing and draws its conclusions from the stored results.
    before = (finished / "pieces.jsonl").read_bytes()
    main(["train", "--fast", "--out", str(finished)])
    assert (finished / "pieces.jsonl").read_bytes() == before
    assert f"| transformer, {FAST.steps} steps | {last:.3f} |" in capsys.readouterr().out


def test_bfloat16_is_stored_and_learns(standard_promotion):
    """Flax's LayerNorm mixes bfloat16 and float32, which strict promotion refuses."""
    text = corpus.load()
    config = Config(60, 4, 8, 16, layers=1, heads=1, learning_rate=1e-2, dtype="bfloat16")
    graph, state = build(config, text.vocabulary)
    state, losses = train_steps(
        state, jnp.asarray(text.train), count=60, graph=graph, config=config
    )
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    moments = [x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params))
    assert set(moments) == {jnp.dtype("float32")}
    assert float(losses[-5:].mean()) < float(losses[0]) - 1


def test_samples_go_on_from_the_prompt(finished, capsys):
    written = []
    for seed in (1, 1, 2):
        main(["sample", str(finished), "--prompt", "def ", "--length", "60", "--seed", f"{seed}"])
        written.append(capsys.readouterr().out)
    assert all(text.startswith("def ") and len(text) == 65 for text in written)
    assert written[0] == written[1] != written[2]


def test_a_cold_sample_is_the_most_probable_text(finished):
    """Also past the context, where the window slides; against one forward pass per character."""
    graph, params, config, vocabulary = trained(finished)
    prompt, length = corpus.encode("The ", vocabulary), 60
    text = [*prompt, *generate(graph, params, prompt, length, 1e-6, config.context, KEY)]
    logits_of = jax.jit(lambda window: nnx.merge(graph, params)(window[None])[0])
    for place in range(len(prompt), len(text)):
        window = np.zeros(config.context, np.int32)
        seen = text[max(0, place - config.context) : place]
        window[: len(seen)] = seen
        logits = logits_of(window)[len(seen) - 1]
        # The most probable character, up to the rounding of sums.
        assert float(logits[text[place]]) > float(logits.max()) - 1e-4
    # Later characters do not change earlier outputs.
    window = np.asarray(text[: config.context], np.int32)
    other = window.copy()
    other[10] = (other[10] + 1) % len(vocabulary)
    changed = np.abs(logits_of(other) - logits_of(window)).max(axis=1)
    assert (changed[:10] == 0).all() and (changed[10:] > 0).all()


def test_prompts_folders_and_settings_that_cannot_be(finished, tmp_path):
    for arguments, message in (
        (["sample", finished, "--prompt", "naïve"], "does not know 'ï'"),
        (["sample", finished, "--prompt", ""], "prompt is empty"),
        (["sample", tmp_path], "holds no run"),
        (["train", "--fast", "--seed", "1", "--out", finished], "other settings .*seed"),
        (
            ["train", "--fast", "--heads", "3", "--out", tmp_path],
            "64 is not a multiple of heads 3",
        ),
    ):
        with pytest.raises(UserError, match=message):
            main([*map(str, arguments)])
