"""With equal settings, our attacks find at most the robust accuracy of Foolbox and ART.

With equal queries, HopSkipJump finds images that are as near.
"""

import keras
import numpy as np
import pytest

import keras_robust as kr
from keras_robust.attacks.result import perturbation_norms
from keras_robust.model.classifier import Classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="the peers attack TensorFlow models"
    ),
    # The peers and their dependencies cause deprecation warnings.
    pytest.mark.filterwarnings("ignore"),
]

NUM_EXAMPLES = 1000
TOLERANCE = 0.01
# Radii at which about half of the examples are robust, so that a weaker attack is noticed.
ATTACKS = {
    "fgsm": kr.attacks.FGSM(epsilon=0.05),
    "pgd_linf": kr.attacks.PGD(epsilon=0.04, step_size=0.004, num_steps=40),
    "pgd_l2": kr.attacks.PGD(epsilon=0.8, step_size=0.08, num_steps=40, norm="l2"),
}


@pytest.fixture(scope="module")
def data(embedded_data):
    _, (x, y) = embedded_data
    return x[:NUM_EXAMPLES], y[:NUM_EXAMPLES]


def foolbox_images(model, attack, x, y):
    foolbox = pytest.importorskip("foolbox", reason="Foolbox is in the extra `peers`")
    import tensorflow as tf

    if isinstance(attack, kr.attacks.FGSM):
        peer = foolbox.attacks.LinfFastGradientAttack()
    else:
        norms = {
            "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
            "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
        }
        peer = norms[attack.norm](abs_stepsize=attack.step_size, steps=attack.num_steps)
    _, x_adv, _ = peer(
        foolbox.TensorFlowModel(model, bounds=attack.bounds),
        tf.constant(x),
        tf.constant(y),
        epsilons=attack.epsilon,
    )
    return x_adv.numpy()


def art_images(model, attack, x, y):
    pytest.importorskip("art", reason="ART is in the extra `peers`")
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=x.shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=attack.bounds,
    )
    if isinstance(attack, kr.attacks.FGSM):
        peer = FastGradientMethod(classifier, eps=attack.epsilon, batch_size=len(x))
    else:
        peer = ProjectedGradientDescentTensorFlowV2(
            classifier,
            norm={"linf": np.inf, "l2": 2}[attack.norm],
            eps=attack.epsilon,
            eps_step=attack.step_size,
            max_iter=attack.num_steps,
            num_random_init=1,
            batch_size=len(x),
            verbose=False,
        )
    return peer.generate(x, y)


@pytest.mark.parametrize("peer_images", [foolbox_images, art_images])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_robust_accuracy_is_at_most_that_of_the_peer(trained_model, data, attack, peer_images):
    x, y = data

    def accuracy(x_adv):
        delta = (np.asarray(x_adv) - x).reshape(len(x), -1)
        order = {"linf": np.inf, "l2": 2}[attack.norm]
        assert np.linalg.norm(delta, order, axis=1).max() <= attack.epsilon + 1e-5
        return (Classifier(trained_model).classes(np.asarray(x_adv), len(x)) == y).mean()

    ours = accuracy(attack(trained_model, x, y, seed=0))
    theirs = accuracy(peer_images(trained_model, attack, x, y))
    assert 0.2 < theirs < 0.8
    assert ours <= theirs + TOLERANCE


class Counted(keras.Model):
    """Counts the images that a model has classified."""

    def __init__(self, model):
        super().__init__()
        self.model, self.num_queries = model, 0

    def call(self, x, training=None):
        self.num_queries += len(x)
        return self.model(x, training=False)


def hop_skip_jump_of_foolbox(model, norm, steps, x, y):
    foolbox = pytest.importorskip("foolbox", reason="Foolbox is in the extra `peers`")
    import tensorflow as tf

    peer = foolbox.attacks.HopSkipJumpAttack(steps=steps, constraint=norm)
    _, x_adv, _ = peer(
        foolbox.TensorFlowModel(model, bounds=(0, 1)), tf.constant(x), tf.constant(y), epsilons=None
    )
    return x_adv.numpy()


def hop_skip_jump_of_art(model, norm, steps, x, y):
    pytest.importorskip("art", reason="ART is in the extra `peers`")
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import BlackBoxClassifier

    def predict(x):
        return model(x.astype("float32")).numpy()

    classifier = BlackBoxClassifier(predict, x.shape[1:], nb_classes=10, clip_values=(0, 1))
    order = {"l2": 2, "linf": np.inf}[norm]
    np.random.seed(0)
    peer = HopSkipJump(classifier, norm=order, max_iter=steps, batch_size=512, verbose=False)
    return peer.generate(x, np.eye(10, dtype="float32")[y])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "peer_images", [hop_skip_jump_of_foolbox, hop_skip_jump_of_art], ids=["foolbox", "art"]
)
def test_hop_skip_jump_finds_images_that_are_as_near(trained_model, data, norm, peer_images):
    x, y = data
    # Without class 8: noise is classified as a bag, and the peers start from noise.
    correct = (Classifier(trained_model).classes(x, len(x)) == y) & (y != 8)
    x, y = x[correct][:20], y[correct][:20]
    counted = Counted(trained_model)
    x_adv = peer_images(counted, norm, 5, x, y)
    num_queries = counted.num_queries // len(x)
    assert 700 < num_queries < 1500
    theirs = perturbation_norms(x, x_adv)[norm]
    fooled = Classifier(trained_model).classes(x_adv, len(x)) != y
    assert fooled.mean() > 0.9
    attack = kr.attacks.HopSkipJump(norm=norm, num_queries=num_queries)
    result = attack.run(trained_model, x, y, seed=0)
    assert result.success.all()
    assert result.num_evaluations.max() <= num_queries
    assert np.median(result.norms[norm]) <= 1.05 * np.median(theirs[fooled])
