"""The MNIST server under load."""
