"""AutoAttack finds at most the robust accuracy that the authors' code finds, on the same weights.

The authors' attacks are from `torchattacks` and, in L1, from `pyautoattack`, the authors' own code.
Both use PyTorch. They run in a separate process, with the Python in `.venv-torch` that
`make test-slow` creates, because `torchattacks` requires old versions of packages that TensorFlow
Datasets also uses.
"""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.model.classifier import Classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="takes long, and compares algorithms, which both backends share",
    ),
]

SCRIPT = pathlib.Path(__file__).with_name("authors_auto_attack.py")
OWN_PYTHON = SCRIPT.parents[2] / ".venv-torch" / "bin" / "python"
NUM_EXAMPLES = 1000
TOLERANCE = 0.005


@pytest.fixture(scope="module")
def torch_python():
    """Returns a Python that can import `torchattacks` and `pyautoattack`."""
    python = str(OWN_PYTHON) if OWN_PYTHON.exists() else sys.executable
    packages = "import torch, torchattacks, pyautoattack"
    if subprocess.run([python, "-c", packages], capture_output=True).returncode:
        pytest.skip("needs torchattacks and pyautoattack: `make .venv-torch/installed`")
    return python


def robust_model(data, epsilon, norm):
    """Trains a small CNN with PGD-7. It has no padding, as PyTorch pads differently."""
    keras.utils.set_random_seed(0)
    base = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 5, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model = kr.RobustModel(base)
    attack = kr.attacks.PGD(epsilon, num_steps=7, norm=norm)
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss=kr.losses.AdversarialTraining(attack))
    model.fit(*data, batch_size=128, epochs=12, verbose=0)
    return base


# Radii at which about half of the examples are robust.
@pytest.mark.parametrize(
    ("norm", "trained_at", "epsilon"), [("linf", 0.1, 0.14), ("l2", 1.5, 1.75), ("l1", 5.0, 10.0)]
)
def test_robust_accuracy_is_at_most_that_of_the_authors(
    norm, trained_at, epsilon, torch_python, embedded_data, tmp_path
):
    model = robust_model(embedded_data[0], trained_at, norm)
    x, y = (values[:NUM_EXAMPLES] for values in embedded_data[1])
    weights = model.get_weights()
    arrays = {f"{'wb'[i % 2]}{i // 2}": value for i, value in enumerate(weights)}
    source, target = str(tmp_path / "network.npz"), str(tmp_path / "attacked.npz")
    np.savez(source, x=x, y=y, norm=norm, epsilon=epsilon, **arrays)
    subprocess.run([torch_python, str(SCRIPT), source, target], check=True)
    theirs = np.load(target)

    def accuracy(x_adv):
        size = abs(x_adv - x).reshape(len(x), -1).astype("float64")
        sizes = np.linalg.norm(size, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
        assert sizes.max() <= epsilon + 1e-5
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        return float((Classifier(model).classes(x_adv, len(x)) == y).mean())

    clean = accuracy(x)
    result = kr.attacks.AutoAttack(epsilon, norm).run(model, x, y, seed=0)
    figures = {"ours": accuracy(result.x_adv), "theirs": accuracy(theirs["x_adv"])}
    print(norm, epsilon, figures, "clean", clean, "theirs", theirs["robust"].mean(axis=1))
    assert figures["ours"] == pytest.approx(1 - result.success_rate)
    assert abs(figures["theirs"] - theirs["robust"][-1].mean()) <= 2 / NUM_EXAMPLES
    assert 0.35 < figures["theirs"] < clean - 0.2
    # `accuracy` checks and evaluates the images of both, so a lower value is a stronger attack.
    assert figures["ours"] <= figures["theirs"] + TOLERANCE
