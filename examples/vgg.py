"""The network of the latent disparity paper."""

import keras

L = keras.layers
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg(shape: tuple, width: float) -> keras.Model:
    """VGG-16 for small images: ELU, batch norm after each convolution, one dense layer of 512."""
    decay = keras.regularizers.L2(5e-5)

    def channels(count: int) -> int:
        return max(4, round(width * count))

    model = keras.Sequential([keras.Input(shape)])
    for number, block in enumerate(BLOCKS, start=1):
        for place, count in enumerate(block, start=1):
            model.add(L.Conv2D(
                channels(count), 3, padding="same", activation="elu", kernel_regularizer=decay,
            ))  # fmt: skip
            model.add(L.BatchNormalization(name=f"block{number}_{place}"))
        model.add(L.MaxPooling2D(padding="same"))
    model.add(L.Flatten())
    model.add(L.Dense(channels(512), activation="elu", kernel_regularizer=decay, name="dense"))
    model.add(L.Dense(10, name="logits"))
    return model


def layer_names(model: keras.Model) -> list[str]:
    """What the paper compares: the batch norms after the convolutions, and the dense layer."""
    return [layer.name for layer in model.layers if layer.name.startswith(("block", "dense"))]
