"""The measured classifiers: a small CNN for 28 x 28 images, a ResNet-20 and a VGG-16."""

import pathlib
import sys
from typing import Any

import keras
from keras import layers

sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples" / "reproductions"))
import networks

layer_names = networks.latent_layers
Shape = tuple[int, int, int]


def small_cnn(shape: Shape = (28, 28, 1)) -> keras.Model:
    """Returns two strided convolutions and two dense layers: 171,158 parameters by default."""
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
    """Returns the ResNet-20 of He et al., 2015, section 4.2: 0.27 million parameters.

    `head` is the layer on its 64 features. By default it is a dense layer with 10 outputs.
    """
    return networks.resnet(20, shape, [head or layers.Dense(10)])


def vgg16(shape: Shape = (32, 32, 3)) -> keras.Model:
    """Returns the VGG-16 of Schwartz and Ditzler, 2020: 15 million parameters."""
    return networks.vgg16(shape, width=1.0)
