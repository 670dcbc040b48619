"""The certificate of randomized smoothing."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_robust import validation
from keras_robust.whole_file import write_whole

# Version of the file format: increase it when older versions would misread a new file.
_SCHEMA = 1
_FILE = "certificate.json"
_NUM_POINTS = 31
_PER_EXAMPLE = ("labels", "selected", "counts", "votes")


def require_scipy() -> None:
    """Raises an `ImportError` with installation instructions if SciPy is not installed."""
    if importlib.util.find_spec("scipy") is None:
        raise ImportError(
            "Certificates need SciPy. Install it with the extra `certify`: "
            "`pip install 'keras-robust[certify]'`."
        )


def certified_radii(
    counts: np.ndarray, num_samples: int, alpha: float, stddev: float, rounding: float = 0.0
) -> np.ndarray:
    """Computes the L2 radii that vote counts certify, or 0 where they certify nothing.

        p = the alpha-quantile of Beta(count, num_samples - count + 1)
        R = stddev * (Phi^-1(p - rounding) - Phi^-1(1/2 + rounding))

    `p` is the Clopper-Pearson lower bound: if the true probability is below `p`, this many votes or
    more occur with a probability of at most alpha.

    Args:
        counts: int array. How many of the `num_samples` votes are for the class.
        num_samples: int. Number of votes.
        alpha: float. Probability of an error.
        stddev: float. Standard deviation of the noise.
        rounding: float. Largest rounding error of a probability for one image. Defaults to `0.0`.
    """
    from scipy import special, stats

    counts = np.asarray(counts)
    lower = stats.beta.ppf(alpha, np.maximum(counts, 1), num_samples - counts + 1)
    lower = np.where(counts > 0, lower, 0.0) - rounding
    # A probability below 1/2 certifies nothing. Clipped to 1/2, it gives a radius of 0.
    gap = special.ndtri(np.clip(lower, 0.5, 1.0)) - special.ndtri(min(0.5 + rounding, 1.0))
    return np.where(lower > 0.5 + rounding, stddev * gap, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """The certified class and the certified L2 radius of each example.

    `kr.evaluation.certify` makes it.

    Args:
        stddev: float, standard deviation of the noise.
        num_samples: int, number of noisy copies of each example that vote on its selected class.
        num_selection: int, number of further noisy copies that select this class.
        alpha: float, the largest probability that the certificate of an example is wrong.
        rounding: float, the largest change of a class probability by rounding. The radii account
            for it.
        labels: int array, shape `(num_examples,)`: the true classes.
        selected: int array, the class selected for certification for each example.
        counts: int array, how many of the `num_samples` votes are for the selected class.
        votes: int array, the class with the most votes.
        facts: mapping of strings to strings, the fingerprint of the certificate: hashes of the
            model, the images and so on.
    """

    stddev: float
    num_samples: int
    num_selection: int
    alpha: float
    rounding: float
    labels: np.ndarray
    selected: np.ndarray
    counts: np.ndarray
    votes: np.ndarray
    facts: dict[str, str]

    @functools.cached_property
    def radii(self) -> np.ndarray:
        """The certified L2 radius of each example, in units of the images; 0 for an abstention."""
        return certified_radii(
            self.counts, self.num_samples, self.alpha, self.stddev, self.rounding
        )

    @property
    def abstained(self) -> np.ndarray:
        """Bool array: the examples for which no class has a proven majority of the votes."""
        return self.radii == 0

    @property
    def classes(self) -> np.ndarray:
        """The certified class of each example; -1 for an abstention."""
        return np.where(self.abstained, -1, self.selected)

    def certified(self, radius: float) -> np.ndarray:
        """Returns which examples are certified to keep their true class within an L2 radius.

        Args:
            radius: float, in units of the images.

        Returns:
            Bool array, shape `(num_examples,)`.
        """
        radius = validation.check_number("radius", radius)
        return (self.classes == self.labels) & (self.radii > radius)

    def certified_accuracy(self, radius: float) -> float:
        """Returns the share of examples that are certified within `radius`, from 0 to 1."""
        return float(self.certified(radius).mean())

    def curve(self, radii: Sequence[float] | float | None = None) -> dict[float, float]:
        """Returns the certified accuracy at several radii, for `kr.evaluation.plot_curves`.

        Args:
            radii: the radii, or a single radius. Defaults to `None`: 31 radii from 0 to the largest
                certified radius.

        Returns:
            Mapping of radii, ascending, to accuracies from 0 to 1.
        """
        if radii is None:
            radii = np.linspace(0, self.radii.max() or 1.0, _NUM_POINTS).tolist()
        chosen = validation.check_several("radii", radii, validation.check_number)
        return {radius: self.certified_accuracy(radius) for radius in chosen}

    def to_dict(self) -> dict[str, Any]:
        """Returns all values in a form that can be written as JSON."""
        figures = dataclasses.asdict(self)
        examples = {name: figures.pop(name).tolist() for name in _PER_EXAMPLE}
        return {
            "schema": _SCHEMA,
            **figures,
            "num_examples": len(self.labels),
            "num_abstained": int(self.abstained.sum()),
            "curve": [list(point) for point in self.curve().items()],
            "examples": examples,
        }

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `certificate.json` to a folder, which is created if it does not exist."""
        folder = pathlib.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict()) + "\n"
        write_whole(folder / _FILE, lambda file: file.write(text.encode()))

    @staticmethod
    def load(directory: str | os.PathLike[str]) -> "Certificate":
        """Loads a certificate written by `save` or by `kr.evaluation.certify` with an `output`.

        Args:
            directory: path of the folder.

        Returns:
            `kr.evaluation.Certificate`.

        Raises:
            ValueError: if the folder holds no `certificate.json`, if the file is damaged, or if a
                newer version of keras_robust has written it.
            ImportError: if SciPy is not installed.
        """
        require_scipy()
        path = pathlib.Path(directory) / _FILE
        if not path.is_file():
            raise ValueError(
                f"Argument `directory` must be a folder that holds {_FILE}, as written by "
                "`kr.evaluation.certify` to its `output`. "
                f"Received: directory={str(directory)!r}"
            )
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["schema"] > _SCHEMA:
                raise ValueError(
                    f"its schema is {saved['schema']}, but this version of keras_robust reads "
                    f"schemas up to {_SCHEMA}: update keras_robust"
                )
            names = {field.name for field in dataclasses.fields(Certificate)}
            fields = {name: saved[name] for name in names - set(_PER_EXAMPLE)}
            fields |= {name: np.array(saved["examples"][name], int) for name in _PER_EXAMPLE}
            return Certificate(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} cannot be read as a certificate. {type(error).__name__}: {error}"
            ) from error

    @staticmethod
    def delete(directory: str | os.PathLike[str]) -> None:
        """Deletes the certificate in a folder, if there is one."""
        (pathlib.Path(directory) / _FILE).unlink(missing_ok=True)

    def __repr__(self) -> str:
        shown = [0.0] + [share * float(self.radii.max()) for share in (0.25, 0.5, 0.75)]
        accuracies = ", ".join(f"{a:.1%} at {r:.3g}" for r, a in self.curve(shown).items())
        return (
            f"Certificate(stddev={self.stddev:g}, num_samples={self.num_samples}, "
            f"alpha={self.alpha:g}: {len(self.labels)} examples, {int(self.abstained.sum())} "
            f"abstentions; certified accuracy by L2 radius: {accuracies})"
        )
