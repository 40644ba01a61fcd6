"""`python -m adam_jax convert`: an Orbax checkpoint, with the state of another optimizer."""

import functools
import importlib.util
import pkgutil
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax._types import AnyTransformation, Params, State
from adam_jax.convert.moments import _left_behind, from_optax, read
from adam_jax.convert.names import complain, listed
from adam_jax.core.states import found


def convert(checkpoint: Path, out: Path, source: str, to: str, params: str, state: str) -> str:
    """Copies a checkpoint, with the state of `to` for that of `source`; returns what changed."""
    if not importlib.util.find_spec("orbax"):
        raise ImportError("convert reads checkpoints with Orbax: pip install orbax-checkpoint")
    ocp: Any = importlib.import_module("orbax.checkpoint")
    flat, nested, orbax = ocp.tree.to_flat_dict, ocp.tree.from_flat_dict, ocp.PyTreeCheckpointer()
    checkpoint, out = checkpoint.resolve(), out.resolve()
    if out.exists() or checkpoint in out.parents:
        raise FileExistsError(f"OUT must be a new folder outside CHECKPOINT, got {out}.")
    before, after = _made(source), _made(to)
    folders = {"": checkpoint} | {x.name: x for x in checkpoint.glob("*")}  # One item, or several.
    items = {k: orbax.metadata(x) for k, x in folders.items() if (x / "_METADATA").exists()}
    if not items:
        raise FileNotFoundError(f"CHECKPOINT must be a step that Orbax wrote, got {checkpoint}.")
    kinds = {k: x.item_metadata.tree for k, x in items.items()}
    paths = [*flat(kinds, keep_empty_nodes=True)]
    place = _place("--state", state, paths)
    inside = [x[len(place) :] for x in paths if x[: len(place)] == place]
    end = ("value",) * all(x[-1:] == ("value",) for x in inside)  # NNX has it around every array.
    parts = {x[i:j] for x in inside for j in range(len(x) + 1 - len(end)) for i in range(j)}
    others = [x for x in paths if x[: len(place)] != place]
    weights = _place("--params", params, others, {x + end for x in parts})
    ways = ocp.RestoreArgs(), ocp.ArrayRestoreArgs(sharding=jnp.zeros(()).sharding)
    ways = jax.tree.map(lambda x: ways[bool(getattr(x, "sharding", None))], kinds)
    with jax.enable_x64(True):  # Other arrays may have 64 bits.
        trees = {k: orbax.restore(folders[k], restore_args=ways[k]) for k in {place[0], weights[0]}}
    saved, model = (
        functools.reduce(lambda x, k: x[int(k) if isinstance(x, list) else k], path, trees)
        for path in (place, weights)
    )
    arrays, its = ({x[: len(x) - len(end)]: v for x, v in flat(y).items()} for y in (saved, model))
    if end or not parts.issuperset(its):  # LoRA trains some of them.
        model = nested({x: v for x, v in its.items() if x in parts})
    like = jax.eval_shape(before.init, model)
    has, wants = (
        {f"{'/'.join(x)} {v.dtype}{[*v.shape]}" for x, v in y.items()} for y in (arrays, flat(like))
    )
    complain("the state", wants - has, has - wants, instead="Write --from as in the run.")
    old = jax.tree.map(jnp.asarray, nested(arrays, like))
    written = new = from_optax(old, model, after)
    if jax.tree.structure(saved) == jax.tree.structure(nested(flat(saved))):  # As in NNX.
        written = nested({x + end: v for x, v in flat(new).items()})
    if place[0]:
        shutil.copytree(checkpoint, out, ignore=lambda x, _: [place[0]] * (Path(x) == checkpoint))
    tree, about = trees[place[0]], items[place[0]].custom_metadata
    tree = jax.tree.map(lambda x: written if x is saved else x, tree, is_leaf=lambda x: x is saved)
    orbax.save(out / place[0], tree, custom_metadata=about)
    a, b = (_facts(x, model) for x in (old, new))
    return "\n".join(f"{k}: {a.get(k, 'none')} → {b.get(k, 'none')}" for k in a | b)


def _made(code: str) -> AnyTransformation:
    names: dict[str, AnyTransformation] = {}
    exec("import adam_jax, jax, jax.numpy as jnp, numpy as np, optax", names)
    return eval(code, names) if "(" in code else pkgutil.resolve_name(code)()


def _place(argument: str, key: str, paths: Any, named: Any = ()) -> Any:
    """The shortest start of paths that ends with the key; if none does, whose rest is named."""
    keys, cuts = (*key.split("/"),), {(x[:i], x[i:]) for x in paths for i in range(1, len(x) + 1)}
    ends = {x for x, _ in cuts if x[-len(keys) :] == keys} or {x for x, y in cuts if y in named}
    fits = sorted(ends, key=len)
    best = [x for x in fits if len(x) == len(fits[0])]
    if len(best) != 1:
        near = listed(sorted({"/".join(x[:3]).strip("/") for x in best or paths}))
        raise ValueError(f"{argument} must fit one subtree of the step, got {key!r} for {near}.")
    return best[0]


def _facts(state: State, params: Params) -> dict[str, str]:
    """What the report compares."""
    moments = read("the state", state, params)
    bytes_of = Counter({"all": sum(x.nbytes for x in jax.tree.leaves(state))})
    for (_, slot), stored in moments.slots.items():
        for x in jax.tree.leaves(stored):
            bytes_of[f"{slot} in {x.dtype}"] += x.nbytes
    facts = {"steps": str({*moments.counts.values()})}
    facts["others"] = listed(_left_behind(state)) or "none"
    facts |= {k: f"{n:,} bytes" for k, n in bytes_of.items()}
    for x in found(state, lambda x: hasattr(x, "hyperparams")):
        facts |= {k: str(v) for k, v in x.hyperparams.items()}
    return facts
