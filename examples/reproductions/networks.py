"""The networks of the papers."""

from collections.abc import Sequence
from typing import Any

import keras

L = keras.layers
Shape = tuple[int, ...]
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def growing(epsilon: float, num_steps: int) -> Any:
    """Returns a radius that grows linearly from 0 over the first half of `num_steps`.

    Networks learn nothing if training starts at the full radius.
    """
    return keras.optimizers.schedules.PolynomialDecay(0.0, max(1, num_steps // 2), epsilon)


def augmentation() -> list[Any]:
    """Returns layers that augment the training images as He et al. do.

    They shift images by up to 4 of 32 pixels, and mirror them.
    """
    shift = L.RandomTranslation(0.125, 0.125, "constant", "nearest")
    return [shift, L.RandomFlip("horizontal")]


def four_convolutions(shape: Shape, head: Sequence[Any], width: float = 1.0) -> keras.Model:
    """Builds the small network of Xu et al.: four convolutions with batch norm.

    The convolutions have 32 and 64 channels for MNIST, and 64 and 128 for CIFAR-10. `head` is a
    list of layers. Their inputs are the last features (200 for MNIST, 256 for CIFAR-10) after batch
    norm, before an activation.
    """
    first, hidden = (32, 200) if shape[-1] == 1 else (64, 256)
    layers: list[Any] = [keras.Input(shape)]
    for channels in (first, 2 * first):
        for _ in range(2):
            layers += [
                L.Conv2D(max(4, round(width * channels)), 3),
                L.BatchNormalization(),
                L.ReLU(),
            ]
        layers.append(L.MaxPooling2D())
    layers += [L.Flatten(), L.Dense(hidden), L.ReLU(), L.BatchNormalization()]
    layers += [L.Dense(hidden), L.BatchNormalization()]
    return keras.Sequential([*layers, *head])


def small_cnn(shape: Shape, head: Any, width: float = 1.0) -> keras.Model:
    """Builds the CNN that TRADES uses for MNIST.

    It has four convolutions and two dense layers of 200 units.
    """
    channels = [max(4, round(width * count)) for count in (32, 32, 64, 64)]
    convolutions = [L.Conv2D(count, 3, activation="relu") for count in channels]
    return keras.Sequential(
        [
            keras.Input(shape),
            *convolutions[:2],
            L.MaxPooling2D(),
            *convolutions[2:],
            L.MaxPooling2D(),
            L.Flatten(),
            L.Dense(200, activation="relu"),
            L.Dense(200, activation="relu"),
            head,
        ]
    )


def resnet(
    depth: int,
    shape: Shape,
    head: Sequence[Any],
    width: int = 16,
    pre_activated: bool = False,
    front: Sequence[Any] = (),
) -> keras.Model:
    """Builds a ResNet for 32 x 32 images.

    It has `depth = 6 n + 2` layers in three stages, of `width`, `2 * width` and `4 * width`
    channels. Shortcuts that change the shape are 1 x 1 convolutions. With `pre_activated`, it is a
    wide ResNet of 6 n + 4 layers; use a `width` above 16.

    `front` is a list of layers before the network, such as augmentation, and `head` a list of
    layers on its features.
    """
    num_blocks = (depth - (4 if pre_activated else 2)) // 6
    inputs = x = keras.Input(shape)
    for layer in front:
        x = layer(x)
    block = _pre_activated_block if pre_activated else _block
    if pre_activated:
        x = L.Conv2D(16, 3, padding="same", use_bias=False)(x)
    else:
        x = L.ReLU()(_convolution(x, width, 3, 1))
    for stage in range(3):
        for number in range(num_blocks):
            x = block(x, width * 2**stage, 2 if stage > 0 and number == 0 else 1)
    if pre_activated:
        x = L.ReLU()(L.BatchNormalization()(x))
    x = L.GlobalAveragePooling2D(name="features")(x)
    for layer in head:
        x = layer(x)
    return keras.Model(inputs, x)


def _convolution(x: Any, width: int, size: int, stride: int) -> Any:
    x = L.Conv2D(width, size, strides=stride, padding="same", use_bias=False)(x)
    return L.BatchNormalization()(x)


def _block(x: Any, width: int, stride: int) -> Any:
    shortcut = x if x.shape[-1] == width and stride == 1 else _convolution(x, width, 1, stride)
    x = L.ReLU()(_convolution(x, width, 3, stride))
    return L.ReLU()(L.Add()([shortcut, _convolution(x, width, 3, 1)]))


def _pre_activated_block(x: Any, width: int, stride: int) -> Any:
    activated = L.ReLU()(L.BatchNormalization()(x))
    shortcut = x
    if x.shape[-1] != width or stride > 1:
        shortcut = L.Conv2D(width, 1, strides=stride, use_bias=False)(activated)
    x = L.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(activated)
    x = L.ReLU()(L.BatchNormalization()(x))
    return L.Add()([shortcut, L.Conv2D(width, 3, padding="same", use_bias=False)(x)])


def with_fast_statistics(model: keras.Model) -> keras.Model:
    """Sets the momentum of batch norm to 0.9, which is PyTorch's default, and returns the model.

    With Keras's 0.99, the moving statistics lag behind the weights in a training of few steps, and
    the test accuracy may stay at chance.
    """
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.momentum = 0.9
    return model


def vgg11(
    shape: Shape, head: Sequence[Any], width: float = 1.0, front: Sequence[Any] = ()
) -> keras.Model:
    """Builds a VGG-11 with batch norm for 32 x 32 images.

    `front` is a list of layers before the network, and `head` a list of layers on its 512 features.
    `width` multiplies the numbers of channels.
    """
    layers: list[Any] = [keras.Input(shape), *front]
    for block in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for count in block:
            count = max(4, round(width * count))
            layers.append(L.Conv2D(count, 3, padding="same", use_bias=False))
            layers += [L.BatchNormalization(), L.ReLU()]
        layers.append(L.MaxPooling2D())
    return keras.Sequential([*layers, L.Flatten(name="features"), *head])


def vgg16(shape: Shape, width: float) -> keras.Model:
    """Builds the VGG-16 of Schwartz and Ditzler for small images.

    It has ELU activations, batch norm after each convolution, and one dense layer of 512 units.
    `width` multiplies the numbers of channels and of these units.
    """
    decay = keras.regularizers.L2(5e-5)

    def channels(count: int) -> int:
        return max(4, round(width * count))

    model = keras.Sequential([keras.Input(shape)])
    blocks = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    for number, block in enumerate(blocks, start=1):
        for place, count in enumerate(block, start=1):
            model.add(
                L.Conv2D(
                    channels(count), 3, padding="same", activation="elu", kernel_regularizer=decay
                )
            )
            model.add(L.BatchNormalization(name=f"block{number}_{place}"))
        model.add(L.MaxPooling2D(padding="same"))
    model.add(L.Flatten())
    model.add(L.Dense(channels(512), activation="elu", kernel_regularizer=decay, name="dense"))
    model.add(L.Dense(10, name="logits"))
    return model


def latent_layers(model: keras.Model) -> list[str]:
    """Returns the names of the layers of `vgg16` that latent disparity compares.

    These are the batch norms and the dense layer, without the logits.
    """
    return [layer.name for layer in model.layers if layer.name.startswith(("block", "dense"))]
