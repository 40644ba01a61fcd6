"""The factors of a parametrization in the forward pass of a model."""

import math

from adam_jax.validation import check_number, check_positive


def output_factor(width: float, base_width: float) -> float:
    """The factor of the result of the output layer: base_width / width.

    It applies to tied embeddings too. `logits = output_factor(width, 256) * (x @ kernel) + bias`.

    Args:
      width: the number of inputs of the output layer, > 0.
      base_width: that of the base model, > 0.

    Raises:
      ValueError: a number that is not positive.

    Reference: Yang et al. 2022, table 8 (multiplier of output weights).
    """
    return check_positive("base_width", base_width) / check_positive("width", width)


def attention_scale(head_size: float, base_head_size: float) -> float:
    """The factor of the attention scores: √base_head_size / head_size.

    In the base model it is the usual 1/√head_size. If wider models have more heads of the same
    size, it is that in all of them.

    Args:
      head_size: the length of the queries and keys of one head, > 0.
      base_head_size: those of the base model, > 0.

    Raises:
      ValueError: a number that is not positive.

    Reference: Yang et al. 2022, definition 4.1.
    """
    return math.sqrt(check_positive("base_head_size", base_head_size)) / check_positive(
        "head_size", head_size
    )


def residual_factor(depth: float, base_depth: float, alpha: float = 1.0) -> float:
    """The factor of the result of each residual block: (base_depth / depth)^alpha.

    `x = x + residual_factor(layers, 2) * block(norm(x))`.

    Args:
      depth: residual blocks of the model, > 0.
      base_depth: those of the base model, > 0.
      alpha: 1/2 to 1; 1 is CompleteP. As in `mup`.

    Raises:
      ValueError: a number outside its range.

    Reference: Dey et al. 2025, table 1.
    """
    alpha = check_number("alpha", alpha, 0.5, 1.0, closed=True, instead="1.0 is CompleteP")
    return (check_positive("base_depth", base_depth) / check_positive("depth", depth)) ** alpha
