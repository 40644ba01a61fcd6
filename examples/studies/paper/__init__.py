"""A small reproduction of Kingma & Ba 2015, "Adam", and of Reddi et al. 2018's counterexample."""
