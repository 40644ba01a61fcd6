"""Small experiments with Adam, each a page: `python -m examples.usage.basics [PAGE]`."""
