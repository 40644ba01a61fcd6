"""Benchmark scripts, and RESULTS.md with their results and the machine they ran on."""
