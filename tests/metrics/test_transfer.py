"""Transfer of adversarial examples between models agrees with known accuracies."""

import json

import numpy as np
import pytest
from keras import ops

import keras_robust as kr
from keras_robust.evaluation import transfer_matrix

pytestmark = pytest.mark.slow_on_jax

FGSM = kr.attacks.FGSM(0.1)


def expected(x, y, source, target):
    """Computes the accuracy of a threshold on images that were moved by 0.1 against the label."""
    x = x.reshape(-1)
    moved = np.clip(np.where(y == 1, x - np.float32(0.1), x + np.float32(0.1)), 0, 1)
    return ((moved > target) == (y == 1)).mean()


@pytest.mark.parametrize("batch_size", [7, 128])
def test_accuracies_agree_with_known_thresholds(threshold, pixels, batch_size):
    # All images are attacked and counted, including those that remain correct and those that were
    # misclassified before.
    x, y = pixels
    values = {"half": 0.5, "low": 0.3, "high": 0.62}
    models = {name: threshold(value) for name, value in values.items()}
    matrix = transfer_matrix(models, x, y, attack=FGSM, batch_size=batch_size, verbose=0)
    correct = {n: ((x.reshape(-1) > v) == (y == 1)).mean() for n, v in values.items()}
    assert matrix.clean == correct
    assert correct["low"] < 1
    for source in values:
        for target in values:
            assert matrix.accuracy[source][target] == expected(x, y, values[source], values[target])


def test_each_model_may_have_its_own_attack(threshold, pixels):
    x, y = pixels

    def probabilities(x):
        return ops.softmax(threshold(0.5)(x))

    models = {"logits": threshold(0.5), "probabilities": probabilities}
    with pytest.raises(ValueError, match="ends in a softmax"):
        transfer_matrix(models, x, y, attack=FGSM)
    attacks = {"probabilities": kr.attacks.FGSM(0.1, from_logits=False), "logits": FGSM}
    matrix = transfer_matrix(models, x, y, attack=attacks, verbose=0)
    assert matrix.accuracy["logits"] == matrix.accuracy["probabilities"]
    assert matrix.accuracy["logits"]["logits"] == expected(x, y, 0.5, 0.5)


def test_table_and_json(threshold, pixels):
    models = {"half": threshold(0.5), "a longer name": threshold(0.3)}
    matrix = transfer_matrix(models, *pixels, attack=FGSM, verbose=0)
    lines = str(matrix).splitlines()
    assert lines[0].split() == ["half", "a", "longer", "name"]
    assert lines[1].split()[-2:] == ["100.0%", f"{matrix.clean['a longer name']:.1%}"]
    accuracy = matrix.accuracy["a longer name"]["half"]
    assert lines[3].startswith("made on a longer name")
    assert lines[3].split()[-2] == f"{accuracy:.1%}"
    assert len({len(line) for line in lines}) == 1
    assert json.loads(json.dumps(matrix.to_dict())) == {
        "clean": matrix.clean,
        "accuracy": matrix.accuracy,
        "num_examples": 40,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "`models` must be a mapping"),
        ({"models": []}, "`models` must be a mapping"),
        ({"attack": {"b": FGSM}}, r"the same names as `models`. Received: \['b'\] for \['a'\]"),
        ({"attack": "FGSM"}, "untargeted"),
        ({"attack": kr.attacks.FGSM(0.1, targeted=True)}, "untargeted"),
        ({"y": None}, "`y` must be given"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
    ids=str,
)
def test_bad_input(threshold, pixels, arguments, message):
    arguments = {"models": {"a": threshold(0.5)}, "y": pixels[1], "attack": FGSM, **arguments}
    with pytest.raises(ValueError, match=message):
        transfer_matrix(x=pixels[0], verbose=0, **arguments)
