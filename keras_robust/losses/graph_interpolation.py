"""End-to-end training through a graph-interpolating head."""

import keras
import numpy as np
from keras import ops

from keras_robust import validation
from keras_robust.attacks import Attack
from keras_robust.layers.in_batch import InBatchTemplate, template_scope
from keras_robust.layers.wnll_head import wnll_head
from keras_robust.losses import weight
from keras_robust.losses.model_loss import ModelLoss
from keras_robust.losses.step import Step
from keras_robust.ops.balls import per_example_where
from keras_robust.ops.labels import is_one_hot, sparse_labels
from keras_robust.types import Config, Images, Labels, Model, Scheduled, Scores, Seed, Tensor


@keras.saving.register_keras_serializable(package="keras_robust")
class GraphInterpolation(ModelLoss):
    """Trains a network with a `kr.layers.WNLLHead` end to end, through the WNLL output u.

        L = CE(u(x), y) + linear_weight * CE(softmax(z(x)), y)

    The batch is split into `num_folds` folds, each with its share of every class. The labels of
    one fold at a time are hidden and interpolated from the labels of the other folds, on the graph
    of the whole batch. Every example is thus a query once and part of the template otherwise. u is
    differentiated exactly with respect to all features, whatever the head's own `gradient` is.
    During `fit`, `accuracy` is that of u.

    Label -1 marks an unlabeled example (semi-supervised learning, approach II). It is a point of
    the graph, but its loss is 0 and it is not attacked. With such examples, labels must be
    integers.

    After `fit`, the head predicts with the graph, from a template of the training data. See below
    for data sets and generators.

    Args:
        num_folds: int, at least 2. The template is `1 - 1 / num_folds` of the batch. Defaults to
            `3`.
        linear_weight: non-negative number, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. Weight of the linear branch's loss.
            Use a small one, such as 0.01: with a large weight, the graph learns more slowly.
            Defaults to `0.0`.
        attack: untargeted `kr.attacks.Attack` for adversarial training: the loss is computed on its
            adversarial images. The attack runs in inference mode and maximizes the loss of u,
            which is interpolated between the folds as in the training step, so it needs no filled
            template. If the head's `gradient` or the attack's `objective` selects a surrogate, the
            attack uses that surrogate. Defaults to `None`: clean images.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: derived from the class name.
        mask: array of 0s and 1s that broadcasts to one image. The attack may change only the
            entries where the mask is 1. Defaults to `None`: all entries.

    Raises:
        ValueError: if an argument is out of its range; when called by a model that is not a
            `kr.RobustModel`, or does not end with a `kr.layers.WNLLHead`; by `fit`, before
            training, if a batch has fewer examples than there are folds, or the data have too few
            examples for the head's template.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x, y = np.random.rand(200, 8, 8, 1).astype("float32"), np.arange(200) % 10
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)), keras.layers.Flatten(), kr.layers.WNLLHead(
    ...         10, units=16, template_size=100)])
    >>> robust = kr.RobustModel(model)
    >>> robust.compile(optimizer="adam", loss=kr.losses.GraphInterpolation(linear_weight=0.01))
    >>> history = robust.fit(x, y, batch_size=100, verbose=0)
    >>> model.layers[-1].phase
    'wnll'

    **Batch size.** Use large batches: with m neighbours, at least about `4 m` examples. If no
    labeled example can be reached on the graph, as may happen in a tiny last batch of an epoch, u
    is uniform and nothing is learned from the example.

    **Template.** `fit` fills the head's template from its training data, as
    `kr.training.adapt_template` does, without the `validation_split` part. With validation data or
    callbacks, the template is also filled at the end of each epoch, so that `val_accuracy` is the
    accuracy of the graph.

    - A data set is read once for this before training. Reading stops after 100,000 examples, or
      later if the template still lacks examples or a class.
    - A generator cannot be read again. `fit` then warns, and the head predicts with its linear
      branch, which `linear_weight=0` does not train, until `kr.training.adapt_template` is called.
    - With a `kr.callbacks.TemplateUpdate(x, y)` among the callbacks, only that callback fills the
      template.
    - `train_on_batch` fills no template.

    **Label leaking.** An attack through the linear branch
    (`objective=kr.attacks.WNLLSurrogate("linear")`, Algorithm 3 of the paper) can leak labels. Its
    perturbations reveal the label they were computed for, and the network may learn to read that
    instead of the image. The training `accuracy` is then far above clean test accuracy, and robust
    accuracy is low.

    Departure from the paper: the gradient of u is exact. The paper has no such gradient and trains
    in alternation, as `kr.training.fit_wnll` does.

    Reference:

    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies
      in Data-Efficient Deep Learning, sections 3.1 and 3.3
    """

    needs_attack = False

    def __init__(
        self,
        num_folds: int = 3,
        linear_weight: Scheduled = 0.0,
        attack: Attack | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Tensor = None,
    ) -> None:
        super().__init__(attack, None, reduction, name, mask=mask)
        self.num_folds = validation.check_count("num_folds", num_folds)
        if self.num_folds < 2:
            raise ValueError(
                "Argument `num_folds` must be at least 2, because each fold is interpolated from "
                f"the others. Received: num_folds={num_folds}"
            )
        self.linear_weight = weight.check_weight("linear_weight", linear_weight)
        if not self.from_logits:
            raise ValueError(
                "Argument `attack` must have `from_logits=True`: a WNLL head returns logits. "
                f"Received: attack={attack!r}"
            )

    def prepare(self, model: Model, x: Images, y: Labels, seed: Seed) -> tuple[Tensor, Tensor]:
        wnll_head(model)
        labels = sparse_labels(y)
        if self.attack is None:
            return x, labels
        with template_scope(InBatchTemplate(labels, self.num_folds, in_inference=True)):
            x_adv = self.perturbed(model, x, ops.maximum(labels, 0), seed)
        return per_example_where(labels >= 0, x_adv, x), labels

    def check(self, model: Model, x: Images, y: Labels) -> None:
        self.check_batch_size(len(y))
        super().check(model, x, y if is_one_hot(y) else np.maximum(y, 0))

    def check_batch_size(self, size: int) -> None:
        """Raises a `ValueError` if a batch of this size cannot be split into the folds."""
        if size < self.num_folds:
            raise ValueError(
                f"Batches must hold at least `num_folds`, {self.num_folds}, examples, because each "
                "fold is interpolated from the others. Use batches of at least about four times "
                f"the head's `num_neighbors`. Received: a batch of {size}"
            )

    def forward(self, step: Step) -> Tensor:
        step.kept = InBatchTemplate(step.prepared, self.num_folds)
        with template_scope(step.kept):
            return super().forward(step)

    def training_loss(self, step: Step, y_true: Labels, y_pred: Scores) -> Tensor:
        # Also with a weight of 0, because Keras warns about variables without a gradient.
        linear = ops.cast(step.kept.linear_logits, y_pred.dtype)
        values = self.classification_loss(y_true, y_pred)
        factor = weight.current(self.linear_weight)
        return values + factor * self.classification_loss(y_true, linear)

    def classification_loss(self, y_true: Labels, y_pred: Scores) -> Tensor:
        """Returns the cross-entropy of each example, 0 for unlabeled examples."""
        if is_one_hot(y_true):
            return super().classification_loss(y_true, y_pred)
        labels = ops.reshape(y_true, (-1,))
        values = super().classification_loss(ops.maximum(labels, 0), y_pred)
        return ops.where(labels >= 0, values, ops.zeros_like(values))

    def get_config(self) -> Config:
        config = super().get_config()
        del config["loss"]
        linear_weight = weight.saved(self.linear_weight)
        own = {"num_folds": self.num_folds, "linear_weight": linear_weight, "mask": self.saved_mask}
        return {**own, **config}
