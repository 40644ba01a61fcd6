"""The main example: a small Flax NNX model on real handwritten digits, trained with Adam."""
