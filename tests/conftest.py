"""What the tests share. They run on the backend that KERAS_BACKEND names."""

import contextlib
import gc
import os
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from keras import ops

import keras_robust as kr

# A program that a test runs in an environment with PyTorch.
collect_ignore = ["attacks/authors_auto_attack.py"]

# XLA compiles each attack for each shape, which takes minutes here. What these test does not
# depend on the backend beyond what the other tests show: on JAX `make test-slow` runs them. Names
# of files, or of tests in them.
SLOW_ON_JAX = (
    "attacks/test_apgd.py",
    "attacks/test_auto_attack.py",
    "attacks/test_carlini_wagner.py",
    "attacks/test_deepfool.py",
    "attacks/test_ensemble.py",
    "attacks/test_fab.py",
    "attacks/test_fuzz.py",
    "attacks/test_objective.py",
    "attacks/test_pgd.py::test_raises_the_loss_and_lowers_the_accuracy",
    "attacks/test_pgd.py::test_stays_in_the_ball_and_the_bounds",
    "attacks/test_run.py::test_the_result_is_what_it_says",
    "attacks/test_saturation.py",
    "attacks/test_silent_failures.py",
    "attacks/test_square.py",
    "attacks/test_wnll_attacks.py",
    "callbacks/test_template_update.py",
    "datasets/test_load.py",
    "metrics/test_activations.py",
    "evaluation/test_check.py",
    "metrics/test_curves.py",
    "metrics/test_geometry.py",
    "report/test_html.py",
    "metrics/test_k_fold.py",
    "metrics/test_noise.py",
    "metrics/test_perturbation_error.py",
    "evaluation/test_pictures.py",
    "metrics/test_reference.py",
    "evaluation/test_resume.py",
    "evaluation/test_resume_rounds.py",
    "metrics/test_rho.py",
    "metrics/test_transfer.py",
    "integration/test_base_models.py::test_unbuilt_models_are_built_by_whatever_comes_first",
    "integration/test_callbacks.py::test_checkpoint_keeps_the_most_robust_epoch",
    "integration/test_execution.py::test_eager_and_graph_equal_default",
    "integration/test_execution.py::test_train_on_batch",
    "integration/test_heads.py",
    "integration/test_input_kinds.py::test_batches_with_weights_equal_arrays",
    "integration/test_input_kinds.py::test_one_hot_labels_equal_integers",
    "integration/test_interruption.py::test_backup_and_restore_after_a_kill",
    "integration/test_mixed_precision.py::test_trains_to_nearly_the_same_weights_as_float32",
    "integration/test_tuner.py",
    "integration/test_wnll_distribution.py",
    "layers/test_guided_denoiser.py::test_the_papers_size",
    "layers/test_total_variation_layer.py",
    "layers/test_wnll_head.py",
    "losses/test_deep_defense.py::test_a_wrong_name_is_answered_with_those_that_exist",
    "losses/test_deep_defense.py::test_batch_norm_is_frozen",
    "losses/test_deep_defense.py::test_finite_where_the_gradient_vanishes",
    "losses/test_deep_defense.py::test_mixed_precision_and_other_heads",
    "losses/test_deep_defense.py::test_probabilities",
    "losses/test_deep_defense.py::test_reduction_and_sample_weight",
    "losses/test_deep_defense.py::test_the_penalty_of_named_layers_alone",
    "losses/test_deep_defense.py::test_value_on_a_linear_binary_model",
    "losses/test_graph_interpolation.py",
    "losses/test_fisher_information.py::test_training_makes_a_model_less_sure",
    "losses/test_mart.py::test_accuracy_is_adversarial",
    "losses/test_mart.py::test_mixed_precision_with_a_variable",
    "losses/test_mart.py::test_probabilities",
    "losses/test_mart.py::test_reduction_and_sample_weight",
    "losses/test_stability_training.py::test_probabilities",
    "losses/test_stability_training.py::test_reduction_and_sample_weight",
    "losses/test_sum.py::test_graph_interpolation_in_a_sum",
    "losses/test_sum.py::test_nested_sums",
    "losses/test_weight.py::test_graph_interpolation",
    "constraints/test_parseval_tightness.py::test_every_row_is_chosen_as_often_and_in_every_company",
    "constraints/test_parseval_tightness.py::test_in_fit",
    "losses/test_guided_denoising.py::test_example_weights_and_reductions",
    "losses/test_guided_denoising.py::test_layers_of_models_inside_of_the_classifier",
    "losses/test_guided_denoising.py::test_mixed_precision_and_an_ensemble",
    "losses/test_guided_denoising.py::test_the_attack_knows_nothing_of_the_denoiser",
    "losses/test_guided_denoising.py::test_value",
    "losses/test_latent_disparity.py::test_a_data_set_of_pairs",
    "losses/test_latent_disparity.py::test_moving_averages_are_those_of_both_halves",
    "losses/test_latent_disparity.py::test_nothing_moves_and_nothing_answers",
    "losses/test_sum.py::test_adversarial_training_and_fisher_information",
    "losses/test_latent_disparity.py::test_example_weights",
    "losses/test_latent_disparity.py::test_heads_and_attacks",
    "losses/test_latent_disparity.py::test_in_a_sum",
    "losses/test_latent_disparity.py::test_names_of_nested_layers",
    "losses/test_latent_disparity.py::test_pairs_in_a_sum_with_a_loss_that_takes_images",
    "losses/test_latent_disparity.py::test_the_disparity_alone_and_the_cross_entropy_alone",
    "losses/test_latent_disparity.py::test_value_and_slopes",
    "losses/test_radius.py::test_a_schedule_is_followed_step_by_step",
    "losses/test_radius.py::test_in_a_sum_and_an_ensemble",
    "model/test_arrays.py::test_evaluation_and_metrics_take_every_form",
    "model/test_arrays.py::test_training_sees_every_batch_from_the_first_on",
    "model/test_black_box.py::test_a_report_of_it",
    "model/test_black_box.py::test_a_surrogate_is_differentiated_in_its_place",
    "model/test_black_box.py::test_metrics_of_it",
    "model/test_classifier.py::test_a_changed_model_is_attacked_as_it_is",
    "model/test_classifier.py::test_images_and_models_of_other_precision",
    "model/test_classifier.py::test_losses_of_other_precision",
    "model/test_classifier.py::test_several_inputs_or_outputs_are_refused",
    "model/test_classifier.py::test_the_last_activation_decides_what_outputs_are",
    "model/test_keys.py",
    "model/test_layers.py::test_a_joint_head_inside_of_a_layer",
    "model/test_layers.py::test_layers_see_the_same_calls_everywhere",
    "ops/test_total_variation.py",
    "ops/test_wnll.py::test_alone_is_the_limit_of_a_batch_of_one",
    "ops/test_wnll.py::test_conjugate_gradients_agree_with_cholesky",
    "ops/test_wnll.py::test_duplicates",
    "ops/test_wnll.py::test_fewer_points_than_neighbours",
    "ops/test_wnll.py::test_isolated_components_get_the_prior",
    "ops/test_wnll.py::test_maximum_principle",
    "ops/test_wnll.py::test_second_derivative_by_finite_differences",
    "situations/test_augmentation.py",
    "situations/test_command.py",
    "situations/test_export.py",
    "situations/test_hours_lost.py",
    "situations/test_losses_in_structures.py",
    "situations/test_reports.py",
    "test_cli.py",
    "test_examples.py",
    "test_readme.py",
    "training/test_fit_wnll.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    if keras.backend.backend() != "jax":
        return
    for item in items:
        name = item.path.as_posix()
        if f"{name}::{item.originalname}".endswith(SLOW_ON_JAX) or name.endswith(SLOW_ON_JAX):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _reproducible():
    """Each test starts from the same random numbers and the same global policy."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _memory_maps():
    """Frees memory maps, of which Linux allows a process 65,530: JAX keeps eager operations'."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        gc.collect()  # Keras's models are in reference cycles.
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def embedded_data():
    """The embedded data as arrays: (x_train, y_train), (x_test, y_test)."""
    return tuple(
        kr.model.arrays.as_arrays(kr.datasets.load("fashion_mnist_subset", split))
        for split in ("train", "test")
    )


@pytest.fixture
def double_precision():
    """float64 throughout, where rounding would decide what a test looks at."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield
    keras.config.set_floatx("float32")


@pytest.fixture
def small_data():
    """64 random images of 8 x 8 and their labels, for tests that need no accuracy."""
    rng = np.random.default_rng(0)
    return rng.random((64, 8, 8, 1), "float32"), rng.integers(0, 10, 64)


@pytest.fixture
def full_data_dir():
    """Folder with the full data sets of TensorFlow Datasets."""
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not os.path.isdir(os.path.join(data_dir, "mnist")):
        pytest.skip("needs the full MNIST: set TFDS_DATA_DIR to a folder that holds it")
    return data_dir


@pytest.fixture(scope="session")
def trained_model(embedded_data):
    """A small classifier of the embedded data, trained to about 85%; do not change it."""
    keras.utils.set_random_seed(0)
    (x, y), _ = embedded_data
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    model.fit(x, y, batch_size=128, epochs=5, verbose=0)
    return model


class NearestBoundary(kr.attacks.Attack):
    """The smallest perturbation of an affine model `x W + b`, times `1 + overshoot`."""

    def __init__(self, kernel, bias, overshoot=0.0, norm="l2", bounds=(-10.0, 10.0)):
        super().__init__(bounds=bounds)
        self.kernel, self.bias, self.overshoot, self.norm = kernel, bias, overshoot, norm

    def get_config(self):
        return {"overshoot": self.overshoot}

    def generate(self, problem, x, start, index, seed):
        scores = ops.matmul(x, self.kernel) + self.bias
        label = ops.one_hot(problem.y, self.kernel.shape[1])
        normals = self.kernel[None] - ops.expand_dims(ops.matmul(label, self.kernel.T), -1)
        gaps = ops.sum(scores * label, 1, keepdims=True) - scores
        lengths = ops.sqrt(ops.sum(normals**2, 1))
        distances = ops.where(label > 0, 1e9, gaps / ops.maximum(lengths, 1e-9))
        nearest = ops.one_hot(ops.argmin(distances, axis=1), self.kernel.shape[1])
        distance = ops.sum(distances * nearest, axis=1)
        direction = ops.sum(normals * nearest[:, None], axis=2)
        direction = direction / ops.norm(direction, axis=1, keepdims=True)
        return x + ((1 + self.overshoot) * distance)[:, None] * direction


@pytest.fixture
def linear():
    """A linear model of 3 classes, its attack, images, and their distances to the boundary."""
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(5, 3)).astype("float32"), np.array([0.1, 0.0, -0.1], "float32")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.set_weights([kernel, bias])
    x = rng.normal(size=(60, 5)).astype("float32")
    scores = x.astype("float64") @ kernel + bias
    classes = scores.argmax(axis=1)
    distances = np.array(
        [
            min(
                (z[c] - z[j]) / np.linalg.norm(kernel[:, c].astype("float64") - kernel[:, j])
                for j in range(3)
                if j != c
            )
            for z, c in zip(scores, classes, strict=True)
        ]
    )

    def attack(**arguments):
        return NearestBoundary(kernel, bias, **arguments)

    return types.SimpleNamespace(
        model=model, attack=attack, x=x, classes=classes, distances=distances
    )


@pytest.fixture
def threshold():
    """Makes models of one pixel that predict class 1 where it is above a threshold."""

    def make(value):
        def model(x):
            z = 10 * (x[:, 0, 0, 0] - value)
            return ops.stack([-z, z], axis=1)

        return model

    return make


@pytest.fixture
def pixels():
    """40 images of one pixel, evenly spaced and not symmetric around 0.5, and their classes."""
    x = np.linspace(0.003, 0.983, 40, dtype="float32").reshape(40, 1, 1, 1)
    return x, (x[:, 0, 0, 0] > 0.5).astype("int32")
