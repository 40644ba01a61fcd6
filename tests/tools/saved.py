"""States saved by a version of this package, which each later version must read and continue.

python -m tests.tools.saved    writes the states of this version to tests/convert/saved/VERSION

Files of a released version are never rewritten. Each contains the parameters and the state after
three optimizer steps, the gradients of the fourth step, and the parameters after it: nested
dictionaries of arrays, whose keys joined by slashes are the paths in the tree. int4 is stored as
int8, since msgpack has no name for it.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

import adam_jax
from tests.catalogue.runs import schedule

FOLDER = Path(__file__).parents[1] / "convert" / "saved"
INT8 = adam_jax.Quantized(min_size=1, block=32)
INT4 = adam_jax.Quantized("int4", min_size=1, block=32)
STEPS = 3


def transformations() -> dict[str, Any]:
    a = adam_jax
    adamw = a.adamw(schedule, weight_decay=0.1)
    int8 = a.adamw(1e-2, mu_dtype=INT8, nu_dtype=INT8)
    recipe = a.chain(a.clip_by_global_norm(1.0), adamw, a.ema_params(0.9))
    found = {
        name: getattr(a, name)(1e-2)
        for name in (
            *("adam", "nadam", "amsgrad", "adamax", "radam", "adabelief", "yogi", "adan", "adopt"),
            *("ademamix", "laprop", "mars_adamw", "lion", "lamb", "schedule_free_adamw"),
        )
    }
    return found | {
        "adamw": adamw,
        "int8": int8,
        "int4": a.adamw(1e-2, mu_dtype=INT4, nu_dtype=INT4),
        "stochastic": a.adamw(1e-2, nu_dtype=a.stochastic(jnp.bfloat16)),
        "factored": a.adamw(1e-2, nu_dtype=a.Factored(1, 1)),
        "block_means": a.adamw(1e-2, nu_dtype=a.BlockMeans(0)),
        "accumulate": a.accumulate(adamw, 2),
        "skip_nonfinite": a.skip_nonfinite(int8),
        "recipe": a.accumulate(a.telemetry(a.skip_nonfinite(recipe), 2), 2),
        "hyperparams": a.with_hyperparams(a.adamw)(schedule, b1=0.8),
        "groups": a.groups(a.adamw, {"bias": {"weight_decay": 0.0}}, learning_rate=1e-2),
        "partition": a.groups({"kernel": int8, ".*": a.lion(1e-3)}),
        "master_residual": a.master_residual(int8),
    }


def parameters(name: str) -> dict[str, jax.Array]:
    dtype = jnp.bfloat16 if name == "master_residual" else jnp.float32
    kernel = np.sin(np.arange(128.0)).reshape(2, 64)
    return {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray([1.0, -2.0, 3.0], dtype)}


def gradients(params: Any, t: int) -> Any:
    return jax.tree.map(lambda p: (jnp.cos(3 * p) + t).astype(p.dtype), params)


def stepped(tx: Any, grads: Any, state: Any, params: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda *args: adam_jax.step(tx, *args))(grads, state, params)


def named(tree: Any) -> dict[str, jax.Array]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): x for keys, x in flat}


def stored_dtype(x: jax.Array) -> Any:
    return np.dtype(jnp.int8) if x.dtype == jnp.int4 else x.dtype


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, tx in transformations().items():
        params = parameters(name)
        state = tx.init(params)
        for t in range(STEPS):
            params, state = stepped(tx, gradients(params, t), state, params)
        grads = gradients(params, STEPS)
        after, _ = stepped(tx, grads, state, params)
        tree = {"params": params, "state": state, "grads": grads, "after": after}
        arrays = {path: x.astype(stored_dtype(x)) for path, x in named(tree).items()}
        nested = traverse_util.unflatten_dict(arrays, sep="/")
        (folder / f"{name}.msgpack").write_bytes(serialization.msgpack_serialize(nested))


def read(file: Path, like: Any) -> Any:
    """The tree in a file, with the paths, shapes and dtypes of `like`.

    A file may have more: `telemetry` measured `eps_dominates`, `skip_nonfinite` kept norms.
    """
    nested = serialization.msgpack_restore(file.read_bytes())
    arrays, places = traverse_util.flatten_dict(nested, sep="/"), named(like)
    assert arrays.keys() >= places.keys()
    for path, x in places.items():
        assert (arrays[path].shape, arrays[path].dtype) == (x.shape, stored_dtype(x)), path
    leaves = [jnp.asarray(arrays[path], x.dtype) for path, x in places.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


if __name__ == "__main__":
    write(FOLDER / adam_jax.__version__)
