"""Checks for the optional library of the analyses."""

import importlib.util


def require_scikit_learn() -> None:
    """Raises an `ImportError` with installation instructions if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            "This analysis needs scikit-learn. Install it with the extra `analysis`: "
            "`pip install 'keras-robust[analysis]'`."
        )
