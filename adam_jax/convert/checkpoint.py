"""`python -m adam_jax convert`: an Orbax checkpoint, with the state of another optimizer."""

import importlib.util
import pkgutil
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax._types import AnyTransformation, Named, Params, PyTree, State
from adam_jax.convert.moments import from_optax, left_behind, read
from adam_jax.convert.names import complain, listed
from adam_jax.core.states import found
from adam_jax.core.trees import Keys


def convert(checkpoint: Path, out: Path, source: str, to: str, params: str, state: str) -> str:
    """Copies a step, with the state of `to` for that of `source`; returns what changed."""
    if not importlib.util.find_spec("orbax"):
        raise ImportError("convert reads checkpoints with Orbax: pip install orbax-checkpoint")
    ocp: Any = importlib.import_module("orbax.checkpoint")
    checkpoint, out = checkpoint.resolve(), out.resolve()
    if out.exists() or checkpoint in out.parents:
        raise FileExistsError(f"OUT must be a new folder outside CHECKPOINT, got {out}.")
    old_tx, new_tx = _transformation(source), _transformation(to)

    # A step is one item in its own folder, named "" here, or several in folders of it.
    folders = {"": checkpoint} | {folder.name: folder for folder in checkpoint.glob("*")}
    orbax = ocp.PyTreeCheckpointer()
    items = {k: orbax.metadata(x) for k, x in folders.items() if (x / "_METADATA").exists()}
    if not items:
        raise FileNotFoundError(f"CHECKPOINT must be a step that Orbax wrote, got {checkpoint}.")
    metadata = {name: item.item_metadata.tree for name, item in items.items()}
    paths = [*ocp.tree.to_flat_dict(metadata, keep_empty_nodes=True)]
    state_path, params_path, wrapper, parts = _find(paths, state, params)
    item, names = state_path[0], {state_path[0], params_path[0]}
    trees = {name: _restored(ocp, folders[name], metadata[name]) for name in names}
    saved, weights = _subtree(trees, state_path), _subtree(trees, params_path)

    model = _trained(ocp, weights, wrapper, parts)
    old = _state_of(ocp, old_tx, model, _arrays(ocp, saved, wrapper))
    new = from_optax(old, model, new_tx)

    tree = _replaced(ocp, trees[item], saved, new, wrapper)
    if item:  # The other items are copied, byte for byte.
        shutil.copytree(checkpoint, out, ignore=lambda x, _: [item] * (Path(x) == checkpoint))
    orbax.save(out / item, tree, custom_metadata=items[item].custom_metadata)
    was, now = _facts(old, model), _facts(new, model)
    return "\n".join(f"{x}: {was.get(x, 'none')} → {now.get(x, 'none')}" for x in was | now)


def _transformation(code: str) -> AnyTransformation:
    """The value of an expression, or what `package.module:function` returns."""
    names: Named = {}
    exec("import adam_jax, jax, jax.numpy as jnp, numpy as np, optax", names)
    return eval(code, names) if "(" in code else pkgutil.resolve_name(code)()


def _find(paths: list[Keys], state: str, params: str) -> tuple[Keys, Keys, Keys, set[Keys]]:
    """Where the state and the parameters are, the last keys of all paths there, and their parts.

    A path is the name of an item, then keys in its tree.
    """
    state_path = _place("--state", state, paths)
    depth = len(state_path)
    inside = [path[depth:] for path in paths if path[:depth] == state_path]
    outside = [path for path in paths if path[:depth] != state_path]
    # NNX may keep each array in a dictionary, under "value".
    wrapper = ("value",) if all(path[-1:] == ("value",) for path in inside) else ()
    inside = [path[: len(path) - len(wrapper)] for path in inside]
    # A parameter has moments if its path is part of one in the state: w of mu/w/codes.
    parts = {path[i:j] for path in inside for j in range(len(path) + 1) for i in range(j)}
    params_path = _place("--params", params, outside, {part + wrapper for part in parts})
    return state_path, params_path, wrapper, parts


def _place(argument: str, key: str, paths: list[Keys], leaves: Any = ()) -> Keys:
    """The path of the outermost subtree that the key names; if none, with any of the leaves."""
    keys = tuple(key.split("/"))
    splits = {(path[:i], path[i:]) for path in paths for i in range(1, len(path) + 1)}
    fitting = {start for start, _ in splits if start[-len(keys) :] == keys}
    fitting = fitting or {start for start, rest in splits if rest in leaves}
    depth = min(map(len, fitting), default=0)
    outermost = [start for start in fitting if len(start) == depth]
    if len(outermost) != 1:
        near = listed(sorted({"/".join(x[:3]).strip("/") for x in outermost or paths}))
        raise ValueError(f"{argument} must fit one subtree of the step, got {key!r} for {near}.")
    return outermost[0]


def _restored(ocp: Any, folder: Path, metadata: PyTree) -> PyTree:
    """An item. JAX's arrays come onto one device, as those of the run may be absent."""
    on_device, as_saved = ocp.ArrayRestoreArgs(sharding=jnp.zeros(()).sharding), ocp.RestoreArgs()
    args = jax.tree.map(lambda x: on_device if getattr(x, "sharding", None) else as_saved, metadata)
    with jax.enable_x64(True):  # Arrays beside the state may have 64 bits.
        return ocp.PyTreeCheckpointer().restore(folder, restore_args=args)


def _subtree(tree: PyTree, path: Keys) -> PyTree:
    for key in path:  # Strings, also for lists.
        tree = tree[int(key) if isinstance(tree, list) else key]
    return tree


def _arrays(ocp: Any, tree: PyTree, wrapper: Keys = ()) -> dict[Keys, Any]:
    """The leaves of a tree by their paths, without the wrapper."""
    return {x[: len(x) - len(wrapper)]: v for x, v in ocp.tree.to_flat_dict(tree).items()}


def _trained(ocp: Any, weights: PyTree, wrapper: Keys, parts: set[Keys]) -> Params:
    """The parameters with moments: LoRA freezes the others."""
    arrays = _arrays(ocp, weights, wrapper)
    if not wrapper and parts.issuperset(arrays):
        return weights
    return ocp.tree.from_flat_dict({path: x for path, x in arrays.items() if path in parts})


def _state_of(ocp: Any, tx: AnyTransformation, model: Params, arrays: dict[Keys, Any]) -> State:
    """The state of `tx` with the arrays of the checkpoint, which must be exactly its own."""
    like = jax.eval_shape(tx.init, model)
    has, wants = (
        {f"{'/'.join(path)} {x.dtype}{[*x.shape]}" for path, x in leaves.items()}
        for leaves in (arrays, _arrays(ocp, like))
    )
    complain("the state", wants - has, has - wants, instead="Write --from as in the run.")
    return jax.tree.map(jnp.asarray, ocp.tree.from_flat_dict(arrays, like))


def _replaced(ocp: Any, tree: PyTree, saved: PyTree, new: State, wrapper: Keys) -> PyTree:
    """The tree with the new state for the saved one: as dictionaries if that is so, as in NNX."""
    nested = ocp.tree.from_flat_dict
    if jax.tree.structure(saved) == jax.tree.structure(nested(_arrays(ocp, saved))):
        new = nested({path + wrapper: x for path, x in _arrays(ocp, new).items()})
    return jax.tree.map(lambda x: new if x is saved else x, tree, is_leaf=lambda x: x is saved)


def _facts(state: State, params: Params) -> dict[str, str]:
    """What the report compares."""
    moments = read("the state", state, params)
    sizes = Counter(all=sum(x.nbytes for x in jax.tree.leaves(state)))
    for (_, slot), stored in moments.slots.items():
        for x in jax.tree.leaves(stored):
            sizes[f"{slot} in {x.dtype}"] += x.nbytes
    others = listed(left_behind(state)) or "none"
    facts = {"steps": str({*moments.counts.values()}), "others": others}
    facts |= {name: f"{size:,} bytes" for name, size in sizes.items()}
    for x in found(state, lambda x: hasattr(x, "hyperparams")):
        facts |= {name: str(value) for name, value in x.hyperparams.items()}
    return facts
