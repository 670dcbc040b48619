"""The classifiers that are measured: a small one for 28 x 28 images, a ResNet-20 and a VGG-16."""

import pathlib
import sys
from typing import Any

import keras
from keras import layers

sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))
from vgg import layer_names as layer_names
from vgg import vgg

Shape = tuple[int, int, int]


def small_cnn(shape: Shape = (28, 28, 1)) -> keras.Model:
    """Two strided convolutions and two dense layers, as for MNIST: 171,158 parameters."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
            layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(100, activation="relu"),
            layers.Dense(10),
        ]
    )


def resnet20(head: Any = None, shape: Shape = (32, 32, 3)) -> keras.Model:
    """The ResNet-20 for 32 x 32 images of He et al., 2015, section 4.2: 0.27 million parameters.

    Shortcuts that change the shape are 1 x 1 convolutions (the paper's option B). `head` is the
    layer on its 64 features; by default it is dense, with 10 outputs.
    """
    inputs = keras.Input(shape)
    x = layers.Activation("relu")(_convolution(inputs, 16, 3, 1))
    for width, first_stride in ((16, 1), (32, 2), (64, 2)):
        for stride in (first_stride, 1, 1):
            x = _residual_block(x, width, stride)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, (head or layers.Dense(10))(x))


def vgg16(shape: Shape = (32, 32, 3)) -> keras.Model:
    """The VGG-16 of the latent disparity paper: 15 million parameters."""
    return vgg(shape, width=1.0)


def _convolution(x: Any, width: int, size: int, stride: int) -> Any:
    x = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def _residual_block(x: Any, width: int, stride: int) -> Any:
    shortcut = x if x.shape[-1] == width else _convolution(x, width, 1, stride)
    x = layers.Activation("relu")(_convolution(x, width, 3, stride))
    x = layers.Add()([shortcut, _convolution(x, width, 3, 1)])
    return layers.Activation("relu")(x)
