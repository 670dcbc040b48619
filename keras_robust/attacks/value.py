"""Immutable configuration of attacks."""

import copy
import inspect
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np
from keras import ops

from keras_robust import scheduled
from keras_robust.attacks.plausible import warn_of_units
from keras_robust.model.keys import value_key
from keras_robust.types import Tensor


class _Frozen(type):
    """Freezes objects after their construction, and warns about implausible radii."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        attack = super().__call__(*args, **kwargs)
        object.__setattr__(attack, "_is_frozen", True)
        warn_of_units(attack)
        return attack

    @property
    def __signature__(cls) -> inspect.Signature:
        """The signature of the constructor, which `__call__` would hide from `inspect`."""
        constructor = inspect.signature(cls.__init__)  # type: ignore[misc]
        return constructor.replace(parameters=list(constructor.parameters.values())[1:])


class Value(metaclass=_Frozen):
    """Base class of `kr.attacks.Attack`: constructor arguments that cannot be set later.

    Radii and step sizes are data. Compiled functions receive them as tensors, so that changing them
    does not compile the attack again.
    """

    # Names of the attributes that compiled functions receive as tensors.
    data_names: ClassVar[tuple[str, ...]] = ("epsilon", "step_size")

    def replace(self, **changes: Any) -> Self:
        """Returns a copy of the attack with some constructor arguments replaced.

        Example:

        >>> import keras_robust as kr
        >>> kr.attacks.PGD(epsilon=0.1).replace(epsilon=0.2).epsilon
        0.2
        """
        arguments = self.arguments
        for name in changes:
            if name not in arguments:
                raise ValueError(
                    f"{type(self).__name__} has no argument `{name}`. Expected one of "
                    f"{list(arguments)}. Received: {name}={changes[name]!r}"
                )
        return type(self)(**arguments | changes)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, read from the attributes with the same names."""
        parameters = inspect.signature(type(self)).parameters.values()
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: getattr(self, name) for name in named}

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_is_frozen", False):
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be set, because attacks are immutable. "
                f"`attack.replace({name}=...)` returns a changed copy."
            )
        super().__setattr__(name, value)

    def changed(self, **attributes: Any) -> Self:
        """Returns a copy with other attributes, without the checks of the constructor."""
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def at(self, iterations: Tensor, dtype: Any = "float32") -> Self:
        """Returns the attack for one training step, with variables and schedules as tensors.

        Args:
            iterations: int tensor. Number of steps that the optimizer has taken. Use `None` outside
                training, where schedules have no value and raise a `ValueError`.
            dtype: dtype of the tensors. Defaults to `"float32"`.
        """
        values = {name: getattr(self, name, None) for name in self.data_names}
        if iterations is None:
            for name, value in values.items():
                if isinstance(value, scheduled.Schedule):
                    scheduled.number(name, value)
        new = {n: scheduled.value_at(v, iterations, dtype=dtype) for n, v in values.items()}
        changes = {name: value for name, value in new.items() if value is not values[name]}
        return self.changed(**changes) if changes else self

    @property
    def variables(self) -> list[keras.Variable]:
        """The radii and step sizes that are a `keras.Variable`."""
        values = [getattr(self, name, None) for name in self.data_names]
        return [value for value in values if isinstance(value, keras.Variable)]

    @property
    def given(self) -> list[str]:
        """The `data_names` whose attributes are not `None`."""
        return [name for name in self.data_names if getattr(self, name, None) is not None]

    @property
    def data(self) -> dict[str, Any]:
        """The current numbers and arrays of the attributes in `given`."""
        return {name: scheduled.number(name, getattr(self, name)) for name in self.given}

    @property
    def num_data(self) -> int:
        """Number of arrays that `data_arrays` returns."""
        return len(self.given)

    @property
    def key(self) -> Hashable:
        """Key of the compiled attack: the values of all attributes that are not in `given`."""
        given = self.given
        return value_key((type(self), {n: v for n, v in vars(self).items() if n not in given}))

    def data_arrays(self) -> list[np.ndarray]:
        """Returns the values of `data` as arrays, which compiled functions receive."""
        return [np.asarray(value, "float64") for value in self.data.values()]

    def with_data(self, values: Sequence[Any], dtype: Any) -> Self:
        """Returns a copy with tensors in place of the attributes in `given`."""
        tensors = (ops.cast(value, dtype) for value in values)
        return self.changed(**dict(zip(self.given, tensors, strict=True)))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={_described(v)}" for k, v in self.arguments.items())
        return f"{type(self).__name__}({arguments})"


def _described(value: Any) -> str:
    """Returns the `repr` of a value; for an array, its shape and extremes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, np.ndarray):
        return f"array of shape {value.shape}, {value.min():g} to {value.max():g}"
    return repr(value)
