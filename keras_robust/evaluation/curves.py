"""Accuracy against the radius of the ball."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.evaluation.accuracy import attack_standing, check_attack
from keras_robust.evaluation.arrays import as_arrays, predicted_classes, sparse


def robustness_curve(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    attack: Attack,
    epsilons: Sequence[float],
    batch_size: int = 128,
    seed: int = 0,
    verbose: int = 1,
) -> dict[float, float]:
    """Accuracy under one attack at several radii.

    An image that the attack fools at one radius is fooled at every larger one too, because the
    same perturbed image lies in the larger ball: it is not attacked again, and the curve never
    rises. A step size that is given with the attack is scaled with the radius.

    Args:
        model: Keras model, or a callable `x -> logits`.
        x: images, shape `(num_examples, ...)`, or a `tf.data.Dataset` of pairs of images and
            labels.
        y: integer or one-hot labels. Defaults to `None`, for a data set.
        attack: `kr.attacks.Attack` that has an `epsilon`, untargeted.
        epsilons: the radii, in units of `x`.
        batch_size: int. Defaults to `128`.
        seed: int. Seed of the attack's random numbers. Defaults to `0`.
        verbose: int. 1 shows a progress bar, 0 nothing. Defaults to `1`.

    Returns:
        Mapping of radii, ascending, to accuracies from 0 to 1.

    Raises:
        ValueError: as the attack, and if it is targeted or has no `epsilon`, or if `epsilons` is
            empty or holds a negative number.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 10, 32)
    >>> attack = kr.attacks.PGD(epsilon=0.1)
    >>> curve = kr.evaluation.robustness_curve(model, x, y, attack=attack,
    ...                                        epsilons=[0.0, 0.1, 0.2], verbose=0)
    >>> list(curve)
    [0.0, 0.1, 0.2]
    """
    config = check_attack(attack).get_config()
    if "epsilon" not in config:
        raise ValueError(f"Argument `attack` must have an `epsilon`. Received: attack={attack!r}")
    radii = sorted(validation.check_number("epsilons", epsilon) for epsilon in epsilons)
    if not radii:
        raise ValueError("Argument `epsilons` must not be empty. Received: epsilons=[]")
    x, y = as_arrays(x, y)
    attack.check(model, x, y)
    batch_size = min(validation.check_count("batch_size", batch_size), len(x))

    labels = sparse(y)
    classes = predicted_classes(model, x, batch_size)
    bar = keras.utils.Progbar(len(radii), verbose=verbose)
    curve = {}
    for epsilon in radii:
        if epsilon > 0:
            scaled = _with_epsilon(attack, config, epsilon)
            standing = classes == labels
            _, classes = attack_standing(
                model, x, labels, classes, scaled, standing, batch_size, seed
            )
        curve[epsilon] = float((classes == labels).mean())
        bar.add(1)
    return curve


def _with_epsilon(attack: Attack, config: dict[str, Any], epsilon: float) -> Attack:
    changed = {**config, "epsilon": epsilon}
    if config.get("step_size") is not None and config["epsilon"] > 0:
        changed["step_size"] = config["step_size"] * epsilon / config["epsilon"]
    return type(attack).from_config(changed)
