"""Compares the cost of a training step of each loss with that of the passes it consists of.

    python benchmarks/losses.py
    KERAS_BACKEND=jax python benchmarks/losses.py --losses "Fisher information" "latent disparity"

The parts of a step are timed separately, in the same process and the same rounds:

- `step`: an ordinary training step; `double step`: one on twice as many images;
- `gradient`: the gradient of the cross-entropy with respect to the images, as in a step of PGD;
- `jacobian`: the gradients of 9 differences of logits with respect to the images, and one forward
  pass;
- `penalty step`: a training step of a loss with a penalty on the squared norm of its gradient with
  respect to the images, which takes a second derivative;
- `forward`: a forward pass of the classifier in inference mode;
- `denoiser step`: an ordinary training step of the denoiser in front of the frozen classifier.

The floor of a loss is the sum of the parts that its formula requires (`FLOORS`). The time of a
training step is that of an epoch of `fit` of many steps less that of an epoch of one step, divided
by the number of additional steps. The model is the small CNN of `models.py`, on batches of 128
random images.

The last three losses are timed as in Table I of Schwartz and Ditzler, 2020: with its VGG-16 and its
denoiser of 11 million parameters, on batches of 32 pairs that were generated beforehand.
"""

import argparse
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import harness
import keras
import models
import numpy as np
from keras import ops
from training import input_gradient, measured, measured_fit

import keras_robust as kr
from keras_robust import backend
from keras_robust.model.classifier import Classifier
from keras_robust.ops.labels import sparse_labels
from keras_robust.ops.logits import of_class, other_classes

EPSILON = 0.1
IN_PAPER = ", VGG-16"
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def pgd(num_steps: int = 7) -> kr.attacks.PGD:
    return kr.attacks.PGD(EPSILON, num_steps=num_steps)


def fgsm() -> kr.attacks.FGSM:
    return kr.attacks.FGSM(EPSILON)


LOSSES: dict[str, Callable[[], Any]] = {
    "adversarial training, PGD-7": lambda: kr.losses.AdversarialTraining(pgd()),
    "TRADES, PGD-7": lambda: kr.losses.TRADES(pgd()),
    "MART, PGD-7": lambda: kr.losses.MART(pgd()),
    "Fisher information": kr.losses.FisherInformation,
    "stability training": lambda: kr.losses.StabilityTraining(weight=0.1, stddev=0.1),
    "latent disparity, FGSM": lambda: kr.losses.LatentDisparity(fgsm()),
    "guided denoising, FGSM": lambda: kr.losses.GuidedDenoising(fgsm()),
    "Deep Defense": kr.losses.DeepDefense,
    "Parseval": lambda: CROSS_ENTROPY,
    "Max-Mahalanobis": kr.losses.MaxMahalanobis,
    "Fisher information, VGG-16": kr.losses.FisherInformation,
    "latent disparity, pairs, VGG-16": lambda: kr.losses.LatentDisparity(
        None, layers=models.layer_names(network(IN_PAPER))
    ),
    "guided denoising, pairs, VGG-16": lambda: kr.losses.GuidedDenoising(None),
}
# How many of each part make up the floor of a loss.
FLOORS: dict[str, dict[str, int]] = {
    "adversarial training, PGD-7": {"gradient": 7, "step": 1},
    "TRADES, PGD-7": {"gradient": 7, "double step": 1},
    "MART, PGD-7": {"gradient": 7, "double step": 1},
    "Fisher information": {"step": 1},
    "stability training": {"double step": 1},
    "latent disparity, FGSM": {"gradient": 1, "double step": 1},
    "guided denoising, FGSM": {"gradient": 1, "forward": 1, "denoiser step": 1},
    "Deep Defense": {"jacobian": 5, "penalty step": 5, "step": -4},
    "Parseval": {"step": 1},
    "Max-Mahalanobis": {"step": 1},
    "Fisher information, VGG-16": {"step": 1},
    "latent disparity, pairs, VGG-16": {"double step": 1},
    "guided denoising, pairs, VGG-16": {"forward": 1, "denoiser step": 1},
}


def jacobian(classifier: Classifier, x: Any, y: Any) -> Any:
    """Returns the gradients by which a step of DeepFool selects its class."""
    others = other_classes(classifier.outputs(x), y)

    def differences(z: Any) -> Any:
        logits = classifier.outputs(z)
        return ops.take_along_axis(logits, others, axis=1) - of_class(logits, y)[:, None]

    return backend.value_and_jacobian(differences, x)[1]


@keras.saving.register_keras_serializable(package="benchmarks")
class InputGradientPenalty(kr.losses.ModelLoss):
    """The cross-entropy plus the squared norm of its input gradient, differentiated twice."""

    needs_attack = False

    def training_loss(self, step: Any, y_true: Any, y_pred: Any) -> Any:
        labels = sparse_labels(y_true)  # Keras has converted them to floats.
        gradient = input_gradient(Classifier(step.model), step.x, labels)
        penalty = ops.sum(ops.square(gradient), axis=(1, 2, 3))
        return self.classification_loss(y_true, y_pred) + penalty


def network(name: str) -> keras.Model:
    """Returns the undefended classifier for the loss `name`."""
    return models.vgg16((28, 28, 1)) if name.endswith(IN_PAPER) else models.small_cnn()


def model_of(name: str) -> keras.Model:
    """Returns the model that the loss `name` trains, with the layers and constraints it needs."""
    keras.utils.set_random_seed(0)
    if name.startswith("guided denoising"):
        return denoised(name)
    model = network(name)
    if name == "Parseval":
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.constraint = kr.constraints.ParsevalTightness(beta=1e-4)
    if name == "Max-Mahalanobis":
        return keras.Sequential([*model.layers[:-1], kr.layers.MaxMahalanobisClassifier(10)])
    return model


def denoised(name: str) -> keras.Model:
    classifier = network(name)
    classifier.trainable = False
    widths = {} if name.endswith(IN_PAPER) else {"widths": (16, 32, 64)}
    return keras.Sequential(
        [keras.Input((28, 28, 1)), kr.layers.GuidedDenoiser(**widths), classifier]
    )


def compiled(model: keras.Model, loss: Any) -> kr.RobustModel:
    robust = kr.RobustModel(model)
    robust.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    return robust


def measure(name: str, repeats: int, sample_seconds: float) -> dict[str, Any]:
    """Measures a training step of one loss, and the parts of its floor."""
    rng = np.random.default_rng(0)
    batch_size = 32 if name.endswith(IN_PAPER) else 128
    x = rng.random((batch_size, 28, 28, 1), dtype="float32")
    y = rng.integers(0, 10, batch_size, dtype="int32")
    twice = np.concatenate([x, x]), np.concatenate([y, y])
    pairs = ((x, x), y) if ", pairs" in name else (x, y)
    plain = network(name)
    on_device = ops.convert_to_tensor(x), ops.convert_to_tensor(y)

    def step(model: keras.Model, loss: Any, data: tuple = (x, y)) -> tuple[Any, float]:
        return measured_fit(compiled(model, loss), *data, sample_seconds)

    def function(key: str, body: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        built = Classifier(plain).compiled(key, body)
        return measured(lambda: built(*args), sample_seconds)

    parts: dict[str, Callable[[], tuple[Any, float]]] = {
        "step": lambda: step(network(name), CROSS_ENTROPY),
        "double step": lambda: step(network(name), CROSS_ENTROPY, twice),
        "gradient": lambda: function("gradient", input_gradient, *on_device),
        "jacobian": lambda: function("jacobian", jacobian, *on_device),
        "penalty step": lambda: step(network(name), InputGradientPenalty(None)),
        "forward": lambda: function("forward", Classifier.outputs, on_device[0]),
        "denoiser step": lambda: step(denoised(name), CROSS_ENTROPY),
    }
    # The ordinary step is always needed, for `ratio_to_step`.
    needed = {part: parts[part]()[0] for part in {**FLOORS[name], "step": 1}}
    needed["loss"], compile_seconds = step(model_of(name), LOSSES[name](), pairs)
    samples = harness.interleave(needed, repeats)
    floor = [
        sum(count * samples[part][i] for part, count in FLOORS[name].items())
        for i in range(repeats)
    ]
    over_step = statistics.median(
        a / b for a, b in zip(samples["loss"], samples["step"], strict=True)
    )
    return {
        "floor": FLOORS[name],
        "batch_size": batch_size,
        "repeats": repeats,
        **harness.summary(samples["loss"], floor),
        "ratio_to_step": over_step,
        "compile_seconds": compile_seconds,
        "milliseconds_per_sample": 1000 * statistics.median(samples["loss"]) / batch_size,
        "parts_seconds": {part: statistics.median(samples[part]) for part in needed},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--repeats", type=int, default=7, help="rounds of samples")
    parser.add_argument("--seconds", type=float, default=1.0, help="least duration of a sample")
    parser.add_argument("--output", type=pathlib.Path, default=harness.RESULTS)
    args = parser.parse_args()
    results = harness.Results("losses", args.output)
    print(f"{results.machine}, {keras.backend.backend()}: {harness.run_description()['versions']}")
    print(f"{'':30}{'ms a step':>11}{'/ step':>8}{'/ floor':>9}  floor")
    for name in args.losses:
        found = measure(name, args.repeats, args.seconds)
        results.add(name, found)
        floor = " + ".join(f"{count} {part}" for part, count in found["floor"].items())
        print(
            f"{name:30}{1000 * found['median_seconds']:11.2f}{found['ratio_to_step']:8.2f}"
            f"{found['ratio_to_floor']:9.3f}  {floor}",
            flush=True,
        )
    print(f"\nFigures are in {results.path}")


if __name__ == "__main__":
    main()
