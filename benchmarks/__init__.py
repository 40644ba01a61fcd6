"""Scripts that measure, and RESULTS.md, what they printed on which machine."""
