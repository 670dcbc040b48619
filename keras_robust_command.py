"""What the script `keras-robust` calls: the command, without TensorFlow's own log.

It is no part of the package, because importing that imports TensorFlow, which reads its setting
then and never again.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_SETTING = "TF_CPP_MIN_LOG_LEVEL"
# What TensorFlow writes before it has read the setting.
_LOG = re.compile(
    rb"[IW]\d{4} \d\d:\d\d:|"
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] |"
    rb"WARNING: All log messages before absl::InitializeLog\(\)|"
    rb"To enable the following instructions:"
)


def main() -> int:
    """Runs the command; returns its exit status."""
    is_set = _SETTING in os.environ
    os.environ.setdefault(_SETTING, "3")
    with contextlib.nullcontext() if is_set else _log_left_out():
        with contextlib.suppress(ImportError):  # JAX does not need it.
            import tensorflow  # noqa: F401  On JAX, only data sets would import it, and later.

        try:
            from keras_robust.cli import keep_compiled, main
        except ImportError as error:  # What it says is to be installed, without a traceback.
            print(f"keras-robust: error: {error}", file=sys.stderr)
            return 2

        keep_compiled()
    return main()


@contextlib.contextmanager
def _log_left_out() -> Iterator[None]:
    """Holds back what the process writes to its standard error, and the log's lines for good."""
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            held_back.seek(0)
            for line in held_back:
                if not _LOG.match(line):
                    os.write(2, line)
