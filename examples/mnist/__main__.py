"""Command line: `python -m examples.mnist train | evaluate | predict | export | serve`."""

import argparse
import logging
import sys
import traceback

import jax

import examples
from examples.endings import memory_ended
from examples.mnist import deployment, distributed
from examples.mnist.errors import UserError

# Advice after running out of memory.
ADVICE = {
    "train": ", then continue with --resume; or train with a smaller --batch-size in another --out",
    "serve": ", or take smaller --batch-sizes",
}


def parser(command: str) -> argparse.ArgumentParser:
    """The arguments of one command; of all commands unless it uses a trained model."""
    top = argparse.ArgumentParser(prog="python -m examples.mnist", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    if command not in deployment.COMMANDS:
        # These import Flax, which an exported model does not need.
        from examples.mnist import training

        training.add_commands(commands)
    deployment.add_commands(commands)
    return top


def main() -> int:
    """Runs one command; reports user errors as one line on stderr, with exit status 1.

    ctrl-C prints one line and exits with 130.
    """
    logging.getLogger("jax").setLevel(logging.ERROR)
    arguments = parser(sys.argv[1] if len(sys.argv) > 1 else "").parse_args()
    examples.raise_interrupts()
    try:
        return arguments.call(arguments)
    except (UserError, distributed.ProcessError, OSError) as error:
        distributed.report(f"error: {' '.join(str(error).splitlines())}")
        return 1
    except Exception as error:
        if ended := memory_ended(error):
            advice = ADVICE.get(arguments.command, ", then try again")
            distributed.report(f"error: {ended}; free some{advice}")
            return 1
        if not distributed.is_worker():
            raise
        # Otherwise each process prints a traceback, and most only report that another one died.
        reason, text = " ".join(str(error).split())[:200], traceback.format_exc()
        # For a broken connection JAX raises a JaxRuntimeError, or a ValueError from Gloo.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in reason:
            text = f"error: a process lost the others ({reason}); start all again with --resume"
        distributed.report(text)
        return 1
    except KeyboardInterrupt:
        resumed = "; run the same command with --resume to continue"
        distributed.report(f"interrupted{resumed if arguments.command == 'train' else ''}")
        return examples.interrupted()


if __name__ == "__main__":
    sys.exit(main())
