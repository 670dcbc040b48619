"""End-to-end training through a graph-interpolating head."""

from typing import Any

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
from keras_robust.ops import per_example_where, sparse_labels
from keras_robust.ops.labels import is_one_hot


@keras.saving.register_keras_serializable(package="keras_robust")
class GraphInterpolation(ModelLoss):
    """Trains a network with a `kr.layers.WNLLHead` end to end, through the WNLL output.

        L = CE(u(x), y) + linear_weight * CE(softmax(z(x)), y)

    The batch is cut into `num_folds` parts, each with its share of every class. In turn the
    labels of each are hidden and interpolated from the others', on the graph of the whole batch:
    every example is once a query and otherwise template, and u has the exact gradient in all
    features, whatever the head's own `gradient` is. The papers, which had
    no such gradient, trained in alternation: `kr.training.fit_wnll`.

    Large batches give good graphs: with m neighbours, take at least some `4 m` examples. An
    example that is left without labeled ones to be interpolated from, as in the last batch of an
    epoch if that is tiny, has a uniform u, and nothing is learnt from it. During `fit`, `loss` and
    `accuracy` are those of u.

    **After `fit` the head predicts by its graph**: its template is filled from the training data
    as `kr.training.adapt_template` fills it, without the part that `validation_split` sets apart.
    It is also filled for validation and callbacks at the end of each epoch, so that
    `val_accuracy` is that of the graph. A data set is read once before training for that (of more
    than 100,000 examples so many, or as many as it takes to find each class). A generator can't
    be: `fit` warns of it, and the head answers by its linear branch, which is not trained with
    `linear_weight=0`, until `kr.training.adapt_template` is called, or with
    `kr.callbacks.TemplateUpdate(x, y)` among the callbacks, which takes the place of all that.
    `train_on_batch` fills no template.

    **An attack that climbs the linear branch can leak labels**
    (`objective=kr.attacks.WNLLSurrogate("linear")`, Algorithm 3 of the paper). Its perturbations
    say which label they were made for, and a network may learn to read that instead of the image:
    `accuracy` in training is then far above that on clean test images, and little is left under
    attack.

    Label -1 marks an unlabeled example (semi-supervised learning, approach II): it is a point of
    the graph, its loss is 0, and it is not attacked. Labels are integers, then.

    Args:
        num_folds: int, at least 2. The share of the batch that serves as template is
            `1 - 1 / num_folds`. Defaults to `3`.
        linear_weight: number from 0, `keras.Variable`, or
            `keras.optimizers.schedules.LearningRateSchedule`. Weight of the linear branch's
            loss. Defaults to `0.0`.
        attack: `kr.attacks.Attack`, untargeted: the step is computed on the adversarial images
            of it (adversarial training). It climbs u as the step computes it, each fold
            interpolated from the others, in inference mode; no template is needed. Where the head's
            `gradient`, or the attack's `objective`, is another, it climbs that. Defaults to `None`.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: string. Defaults to `None`: the class's name.
        mask: array of 0 and 1 that broadcasts to one image, 1 where the attack may change it.
            Defaults to `None`: everywhere.

    Raises:
        ValueError: if an argument is out of its range; when called by a model that is not a
            `kr.RobustModel`, or does not end with a `kr.layers.WNLLHead`; by `fit`, before
            training, if batches hold fewer examples than there are folds, or the data too few for
            the head's template.

    Example:

    >>> import keras, numpy as np, keras_robust as kr
    >>> x, y = np.random.rand(200, 8, 8, 1).astype("float32"), np.arange(200) % 10
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)), keras.layers.Flatten(), kr.layers.WNLLHead(
    ...         10, units=16, template_size=100)])
    >>> robust = kr.RobustModel(model)
    >>> robust.compile(optimizer="adam", loss=kr.losses.GraphInterpolation(linear_weight=1.0))
    >>> history = robust.fit(x, y, batch_size=100, verbose=0)
    >>> model.layers[-1].phase
    'wnll'

    Reference:

    - Wang and Osher, Graph Interpolating Activation Improves Both Natural and Robust Accuracies
      in Data-Efficient Deep Learning, sections 3.1 and 3.3, of which this departs by the exact
      gradient
    """

    needs_attack = False

    def __init__(
        self,
        num_folds: int = 3,
        linear_weight: Any = 0.0,
        attack: Attack | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        mask: Any = None,
    ) -> None:
        super().__init__(attack, None, reduction, name, mask=mask)
        self.num_folds = validation.check_count("num_folds", num_folds)
        if self.num_folds < 2:
            raise ValueError(
                "Argument `num_folds` must be at least 2: one part of the batch is interpolated "
                f"from the others. Received: num_folds={num_folds}"
            )
        self.linear_weight = weight.check_weight("linear_weight", linear_weight)
        if not self.from_logits:
            raise ValueError(
                "Argument `attack` must have `from_logits=True`: a WNLL head returns logits. "
                f"Received: attack={attack!r}"
            )

    def prepare(self, model: Any, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        wnll_head(model)
        labels = sparse_labels(y)
        if self.attack is None:
            return x, labels
        with template_scope(InBatchTemplate(labels, self.num_folds, in_inference=True)):
            x_adv = self.perturbed(model, x, ops.maximum(labels, 0), seed)
        return per_example_where(labels >= 0, x_adv, x), labels

    def check(self, model: Any, x: Any, y: Any) -> None:
        self.check_batch_size(len(y))
        super().check(model, x, y if is_one_hot(y) else np.maximum(y, 0))

    def check_batch_size(self, size: int) -> None:
        """Raises a `ValueError` for a batch that can't be cut into the folds."""
        if size < self.num_folds:
            raise ValueError(
                f"Batches must hold at least `num_folds`, {self.num_folds}, examples: each part "
                "is interpolated from the others. Take batches of some four times the head's "
                f"`num_neighbors`. Received: a batch of {size}"
            )

    def forward(self, step: Step) -> Any:
        step.kept = InBatchTemplate(step.prepared, self.num_folds)
        with template_scope(step.kept):
            return super().forward(step)

    def training_loss(self, step: Step, y_true: Any, y_pred: Any) -> Any:
        # With a weight of 0 too: Keras warns of variables without a gradient.
        linear = ops.cast(step.kept.linear_logits, y_pred.dtype)
        values = self.classification_loss(y_true, y_pred)
        factor = weight.current(self.linear_weight)
        return values + factor * self.classification_loss(y_true, linear)

    def classification_loss(self, y_true: Any, y_pred: Any) -> Any:
        """Cross-entropy, 0 for unlabeled examples."""
        if is_one_hot(y_true):
            return super().classification_loss(y_true, y_pred)
        labels = ops.reshape(y_true, (-1,))
        values = super().classification_loss(ops.maximum(labels, 0), y_pred)
        return ops.where(labels >= 0, values, ops.zeros_like(values))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["loss"]
        linear_weight = weight.saved(self.linear_weight)
        own = {"num_folds": self.num_folds, "linear_weight": linear_weight, "mask": self.saved_mask}
        return {**own, **config}
