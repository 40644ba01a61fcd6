"""Updates each layer's parameters inside the backward pass: no gradient outlives its layer."""
