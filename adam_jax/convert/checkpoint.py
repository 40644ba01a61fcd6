"""`python -m adam_jax convert`: an Orbax checkpoint, with the state of another optimizer.

A path in a step is the name of an item, "" if there is only one, then the keys in its tree.
"""

import importlib.util
import pkgutil
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax._types import AnyTransformation, Named, Params, PyTree, State
from adam_jax.convert.moments import _left_behind, from_optax, read
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

    items = _items(ocp, checkpoint)
    state_path, params_path, wrapper, parts = _find(ocp, items, state, params)
    item, names = state_path[0], {state_path[0], params_path[0]}
    trees = {name: _restored(ocp, checkpoint / name, items[name]) for name in names}
    saved, weights = _subtree(trees, state_path), _subtree(trees, params_path)
    arrays, model = _arrays(ocp, saved, wrapper), _trained(ocp, weights, wrapper, parts)
    old = _state_of(ocp, old_tx, model, arrays)
    new = from_optax(old, model, new_tx)

    if item:  # The other items are copied, byte for byte.
        shutil.copytree(checkpoint, out, ignore=lambda x, _: [item] * (Path(x) == checkpoint))
    tree = _replaced(ocp, trees[item], saved, new, wrapper)
    user_metadata = items[item].custom_metadata
    ocp.PyTreeCheckpointer().save(out / item, tree, custom_metadata=user_metadata)
    before, after = _facts(old, model), _facts(new, model)
    return "\n".join(
        f"{x}: {before.get(x, 'none')} → {after.get(x, 'none')}" for x in before | after
    )


def _transformation(code: str) -> AnyTransformation:
    """The value of an expression, or what `package.module:function` returns."""
    names: Named = {}
    exec("import adam_jax, jax, jax.numpy as jnp, numpy as np, optax", names)
    return eval(code, names) if "(" in code else pkgutil.resolve_name(code)()


def _items(ocp: Any, checkpoint: Path) -> Named:
    """The metadata of the items: one in the folder of the step, or several in folders of it."""
    names = ["", *(x.name for x in checkpoint.glob("*"))]
    names = [name for name in names if (checkpoint / name / "_METADATA").exists()]
    if not names:
        raise FileNotFoundError(f"CHECKPOINT must be a step that Orbax wrote, got {checkpoint}.")
    return {name: ocp.PyTreeCheckpointer().metadata(checkpoint / name) for name in names}


def _find(ocp: Any, items: Named, state: str, params: str) -> tuple[Keys, Keys, Keys, set[Keys]]:
    """The paths of the state and the parameters, what ends all paths in both, and their parts."""
    paths = [*_arrays(ocp, {name: item.item_metadata.tree for name, item in items.items()})]
    state_path = _place("--state", state, paths)
    depth = len(state_path)
    inside = [path[depth:] for path in paths if path[:depth] == state_path]
    outside = [path for path in paths if path[:depth] != state_path]
    # NNX may keep each array in a dictionary, under "value".
    wrapper = ("value",) if all(path[-1:] == ("value",) for path in inside) else ()
    # The parts of mu/layer/w/codes include layer/w. So they tell which parameters have moments.
    bare = [path[: len(path) - len(wrapper)] for path in inside]
    parts = {path[i:j] for path in bare for j in range(len(path) + 1) for i in range(j)}
    params_path = _place("--params", params, outside, {part + wrapper for part in parts})
    return state_path, params_path, wrapper, parts


def _place(argument: str, key: str, paths: list[Keys], leaves: Any = ()) -> Keys:
    """The path of the outermost subtree that the key names; if none, of that with such leaves."""
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


def _restored(ocp: Any, folder: Path, metadata: Any) -> PyTree:
    """An item. JAX's arrays come onto one device, as those of the run may be absent."""
    on_device, as_saved = ocp.ArrayRestoreArgs(sharding=jnp.zeros(()).sharding), ocp.RestoreArgs()
    tree = metadata.item_metadata.tree
    args = jax.tree.map(lambda x: on_device if getattr(x, "sharding", None) else as_saved, tree)
    with jax.enable_x64(True):  # Arrays beside the state may have 64 bits.
        return ocp.PyTreeCheckpointer().restore(folder, restore_args=args)


def _subtree(tree: PyTree, path: Keys) -> PyTree:
    for key in path:
        tree = tree[int(key) if isinstance(tree, list) else key]
    return tree


def _arrays(ocp: Any, tree: PyTree, wrapper: Keys = ()) -> dict[Keys, Any]:
    """The leaves of a tree by their paths, which the wrapper does not end."""
    return {x[: len(x) - len(wrapper)]: v for x, v in ocp.tree.to_flat_dict(tree).items()}


def _trained(ocp: Any, weights: PyTree, wrapper: Keys, parts: set[Keys]) -> Params:
    """The parameters that the state has moments of. LoRA freezes the others."""
    arrays = _arrays(ocp, weights, wrapper)
    if not wrapper and parts.issuperset(arrays):
        return weights
    return ocp.tree.from_flat_dict({path: x for path, x in arrays.items() if path in parts})


def _state_of(ocp: Any, tx: AnyTransformation, model: Params, arrays: dict[Keys, Any]) -> State:
    like = jax.eval_shape(tx.init, model)
    has, wants = (
        {f"{'/'.join(path)} {x.dtype}{[*x.shape]}" for path, x in leaves.items()}
        for leaves in (arrays, _arrays(ocp, like))
    )
    complain("the state", wants - has, has - wants, instead="Write --from as in the run.")
    return jax.tree.map(jnp.asarray, ocp.tree.from_flat_dict(arrays, like))


def _replaced(ocp: Any, tree: PyTree, saved: PyTree, new: State, wrapper: Keys) -> PyTree:
    """The tree of an item with the new state, in dictionaries alone if the saved state was."""
    nested = ocp.tree.from_flat_dict
    if jax.tree.structure(saved) == jax.tree.structure(nested(_arrays(ocp, saved))):  # NNX's.
        new = nested({path + wrapper: x for path, x in _arrays(ocp, new).items()})
    return jax.tree.map(lambda x: new if x is saved else x, tree, is_leaf=lambda x: x is saved)


def _facts(state: State, params: Params) -> dict[str, str]:
    """What the report compares."""
    moments = read("the state", state, params)
    sizes = Counter(all=sum(x.nbytes for x in jax.tree.leaves(state)))
    for (_, slot), stored in moments.slots.items():
        for x in jax.tree.leaves(stored):
            sizes[f"{slot} in {x.dtype}"] += x.nbytes
    facts = {"steps": str({*moments.counts.values()})}
    facts["others"] = listed(_left_behind(state)) or "none"
    facts |= {name: f"{size:,} bytes" for name, size in sizes.items()}
    for x in found(state, lambda x: hasattr(x, "hyperparams")):
        facts |= {name: str(value) for name, value in x.hyperparams.items()}
    return facts
