"""The optional library that the analyses need."""

import importlib.util


def require_scikit_learn() -> None:
    """Raises an `ImportError` that says what to install."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            "This analysis needs scikit-learn. Install it with the extra `analysis`: "
            "`pip install 'keras-robust[analysis]'`."
        )
