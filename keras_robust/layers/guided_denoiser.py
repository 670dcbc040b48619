"""A network that takes adversarial noise off images."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_robust import validation


@keras.saving.register_keras_serializable(package="keras_robust")
class GuidedDenoiser(keras.layers.Layer):
    """Adds to an image what a U-Net finds is missing from it: the denoiser of HGD.

        x_hat = x + d(x)

    It stands before a classifier that was trained without it and stays as it is;
    `kr.losses.GuidedDenoising` trains the denoiser by what the classifier makes of `x_hat`:

        classifier.trainable = False
        model = keras.Sequential([kr.layers.GuidedDenoiser(), classifier])

    On its way down, `d` has a block for each width, the first of two and the others of three
    times 3x3 convolution, batch norm and ReLU; the first convolution of every block but the
    first halves height and width. On its way up, what comes from below is resized (bilinearly)
    to the size of the block on the way down with the next smaller size, joined to that block's
    output, and goes through another block of as many convolutions and the same width. A 1x1
    convolution without a bias gives one value for each channel of the image. With the default
    widths these are 11 million parameters, more than in many a classifier.

    **A denoiser by itself is no defence.** Its authors attack the classifier without it and let
    the images pass through the denoiser: a transfer attack. Attacks of this package on the whole
    model see the denoiser, and its gradient. Report these; `transfer_from=classifier` adds the
    former to the checks of `kr.evaluate`.

    Args:
        widths: sequence of at least two ints, the channels of the blocks from the full size
            down. Defaults to `(64, 128, 256, 256, 256)`.
        **kwargs: `name`, `dtype` and the like, as for any Keras layer.

    Call arguments:
        inputs: tensor of images, shape `(batch_size, height, width, channels)`. Height and
            width may be any, and must be known.
        training: bool, whether batch norm uses the batch's statistics.

    Returns:
        Tensor of the same shape. It is not clipped: values may leave the images' bounds a little.

    Raises:
        ValueError: if `widths` are not as described; when called, if the input is not of rank 4,
            or its size is not known.

    Example:

    >>> import keras, keras_robust as kr
    >>> classifier = keras.Sequential([
    ...     keras.Input((28, 28, 1)),
    ...     keras.layers.Conv2D(8, 3, activation="relu"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> classifier.trainable = False
    >>> denoiser = kr.layers.GuidedDenoiser(widths=(8, 16, 16))
    >>> model = keras.Sequential([keras.Input((28, 28, 1)), denoiser, classifier])
    >>> denoiser.compute_output_shape((None, 28, 28, 1))
    (None, 28, 28, 1)

    The papers do not say how weights are initialized; here it is as Keras does it by default.

    Reference:

    - [Liao et al., 2018](https://arxiv.org/abs/1712.02976), section 4.2 (DUNET)
    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, section II.C, whose count of 11 million parameters this has
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 256, 256), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        given = list(widths) if isinstance(widths, list | tuple) else []
        if len(given) < 2:
            raise ValueError(
                "Argument `widths` must be a sequence of at least two integers. "
                f"Received: widths={widths!r}"
            )
        self.widths = [validation.check_count("widths", width) for width in given]
        policy = self.dtype_policy
        self.down = [
            _Block(width, 2 if level == 0 else 3, 1 if level == 0 else 2, dtype=policy)
            for level, width in enumerate(self.widths)
        ]
        self.up = [
            _Block(width, 2 if level == 0 else 3, 1, dtype=policy)
            for level, width in enumerate(self.widths[:-1])
        ]
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: Any) -> None:
        if input_shape[-1] is None:
            raise ValueError(
                "The channels of the images must be known. "
                f"Received: inputs of shape {tuple(input_shape)}"
            )
        channels = [input_shape[-1], *self.widths]
        for block, incoming in zip(self.down, channels, strict=False):
            block.build((None, None, None, incoming))
        below = self.widths[1:]
        for block, skip, incoming in zip(self.up, self.widths, below, strict=False):
            block.build((None, None, None, incoming + skip))
        self.difference = keras.layers.Conv2D(
            input_shape[-1],
            1,
            use_bias=False,
            data_format="channels_last",
            dtype=self.dtype_policy,
        )
        self.difference.build((None, None, None, self.widths[0]))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if None in tuple(inputs.shape[1:]):
            raise ValueError(
                "Height and width of the images must be known when the layer runs: give the "
                f"model an `Input` that has them. Received: inputs of shape {inputs.shape}"
            )
        x, skips = inputs, []
        for block in self.down:
            x = block(x, training=training)
            skips.append(x)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = ops.image.resize(x, tuple(skip.shape[1:3]), data_format="channels_last")
            x = block(ops.concatenate([ops.cast(x, skip.dtype), skip], axis=-1), training=training)
        return inputs + self.difference(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "widths": self.widths}


class _Block(keras.layers.Layer):
    """`depth` times 3x3 convolution, batch norm and ReLU; the first with `strides`."""

    def __init__(self, width: int, depth: int, strides: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.convolutions = [
            keras.layers.Conv2D(
                width, 3, strides if number == 0 else 1, "same", "channels_last",
                use_bias=False, dtype=self.dtype_policy,
            )
            for number in range(depth)
        ]  # fmt: skip
        self.norms = [
            keras.layers.BatchNormalization(axis=-1, dtype=self.dtype_policy) for _ in range(depth)
        ]

    def build(self, input_shape: Any) -> None:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            convolution.build(input_shape)
            input_shape = (*input_shape[:-1], self.width)
            norm.build(input_shape)
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = ops.relu(norm(convolution(x), training=training))
        return x
