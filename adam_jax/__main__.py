"""`python -m adam_jax` prints versions, devices, the dtypes that work there, and what to try.

`python -m adam_jax watch RUN` shows the records of a run, as they are written.
`python -m adam_jax convert CHECKPOINT OUT` copies an Orbax checkpoint for another optimizer.
"""

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import adam_jax
from adam_jax.convert.checkpoint import convert
from adam_jax.inspect.watch import watch

COMMANDS = """
python -c "import adam_jax as a; print(*a.__all__)"
python -c "import adam_jax as a; help(a.adamw)"
python -c "import adam_jax as a, numpy as n; print(a.inspect.advise(n.ones((9, 128)), a.adam(.1)))"
"""


def outcome(device: Any, weights: str, moments: Any = adam_jax.AT_LEAST_FLOAT32) -> str:
    """Takes a step on a device: "yes", or the first line of the error."""
    tx = adam_jax.adamw(0.1, mu_dtype=moments, nu_dtype=moments)
    try:
        params = jax.device_put(jnp.ones((8, 128), weights), device)
        stepped, _ = jax.jit(tx.step)(params, tx.init(params), params)
        return "yes" if jnp.allclose(stepped, 0.9, 0.01) else f"no: 1 - 0.1 is {stepped[0, 0]}"
    except Exception as error:
        return f"no: {error}".splitlines()[0]


def main() -> None:
    """Prints all of it, or runs a command."""
    parser = argparse.ArgumentParser("python -m adam_jax", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("watch", help="follow a run's records")
    run.add_argument("run", type=Path, help="a .jsonl file of append_json_line, or its folder")
    run.add_argument("--page", nargs="?", const=8000, type=int, help="a page (port 8000), no table")
    new = commands.add_parser("convert", help="the optimizer state of an Orbax checkpoint")
    new.add_argument("checkpoint", type=Path, help="the folder of a step; it is only read")
    new.add_argument("out", type=Path, help="a new folder, for all of it with the new state")
    new.add_argument("--from", dest="source", required=True, help="optax.adamw(1e-3), which is run")
    new.add_argument("--to", required=True, help="another expression, or package.module:function")
    new.add_argument("--params", default="params", help="the path of the parameters (params)")
    new.add_argument("--state", default="opt_state", help="the path of the state (opt_state)")
    options = vars(parser.parse_args())
    command = options.pop("command")
    if command == "watch":
        return watch(options["run"], options["page"])
    if command == "convert":
        try:
            return print(convert(**options))
        except Exception as error:  # Also of the code in --from and --to.
            sys.exit(f"convert: {type(error).__name__}: {' '.join(str(error).split())}")
    packages = (f"{name} {version(name)}" for name in ("jax", "jaxlib", "optax", "numpy"))
    print(f"adam_jax {adam_jax.__version__}, Python {platform.python_version()},", *packages)
    for device in jax.local_devices():
        print(f"\n{device} ({device.device_kind})")
        for weights in ("float32", "bfloat16", "float16", "complex64"):
            print(f"  weights in {weights}: {outcome(device, weights)}")
        for moments in ("bfloat16", "int8", "int4"):
            print(f"  moments in {moments}: {outcome(device, 'float32', jnp.dtype(moments))}")
    print(f"\nNext:{COMMANDS}", end="")


if __name__ == "__main__":
    main()
