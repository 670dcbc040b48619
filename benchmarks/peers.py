"""Runs the attacks of other libraries with the settings of ours.

Each peer is a function `(model, attack, x, y) -> x_adv` of NumPy arrays, where `attack` is our
attack. The attacks of torchattacks run one after the other in a separate process.
"""

import argparse
import functools
import json
import math
import pathlib
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

import keras_robust as kr
from keras_robust.model.classifier import Classifier

Peer = Callable[[Any, Any, np.ndarray, np.ndarray], np.ndarray]
_ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def _foolbox(make: Callable[[Any], tuple[Any, float | None]]) -> Peer:
    def run(model: Any, attack: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        import foolbox
        import tensorflow as tf

        peer, epsilon = make(attack)
        fmodel = foolbox.TensorFlowModel(model, bounds=attack.bounds)
        _, x_adv, is_adv = peer(fmodel, tf.constant(x), tf.constant(y), epsilons=epsilon)
        # Foolbox returns zero images where C&W has failed. The original counts as failed, too.
        return np.where(np.reshape(is_adv, (-1,) + (1,) * (x.ndim - 1)), x_adv, x)

    return run


def _foolbox_fgsm(attack: kr.attacks.FGSM) -> tuple[Any, float]:
    import foolbox

    return foolbox.attacks.LinfFastGradientAttack(), attack.epsilon


def _foolbox_pgd(attack: kr.attacks.PGD) -> tuple[Any, float]:
    import foolbox

    peer = foolbox.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=attack.step_size, steps=attack.num_steps
    )
    return peer, attack.epsilon


def _foolbox_sparse_pgd(attack: kr.attacks.PGD) -> tuple[Any, float]:
    import foolbox

    peer = foolbox.attacks.SparseL1DescentAttack(
        abs_stepsize=attack.step_size, steps=attack.num_steps, random_start=True
    )
    return peer, attack.epsilon


def _foolbox_deepfool(attack: kr.attacks.DeepFool) -> tuple[Any, None]:
    import foolbox

    peer = foolbox.attacks.L2DeepFoolAttack(
        steps=attack.num_steps, candidates=attack.num_candidates, overshoot=attack.overshoot
    )
    return peer, None


def _foolbox_cw(attack: kr.attacks.CarliniWagnerL2) -> tuple[Any, None]:
    import foolbox

    peer = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=attack.binary_search_steps,
        steps=attack.num_steps,
        stepsize=attack.learning_rate,
        confidence=attack.confidence,
        initial_const=attack.initial_const,
    )
    return peer, None


def _num_rounds(attack: kr.attacks.HopSkipJump) -> int:
    """Returns how many rounds of the peers take about `attack.num_queries` queries.

    Round t takes `100 sqrt(t)` queries, and about 25 to search for the boundary.
    """
    num_rounds, left = 0, attack.num_queries
    while left > 0:
        num_rounds += 1
        left -= int(100 * math.sqrt(num_rounds)) + 25
    return max(num_rounds - 1, 1)


def _foolbox_hop_skip_jump(attack: kr.attacks.HopSkipJump) -> tuple[Any, None]:
    import eagerpy as ep
    import foolbox
    import tensorflow as tf

    class NoiseOrOther(foolbox.attacks.LinearSearchBlendedUniformNoiseAttack):
        """Starts like Foolbox, or from another image of the batch if no noise fools the model."""

        def run(self, model: Any, inputs: Any, criterion: Any, **kwargs: Any) -> Any:
            found = np.array(super().run(model, inputs, criterion, **kwargs).numpy())
            y = criterion.labels.raw.numpy()

            def predicted(images: np.ndarray) -> np.ndarray:
                return np.argmax(model(ep.astensor(tf.constant(images))).numpy(), axis=1)

            classes = predicted(inputs.numpy())
            for example in np.flatnonzero(predicted(found) == y):
                found[example] = inputs.numpy()[np.argmax(classes != y[example])]
            return ep.astensor(tf.constant(found))

    peer = foolbox.attacks.HopSkipJumpAttack(
        init_attack=NoiseOrOther(steps=50), steps=_num_rounds(attack), constraint=attack.norm
    )
    return peer, None


def _art(make: Callable[[Any, Any, int], Any]) -> Peer:
    def run(model: Any, attack: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        from art.estimators.classification import TensorFlowV2Classifier

        classifier = TensorFlowV2Classifier(
            model,
            nb_classes=10,
            input_shape=x.shape[1:],
            loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            clip_values=attack.bounds,
        )
        peer = make(classifier, attack, len(x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer.generate(x, np.eye(10, dtype="float32")[y])

    return run


def _art_fgsm(classifier: Any, attack: kr.attacks.FGSM, batch_size: int) -> Any:
    from art.attacks.evasion import FastGradientMethod

    return FastGradientMethod(classifier, eps=attack.epsilon, batch_size=batch_size)


def _art_pgd(classifier: Any, attack: kr.attacks.PGD, batch_size: int) -> Any:
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2

    return ProjectedGradientDescentTensorFlowV2(
        classifier,
        norm=_ORDERS[attack.norm],
        eps=attack.epsilon,
        eps_step=attack.step_size,
        max_iter=attack.num_steps,
        num_random_init=1,
        batch_size=batch_size,
        verbose=False,
    )


def _art_deepfool(classifier: Any, attack: kr.attacks.DeepFool, batch_size: int) -> Any:
    from art.attacks.evasion import DeepFool

    return DeepFool(
        classifier,
        max_iter=attack.num_steps,
        epsilon=attack.overshoot,
        nb_grads=attack.num_candidates,
        batch_size=batch_size,
        verbose=False,
    )


def _art_cw(classifier: Any, attack: kr.attacks.CarliniWagnerL2, batch_size: int) -> Any:
    from art.attacks.evasion import CarliniL2Method

    return CarliniL2Method(
        classifier,
        confidence=attack.confidence,
        learning_rate=attack.learning_rate,
        binary_search_steps=attack.binary_search_steps,
        max_iter=attack.num_steps,
        initial_const=attack.initial_const,
        batch_size=batch_size,
        verbose=False,
    )


def _art_apgd(classifier: Any, attack: kr.attacks.APGD, batch_size: int) -> Any:
    from art.attacks.evasion import AutoProjectedGradientDescent

    return AutoProjectedGradientDescent(
        classifier,
        norm=_ORDERS[attack.norm],
        eps=attack.epsilon,
        eps_step=2 * attack.epsilon,
        max_iter=attack.num_steps,
        nb_random_init=attack.num_restarts,
        batch_size=batch_size,
        loss_type={"ce": "cross_entropy", "dlr": "difference_logits_ratio"}[attack.loss],
        verbose=False,
    )


def _art_square(classifier: Any, attack: kr.attacks.Square, batch_size: int) -> Any:
    from art.attacks.evasion import SquareAttack

    return SquareAttack(
        classifier,
        norm=_ORDERS[attack.norm],
        max_iter=attack.num_queries,
        eps=attack.epsilon,
        batch_size=batch_size,
        verbose=False,
    )


def _art_hop_skip_jump(classifier: Any, attack: kr.attacks.HopSkipJump, batch_size: int) -> Any:
    from art.attacks.evasion import HopSkipJump

    return HopSkipJump(
        classifier,
        norm=_ORDERS[attack.norm],
        max_iter=_num_rounds(attack),
        batch_size=batch_size,
        verbose=False,
    )


def _art_auto_attack(classifier: Any, attack: kr.attacks.AutoAttack, batch_size: int) -> Any:
    from art.attacks.evasion import AutoAttack

    return AutoAttack(
        classifier,
        norm=_ORDERS[attack.norm],
        eps=attack.epsilon,
        eps_step=2 * attack.epsilon,
        batch_size=batch_size,
    )


@functools.cache
def _logits_of(model: Any) -> Callable[[Any], Any]:
    """Returns the same function for each model, as CleverHans recompiles for a new one."""
    return lambda x: model(x, training=False)


def _cleverhans_fgsm(
    model: Any, attack: kr.attacks.FGSM, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    import tensorflow as tf
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method

    return fast_gradient_method(
        _logits_of(model),
        tf.constant(x),
        attack.epsilon,
        np.inf,
        clip_min=attack.bounds[0],
        clip_max=attack.bounds[1],
        y=tf.constant(y),
    ).numpy()


def _cleverhans_pgd(model: Any, attack: kr.attacks.PGD, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    import tensorflow as tf
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    return projected_gradient_descent(
        _logits_of(model),
        tf.constant(x),
        attack.epsilon,
        attack.step_size,
        attack.num_steps,
        np.inf,
        clip_min=attack.bounds[0],
        clip_max=attack.bounds[1],
        y=tf.constant(y),
        rand_init=1.0,
        sanity_checks=False,
    ).numpy()


# CleverHans's C&W raises an error on Keras 3, and its other attacks are missing. Foolbox has no
# APGD, Square or AutoAttack. ART has no Square in L1.
PEERS: dict[str, dict[str, Peer]] = {
    "fgsm": {
        "foolbox": _foolbox(_foolbox_fgsm),
        "art": _art(_art_fgsm),
        "cleverhans": _cleverhans_fgsm,
    },
    "pgd-40": {
        "foolbox": _foolbox(_foolbox_pgd),
        "art": _art(_art_pgd),
        "cleverhans": _cleverhans_pgd,
    },
    "deepfool": {"foolbox": _foolbox(_foolbox_deepfool), "art": _art(_art_deepfool)},
    "carlini-wagner": {"foolbox": _foolbox(_foolbox_cw), "art": _art(_art_cw)},
    "apgd-ce": {"art": _art(_art_apgd)},
    "apgd-dlr": {"art": _art(_art_apgd)},
    "square": {"art": _art(_art_square)},
    "hop-skip-jump": {
        "foolbox": _foolbox(_foolbox_hop_skip_jump),
        "art": _art(_art_hop_skip_jump),
    },
    "autoattack": {"art": _art(_art_auto_attack)},
    "autoattack-fast": {},
    "pgd-l1": {"foolbox": _foolbox(_foolbox_sparse_pgd), "art": _art(_art_pgd)},
    "apgd-ce-l1": {"art": _art(_art_apgd)},
    "apgd-dlr-l1": {"art": _art(_art_apgd)},
    "square-l1": {},
}


# Left out: its AutoAttack has other settings, its DeepFool attacks images one by one, and its
# Carlini-Wagner attack does not search for the constant.
TORCHATTACKS = ("fgsm", "pgd-40", "apgd-ce", "apgd-dlr", "square")


def why_no_torchattacks(python: str, network: str) -> str | None:
    """Returns the reason why torchattacks cannot be measured, or `None` if it can."""
    if network != "resnet20":
        return f"it is measured on the ResNet-20 (--network resnet20), not on the {network}."
    command = [python, "-c", "import torch, torchattacks"]
    try:
        found = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        return str(error)
    return f"{python}: {found.stderr.splitlines()[-1]}" if found.returncode else None


def resnet20_weights(model: keras.Model) -> list[np.ndarray]:
    """Returns the weights in the order of creation, each convolution before its batch norm."""

    def in_order(kind: type) -> list[keras.layers.Layer]:
        def number(layer: keras.layers.Layer) -> int:
            found = re.search(r"_(\d+)$", layer.name)
            return int(found.group(1)) if found else 0

        return sorted((layer for layer in model.layers if isinstance(layer, kind)), key=number)

    norms = in_order(keras.layers.BatchNormalization)
    pairs = zip(in_order(keras.layers.Conv2D), norms, strict=True)
    layers = [*(layer for pair in pairs for layer in pair), model.layers[-1]]
    return [array for layer in layers for array in layer.get_weights()]


def torchattacks(
    model: keras.Model,
    attacks: dict[str, kr.attacks.Attack],
    x: np.ndarray,
    y: np.ndarray,
    args: argparse.Namespace,
) -> Iterator[tuple[str, np.ndarray, list[float]]]:
    """Yields the name, images and durations of each attack that torchattacks has."""
    settings = {
        "repeats": args.repeats,
        "slow_seconds": args.slow_seconds,
        "attacks": {
            name: {k: v for k, v in attack.get_config().items() if isinstance(v, int | float | str)}
            for name, attack in attacks.items()
            if name in TORCHATTACKS
        },
    }
    arrays = {f"w{i}": array for i, array in enumerate(resnet20_weights(model))}
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        (folder / "attacks.json").write_text(json.dumps(settings))
        logits = Classifier(model).predict(x)
        np.savez(folder / "input.npz", x=x, y=y, logits=logits, **arrays)
        script = pathlib.Path(__file__).with_name("torch_attacks.py")
        command = [args.torch_python, str(script), directory]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                with np.load(folder / f"{line.strip()}.npz") as found:
                    yield line.strip(), found["x_adv"], found["seconds"].tolist()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed, see above.")
