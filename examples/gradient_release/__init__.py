"""Each layer's parameters are updated inside the backward pass: no gradient outlives its layer."""
