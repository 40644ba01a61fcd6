"""Kingma & Ba 2015, "Adam", reproduced in small, and the counterexample of Reddi et al. 2018."""
