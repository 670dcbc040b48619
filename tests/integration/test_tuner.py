"""A KerasTuner search for the most robust model."""

import keras
import numpy as np
import pytest

import keras_robust as kr

pytestmark = pytest.mark.slow_on_jax

keras_tuner = pytest.importorskip("keras_tuner")

ATTACK = kr.attacks.PGD(epsilon=0.05, num_steps=2)


@pytest.mark.slow
def test_search_finds_the_most_robust_beta(make_robust, easy_data, tmp_path):
    betas = []

    def build(hp):
        betas.append(hp.Choice("beta", [0.5, 1e4]))
        # With the large beta, the classifier does not learn.
        loss = kr.losses.TRADES(ATTACK, beta=betas[-1])
        robust = make_robust(loss, optimizer=keras.optimizers.Adam(0.01))
        # Otherwise Keras would warn when the best weights are loaded without Adam's moments.
        robust.optimizer.build(robust.trainable_variables)
        return robust

    tuner = keras_tuner.GridSearch(
        build,
        objective=keras_tuner.Objective("val_robust_accuracy", "max"),
        max_trials=2,
        directory=tmp_path,
        project_name="beta",
    )
    callback = kr.callbacks.RobustAccuracy(ATTACK, *easy_data)
    tuner.search(
        *easy_data,
        validation_data=easy_data,
        epochs=5,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )

    assert set(betas) == {0.5, 1e4}
    assert tuner.get_best_hyperparameters()[0].get("beta") == 0.5
    trials = tuner.oracle.get_best_trials(2)
    assert trials[0].score > trials[1].score
    # The score is the robust accuracy of the best model.
    best = tuner.get_best_models()[0]
    score = kr.evaluation.robust_accuracy(best, *easy_data, attack=ATTACK)
    np.testing.assert_allclose(trials[0].score, score, rtol=1e-6)
