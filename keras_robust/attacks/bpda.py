"""Backward pass differentiable approximation (BPDA)."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_robust.model.classifier import Classifier
from keras_robust.model.layers import all_layers
from keras_robust.model.patching import replaced
from keras_robust.types import Config, Images, Labels, Model, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class BPDA:
    """Attacks a model through layers that have no useful gradient.

    The forward pass is unchanged. In the backward pass, each of the named layers `g` is replaced by
    a smooth function `h`, by default the identity:

        forward   g(x)
        backward  grad h(x)

    Pass it to an attack as `objective`. It is for defences that quantize, threshold or reconstruct
    their input, where the true gradient is 0 or misleading. If the layer is also random, use
    `num_samples` of the attack, too.

    Args:
        layers: string or sequence of strings. Names of layers of the model, or of models nested in
            it.
        backward: callable `h`, differentiable, from the layer's input to the shape of its output.
            To save the objective, register it with `keras.saving.register_keras_serializable`.
            Defaults to `None`: the identity.
        from_logits: bool. Whether the model returns logits rather than probabilities. Defaults to
            `True`.

    Call arguments:
        model: Keras model.
        x: tensor, shape `(batch_size, ...)`.
        y: labels, not used.

    Returns:
        The model's logits, shape `(batch_size, num_classes)`.

    Raises:
        ValueError: if `layers` is empty; when called, if the model has no layer with that name, or
            if the shapes of a layer's output and of `h` differ.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Lambda(lambda x: keras.ops.round(7 * x) / 7, name="quantize"),
    ...     keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> attack = kr.attacks.PGD(epsilon=0.1, objective=kr.attacks.BPDA("quantize"))
    >>> x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([3, 1, 4, 1])
    >>> tuple(attack(model, x, y, seed=0).shape)
    (4, 8, 8, 1)

    Reference:

    - [Athalye et al., 2018](https://arxiv.org/abs/1802.00420), section 4.1
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        backward: Callable[[Any], Any] | None = None,
        from_logits: bool = True,
    ) -> None:
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        if not self.layers or not all(isinstance(name, str) for name in self.layers):
            raise ValueError(
                "Argument `layers` must hold at least one name of a layer. "
                f"Received: layers={layers!r}"
            )
        if backward is not None and not callable(backward):
            raise ValueError(
                f"Argument `backward` must be a callable. Received: backward={backward!r}"
            )
        self.backward = backward
        self.from_logits = bool(from_logits)

    def __call__(self, model: Model, x: Images, y: Labels) -> Tensor:
        model = getattr(model, "base_model", model)
        by_name = {layer.name: layer for layer in all_layers(model)[1:]}
        with contextlib.ExitStack() as stack:
            for name in self.layers:
                if name not in by_name:
                    raise ValueError(
                        "Argument `layers` must name layers of the model, which has "
                        f"{sorted(by_name)}. Received: {name!r}"
                    )
                layer = by_name[name]
                stack.enter_context(replaced(layer, "call", self._substitute(layer)))
            return Classifier.of(model).logits(x, self.from_logits)

    def get_config(self) -> Config:
        backward = self.backward
        return {
            "layers": self.layers,
            "backward": backward and keras.saving.serialize_keras_object(backward),
            "from_logits": self.from_logits,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BPDA":
        if isinstance(config["backward"], dict):
            backward = keras.saving.deserialize_keras_object(config["backward"])
            config = {**config, "backward": backward}
        return cls(**config)

    def __repr__(self) -> str:
        return (
            f"BPDA(layers={self.layers!r}, backward={self.backward!r}, "
            f"from_logits={self.from_logits!r})"
        )

    def _substitute(self, layer: Any) -> Callable[..., Any]:
        """Returns the layer's `call` with the gradient of `backward`."""
        call = layer.call

        def substitute(x: Images, *args: Any, **kwargs: Any) -> Any:
            value = call(x, *args, **kwargs)
            surrogate = x if self.backward is None else self.backward(x)
            if tuple(value.shape) != tuple(surrogate.shape):
                raise ValueError(
                    "Argument `backward` must return the shape of the output of layer "
                    f"{layer.name!r}, {tuple(value.shape)}. Received: "
                    f"backward={self.backward!r}, which gives shape {tuple(surrogate.shape)}"
                )
            return _straight_through(value, ops.cast(surrogate, value.dtype))

        return substitute


def _straight_through(value: Any, surrogate: Any) -> Any:
    """Returns `value`, and passes its gradient to `surrogate` unchanged."""

    @ops.custom_gradient
    def function(surrogate: Any, value: Any) -> Any:
        def gradient(*args: Any, upstream: Tensor = None) -> Tensor:
            upstream = args[0] if upstream is None else upstream
            return upstream, ops.zeros_like(value)

        return value, gradient

    return function(surrogate, ops.stop_gradient(value))
