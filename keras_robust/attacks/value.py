"""The configuration of an attack, which stays as it was made."""

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


class _Frozen(type):
    """Freezes an object when its constructor has returned."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        attack = super().__call__(*args, **kwargs)
        object.__setattr__(attack, "_is_frozen", True)
        warn_of_units(attack)
        return attack

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's signature, which `__call__` would hide from `inspect`."""
        constructor = inspect.signature(cls.__init__)  # type: ignore[misc]
        return constructor.replace(parameters=list(constructor.parameters.values())[1:])


class Value(metaclass=_Frozen):
    """Base class of `kr.attacks.Attack`: the arguments of a constructor, which cannot be set later.

    Radii and step sizes are data: what is compiled for an attack gets them as tensors.
    """

    # Numbers that what is compiled is given as data.
    data_names: ClassVar[tuple[str, ...]] = ("epsilon", "step_size")

    def replace(self, **changes: Any) -> Self:
        """Another attack, with other arguments of its constructor.

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
        """The arguments of the constructor, as the attributes of the same names have them."""
        parameters = inspect.signature(type(self)).parameters.values()
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: getattr(self, name) for name in named}

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_is_frozen", False):
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be set: an attack stays as it was made. "
                f"`attack.replace({name}=...)` returns another one."
            )
        super().__setattr__(name, value)

    def changed(self, **attributes: Any) -> Self:
        """A copy with other attributes, whatever the constructor would say to them."""
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def at(self, iterations: Any, dtype: Any = "float32") -> Self:
        """The attack in one step of training: variables and schedules become tensors.

        Args:
            iterations: int tensor, how many steps the optimizer has taken. `None` outside of
                training, where schedules have no value.
            dtype: of the tensors.
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
        """The variables among its radii."""
        values = [getattr(self, name, None) for name in self.data_names]
        return [value for value in values if isinstance(value, keras.Variable)]

    @property
    def given(self) -> list[str]:
        """Those of `data_names` that it has."""
        return [name for name in self.data_names if getattr(self, name, None) is not None]

    @property
    def data(self) -> dict[str, Any]:
        """The numbers and arrays that are given, as they are now."""
        return {name: scheduled.number(name, getattr(self, name)) for name in self.given}

    @property
    def num_data(self) -> int:
        """How many arrays `data_arrays` returns."""
        return len(self.given)

    @property
    def key(self) -> Hashable:
        """A key of the compiled attack: the values of all attributes but `data`."""
        given = self.given
        return value_key((type(self), {n: v for n, v in vars(self).items() if n not in given}))

    def data_arrays(self) -> list[np.ndarray]:
        """The values of `data`, to be passed to what is compiled."""
        return [np.asarray(value, "float64") for value in self.data.values()]

    def with_data(self, values: Sequence[Any], dtype: Any) -> Self:
        """The attack with the tensors of `data_arrays` in their places."""
        tensors = (ops.cast(value, dtype) for value in values)
        return self.changed(**dict(zip(self.given, tensors, strict=True)))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={_described(v)}" for k, v in self.arguments.items())
        return f"{type(self).__name__}({arguments})"


def _described(value: Any) -> str:
    """Its `repr`; of an array, its shape and extremes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, np.ndarray):
        return f"array of shape {value.shape}, {value.min():g} to {value.max():g}"
    return repr(value)
