"""Any transformation as an optimizer of Keras 3, on its JAX backend."""

import importlib
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from adam_jax._types import AnyTransformation, Leaf, Named, State
from adam_jax.core.states import found
from adam_jax.core.transformation import body_of, step
from adam_jax.hyperparams import WithHyperparams, set_hyperparams
from adam_jax.validation import is_number

keras: Any = importlib.import_module("keras")  # pyright takes `import keras` for this file.
if (used := keras.backend.backend()) != "jax":
    raise ImportError(f"Keras must run on JAX, got {used}: set KERAS_BACKEND=jax before import.")


@keras.saving.register_keras_serializable(package="adam_jax")
class Optimizer(keras.optimizers.Optimizer):
    """Steps the model with `adam_jax.step`; each array of the state is one of its variables.

    `groups` and others select parameters by `Variable.path`, such as "sequential/dense/kernel".

    Args:
      tx: any transformation, of this package or of Optax. It gets gradients and parameters only.
      learning_rate: a number, or a schedule of Keras, in place of the number in
        `with_hyperparams(adamw)(1e-3)`. Assigning `optimizer.learning_rate`, as callbacks do, acts
        like `set_hyperparams`. For any other `tx` that is an error, and reading it returns inf.
      **kwargs: as in `keras.optimizers.Optimizer`, but for `weight_decay`. Clipping precedes `tx`.

    Raises:
      ValueError: `weight_decay`; a learning rate for any other `tx`; loading without this `tx`.

    Example:
      >>> import adam_jax, keras, numpy as np
      >>> from adam_jax.trainers.keras import Optimizer
      >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
      >>> tx = adam_jax.with_hyperparams(adam_jax.adamw)(1e-3)
      >>> model.compile(Optimizer(tx), loss="mse")
      >>> _ = model.fit(np.ones((8, 3)), np.ones(8), verbose=0)
      >>> model.save("model.keras")
      >>> model = keras.models.load_model("model.keras", custom_objects={"tx": tx})
    """

    def __init__(self, tx: AnyTransformation, learning_rate: Leaf = None, **kwargs: Leaf) -> None:
        if kwargs.get("weight_decay") is not None:
            raise ValueError("weight_decay must be in tx: write adamw(1e-3, weight_decay=0.1).")
        bodies = found(body_of("tx", tx), lambda x: isinstance(x, WithHyperparams))
        rates: list[Any] = [x.numbers.get("learning_rate") for x in bodies]
        takes_rate = len(rates) == 1 and is_number(rates[0])
        # Not NaN, with which ReduceLROnPlateau would do nothing and raise no error.
        super().__init__(float(rates[0]) if takes_rate else float("inf"), **kwargs)
        self.tx, self._takes_rate = tx, takes_rate
        if learning_rate is not None:
            self.learning_rate = learning_rate

    @keras.optimizers.Optimizer.learning_rate.setter
    def learning_rate(self, rate: Leaf) -> None:
        """The learning rate of the next step."""
        if not self._takes_rate:
            raise ValueError(
                f"learning_rate must be a number of with_hyperparams in tx, got {self.tx}: write"
                f" adam_jax.with_hyperparams(adamw)(learning_rate=1e-3)."
            )
        keras.optimizers.Optimizer.learning_rate.fset(self, rate)

    def exclude_from_weight_decay(self, *args: Leaf, **kwargs: Leaf) -> None:
        """Raises an error, since `tx` decays the weights."""
        raise ValueError("weight_decay must be in tx: write adamw(1e-3, mask=...).")

    @property
    def state(self) -> State:
        """The state of `tx`; in a callback during an epoch, after `model.jax_state_sync()`."""
        return self._treedef.unflatten([v.value for v in self._state])

    def build(self, variables: list[Any]) -> None:
        """Makes the state."""
        if self.built:
            return
        super().build(variables)
        paths = [v.path for v in variables]  # Layers of a model class may share a name.
        names = [f"{p}_{i}" if p in paths[:i] else p for i, p in enumerate(paths)]
        # Not sorted: Keras counts names, so that the next model has "dense_10" after "dense_9".
        self._tree = jax.tree.structure(OrderedDict.fromkeys(names, 0))
        state = self.tx.init(self._tree.unflatten([v.value for v in variables]))
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(state)
        self._state = []
        for path, x in leaves:
            x = jnp.array(x)  # A copy: `fit` donates it, and the parameters.
            name = jax.tree_util.keystr(path, simple=True, separator="_").replace("/", "_")
            where = x.sharding if isinstance(x.sharding, NamedSharding) else None
            self._state.append(self.add_variable(x.shape, x, str(x.dtype), layout=where, name=name))

    def _backend_update_step(self, grads: Any, trainable_variables: Any, rate: Leaf) -> None:
        state, every = self.state, self._trainable_variables
        if self._takes_rate:
            state = set_hyperparams(state, learning_rate=keras.ops.convert_to_tensor(rate))
        given = dict(zip(map(id, trainable_variables), grads, strict=True))
        of_all = self._tree.unflatten([given.get(id(v)) for v in every])
        new = step(self.tx, of_all, state, self._tree.unflatten([v.value for v in every]))
        for variable, x in zip([*every, *self._state], jax.tree.leaves(new), strict=True):
            variable.assign(x)

    def load_own_variables(self, store: Any) -> None:
        """Raises an error where Keras warns, and starts anew."""
        saved = [store[str(i)] for i in range(len(store.keys()))]
        own = [(tuple(v.shape), str(v.dtype)) for v in self.variables]
        if len(saved) > 2 and own != [(x.shape, str(x.dtype)) for x in saved]:
            raise ValueError(
                f"the saved arrays must be those of the built optimizer of {self.tx}, got others:"
                f" write optimizer.build(model.trainable_variables), with the tx of the saved run."
            )
        super().load_own_variables(store)

    def get_config(self) -> Named:
        """Keras' arguments, and the text of `tx`."""
        config = super().get_config() | {"tx": repr(self.tx)}
        return config if self._takes_rate else config | {"learning_rate": None}

    @classmethod
    def from_config(cls, config: Named, custom_objects: Named | None = None) -> Any:
        """Reads `tx` from `custom_objects`."""
        tx = keras.saving.get_registered_object("tx", custom_objects)
        if tx is None:
            raise ValueError(
                f"the file has only the text of its transformation, {config['tx']}: write"
                f" keras.models.load_model(path, custom_objects={{'tx': tx}})."
            )
        return super().from_config(config | {"tx": tx}, custom_objects)
