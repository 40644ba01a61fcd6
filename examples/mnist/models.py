"""Four classifiers of handwritten digits in Flax NNX: images [batch, 28, 28, 1] to logits.

softmax   logistic regression                            7,850 parameters
mlp       784-128-10, ReLU                             101,770
small-cnn two 3x3 convolutions, one dense layer          9,098
cnn       four 3x3 convolutions, two dense layers      467,818
"""

import jax
import jax.numpy as jnp
from flax import nnx

PIXELS = 28 * 28
CLASSES = 10
LABELS = [str(digit) for digit in range(CLASSES)]
he_normal = nnx.initializers.he_normal()


class Softmax(nnx.Module):
    """Logistic regression: one affine map of the pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.out = nnx.Linear(PIXELS, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32 [batch, 10]."""
        return self.out(images.reshape(images.shape[0], PIXELS))


class MLP(nnx.Module):
    """One hidden layer of 128 rectified units."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(PIXELS, 128, kernel_init=he_normal, rngs=rngs)
        self.out = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32 [batch, 10]."""
        return self.out(nnx.relu(self.hidden(images.reshape(images.shape[0], PIXELS))))


class SmallCNN(nnx.Module):
    """Two 3x3 convolutions, each with 2x2 max pooling, then a dense layer: for hundreds of runs."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = Conv3x3(1, 8, rngs)
        self.conv2 = Conv3x3(8, 16, rngs)
        self.out = nnx.Linear(7 * 7 * 16, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32 [batch, 10]."""
        x = max_pool(nnx.relu(self.conv1(images)))  # [batch, 14, 14, 8]
        x = max_pool(nnx.relu(self.conv2(x)))  # [batch, 7, 7, 16]
        return self.out(x.reshape(x.shape[0], -1))


class CNN(nnx.Module):
    """Two pairs of 3x3 convolutions with 2x2 max pooling, then two dense layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = Conv3x3(1, 32, rngs)
        self.conv2 = Conv3x3(32, 32, rngs)
        self.conv3 = Conv3x3(32, 64, rngs)
        self.conv4 = Conv3x3(64, 64, rngs)
        self.hidden = nnx.Linear(7 * 7 * 64, 128, kernel_init=he_normal, rngs=rngs)
        self.out = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32 [batch, 10]."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        x = max_pool(x)  # [batch, 14, 14, 32]
        x = nnx.relu(self.conv4(nnx.relu(self.conv3(x))))
        x = max_pool(x)  # [batch, 7, 7, 64]
        return self.out(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


class Conv3x3(nnx.Module):
    """A 3x3 convolution that keeps height and width; on a CPU as one matrix product.

    In training, XLA:CPU's convolution is 1.1 (batch 64) to 1.4 times (batch 128) slower than the
    product, and inside `lax.scan` or under `vmap` over the weights about 9 times. On other devices,
    and without training, the library's own convolution is faster. Both have the same kernel,
    [3, 3, in, out].

    Attributes:
      convolve: the implementation; `examples.mnist.export` takes the library's.
    """

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(he_normal(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        on_cpu = jax.default_backend() == "cpu"
        self.convolve = convolve_by_matmul if on_cpu else convolve_by_library

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, in] to [batch, height, width, out]."""
        return self.convolve(x, self.kernel[...]) + self.bias[...]


def convolve_by_library(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The backend's own convolution with zero padding."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def convolve_by_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The nine shifted images side by side, times the kernel as a matrix [9·in, out]."""
    batch, height, width, inputs = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, 9 * inputs)
    return (patches @ kernel.reshape(9 * inputs, -1)).reshape(batch, height, width, -1)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each 2x2 block: [batch, height, width, c] to [batch, height/2, width/2, c].

    Implemented by reshape: the gradient of a window reduction is a select-and-scatter, which makes
    the whole step of the CNN 1.4 to 1.8 times slower on a CPU.
    """
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


MODELS = {"softmax": Softmax, "mlp": MLP, "small-cnn": SmallCNN, "cnn": CNN}
