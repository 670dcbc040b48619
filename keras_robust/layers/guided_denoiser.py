"""The U-Net denoiser of high-level representation guided denoising (HGD)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_robust import validation
from keras_robust.types import Config, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class GuidedDenoiser(keras.layers.Layer):
    """Removes adversarial noise from images with a U-Net (the denoiser of HGD).

    The layer adds to each image a correction that the U-Net `d` computes:

        x_hat = x + d(x)

    Place the layer in front of a frozen classifier that was trained without it.
    `kr.losses.GuidedDenoising` trains the denoiser by the classifier's response to `x_hat`:

        classifier.trainable = False
        model = keras.Sequential([kr.layers.GuidedDenoiser(), classifier])

    The encoder of `d` has one block for each width. The first block has two units of 3x3
    convolution, batch norm and ReLU, and each of the other blocks has three. The first convolution
    of every block except the first halves height and width. The decoder has one block for each
    width except the last, with as many units and channels as the encoder block of that width.
    Before each decoder block, the features from below are resized (bilinearly) to the size of that
    encoder block's output and concatenated with it. A final 1x1 convolution without a bias gives
    one value for each channel of the image. With the default widths, `d` has 11 million parameters,
    which is more than many classifiers have.

    Args:
        widths: list or tuple of at least two ints. The number of channels of each block, from the
            full resolution down. Defaults to `(64, 128, 256, 256, 256)`.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Call arguments:
        inputs: tensor of images, shape `(batch_size, height, width, channels)`. Height and width
            must be known, but can have any value.
        training: bool. Whether batch norm uses the statistics of the batch.

    Returns:
        Tensor of the same shape as `inputs`. It is not clipped, so values may slightly exceed the
        bounds of the images.

    Raises:
        ValueError: if `widths` is not as described; when called, if the input is not of rank 4, or
            if its height, width or number of channels is unknown.

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

    **A denoiser alone is not a defence.** Its authors attack the classifier without the denoiser
    and pass the resulting images through the denoiser, which is a transfer attack. The attacks of
    this package run on the whole model and use the denoiser's gradient. Report their results. With
    `transfer_from=classifier`, `kr.evaluate` also runs the transfer attack as one of its checks.

    The papers do not specify the initialization of the weights. This layer uses Keras's defaults.

    Reference:

    - [Liao et al., 2018](https://arxiv.org/abs/1712.02976), section 4.2 (DUNET)
    - Schwartz and Ditzler, Bolstering Adversarial Robustness with Latent Disparity
      Regularization, section II.C, which gives the same count of 11 million parameters
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

    def build(self, input_shape: Shape) -> None:
        if input_shape[-1] is None:
            raise ValueError(
                "The number of channels of the images must be known. "
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

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if None in tuple(inputs.shape[1:]):
            raise ValueError(
                "Height and width of the images must be known when the layer is called. Give the "
                f"model an `Input` of a fixed size. Received: inputs of shape {inputs.shape}"
            )
        x, skips = inputs, []
        for block in self.down:
            x = block(x, training=training)
            skips.append(x)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = ops.image.resize(x, tuple(skip.shape[1:3]), data_format="channels_last")
            x = block(ops.concatenate([ops.cast(x, skip.dtype), skip], axis=-1), training=training)
        return inputs + self.difference(x)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> Config:
        return {**super().get_config(), "widths": self.widths}


class _Block(keras.layers.Layer):
    """Stacks `depth` units of 3x3 convolution (`strides` in the first), batch norm and ReLU."""

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

    def build(self, input_shape: Shape) -> None:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            convolution.build(input_shape)
            input_shape = (*input_shape[:-1], self.width)
            norm.build(input_shape)
        self.built = True

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = ops.relu(norm(convolution(x), training=training))
        return x
