"""Optimizers compared on text: the fast setting end to end, the search of rates, the summary."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from examples.shared import strict_json
from examples.shared.study import Study
from examples.studies.text import compare, compare_report
from examples.studies.text.compare import FACTOR, FAST, OPTIMIZERS, RATES, first_grid, further

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_moves_matrices_and_vectors(name, standard_promotion):
    tx = compare.optimizer(name, FAST, jnp.float32(1e-2))
    block = {"up": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    params = {"blocks": [block], "out": {"kernel": jnp.ones((2, 3))}}
    step = jax.jit(lambda state: tx.update(params, state, params))
    _, state = step(tx.init(params))  # Warmup begins at 0.
    updates, _ = step(state)
    assert all(np.all(u < 0) for u in jax.tree.leaves(updates))


def run(loss, rate):
    return {"chosen_by": loss, "rate": rate}


def test_a_grid_goes_on_beyond_a_best_rate_at_its_edge():
    rates = first_grid(0.01)
    assert len(rates) == RATES and rates[RATES // 2] == 0.01
    assert np.allclose(np.diff(np.log(rates)), np.log(FACTOR))

    def runs(*losses):
        return [run(loss, rate) for loss, rate in zip(losses, (1, 2, 4, 8, 16), strict=True)]

    assert further(runs(3, 2, 1, 2, 3)) == []
    assert further(runs(1, 2, 3, 4, 5)) == [1 / FACTOR]
    assert further(runs(5, 4, 3, 2, 1)) == [16 * FACTOR]
    assert further(runs(5, 4, 3, 2, np.nan)) == []
    assert further(runs(np.nan, 1, 3, 4, np.inf)) == []
    assert further([run(-i, 2.0**i) for i in range(50)]) == []


def test_the_fast_setting_end_to_end(tmp_path, capsys, monkeypatch, standard_promotion):
    page = "above\n<!-- comparison on text -->\nold\n<!-- end of comparison on text -->\nbelow\n"
    pages = {tmp_path / "a.md": "shown.png", tmp_path / "b.md": "../shown.png"}
    for path in pages:
        path.write_text(page)
    monkeypatch.setattr(compare_report, "PAGES", pages)
    monkeypatch.setattr(compare_report, "PICTURE", tmp_path / "shown.png")
    options = ["--fast", "--out", str(tmp_path / "run"), "--optimizers", "adamw", "Muon and adamw"]
    compare.main(options)
    with (tmp_path / "run" / "table.csv").open() as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file)}
    assert {float(row["state, B/p"]) for row in rows.values()} > {8.0}
    assert float(rows["`Muon and adamw`"]["state, B/p"]) < 8
    for row in rows.values():
        assert float(row["lowest"]) <= float(row["held-out loss"]) <= float(row["highest"]) < 4.2
    results = strict_json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    # All share parameters and batches: the learning rate begins at 0.
    firsts = [[r["train_losses"][0] for r in x["grid"] + x["seeds"]] for x in results.values()]
    assert {losses[0] for losses in firsts} == set(np.ravel([x[:RATES] for x in firsts]))
    assert firsts[0][-3:] == firsts[1][-3:] and len(set(firsts[0][-3:])) == 3
    for result in results.values():
        rates, losses = zip(*((r["rate"], r["chosen_by"]) for r in result["grid"]), strict=True)
        assert 0 < int(np.argmin(losses)) < len(losses) - 1
        assert {r["rate"] for r in result["seeds"]} == {rates[int(np.argmin(losses))]}
    assert all(path.read_text() == page for path in pages)

    capsys.readouterr()
    compare.main([*options, "--write"])
    said, table = capsys.readouterr().out, (tmp_path / "run" / "table.md").read_text()
    assert "pieces were done before" in said and table in said
    for path, picture in pages.items():
        written = path.read_text()
        assert f"]({picture})" in written
        assert written.startswith("above\n") and written.endswith("below\n")
        assert table in written and "has the lowest loss, " in written and "old" not in written
    with Image.open(tmp_path / "shown.png") as picture:
        assert picture.width > 1000 and len(set(picture.convert("L").tobytes())) > 20


def test_the_pages_have_a_place_for_it():
    for path in compare_report.PAGES:
        assert "made anew" in compare_report.written(path.read_text(), "made anew\n")
    with pytest.raises(ValueError, match="must have <!-- comparison on text --> and"):
        compare_report.written("no place", "")


def test_what_is_said_of_the_first(tmp_path):
    def result(*losses):
        return {"grid": [], "seeds": [{"loss": loss} for loss in losses]}

    work = Study(tmp_path, {})
    results = {"adamw": result(2.0, 2.1, 2.2), "lion": result(1.0, 1.1, 1.2)}
    said = compare_report.verdict(work, results)
    assert "`lion` has the lowest loss, 1.100 (1.000 to 1.200)" in said and "no other" in said
    assert "`adamw` has rank 2, 1.000 nats higher" in said
    results |= {"adam": result(1.2, 1.3, 1.4), "yogi": result(1.1, 1.5, 1.6)}
    said = compare_report.verdict(work, results)
    assert "overlaps those of `adam` and `yogi`: three seeds cannot distinguish them" in said
    assert "`adamw` has rank 4" in said
