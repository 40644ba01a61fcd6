"""How to use the package: small experiments, gradient release, notebooks."""
