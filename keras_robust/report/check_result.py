"""The result of one check of an evaluation."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass
class CheckResult:
    """The result of one check of an evaluation.

    Args:
        name: string, a short description: `"more steps never raise the accuracy"`.
        passed: bool, or `None` if the check does not apply or could not be run.
        sentence: string, what was found and what it means.
        figures: mapping of names to the numbers behind the result. Defaults to an empty mapping.
    """

    name: str
    passed: bool | None
    sentence: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def status(self) -> str:
        """`"passed"`, `"FAILED"` or `"not run"`."""
        if self.passed is None:
            return "not run"
        return "passed" if self.passed else "FAILED"

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON. A figure that is not finite becomes `None`."""
        figures = {name: float(value) for name, value in self.figures.items()}
        return {
            "name": self.name,
            "passed": None if self.passed is None else bool(self.passed),
            "sentence": self.sentence,
            "figures": {n: value if math.isfinite(value) else None for n, value in figures.items()},
        }
