"""The command `keras-robust`."""

import argparse
import pathlib
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from keras_robust.cli.attacks import check_attacks, make_attack
from keras_robust.cli.data import check_data, load_data, load_mask
from keras_robust.cli.loading import import_modules, load_model, returns_logits
from keras_robust.cli.options import parser
from keras_robust.evaluation import Report, evaluate, merge

DONE, BAD_INPUT, CHECK_FAILED, INTERRUPTED = 0, 2, 3, 130
_MAX_LENGTH = 500


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: list of strings, the arguments. Defaults to `None`: those of the process.

    Returns:
        The exit status: 0 for success, 2 for invalid input, 3 for success with a failed check, 130
        for an interruption.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    advice = ""
    try:
        options = parser().parse_args(argv)
        if options.command == "merge":
            return _merge(options)
        if options.output is not None:
            advice = " To continue, run the same command with --resume."
        with warnings.catch_warnings():
            warnings.showwarning = _Warnings(warnings.showwarning)
            return _evaluate(options, argv)
    except (ValueError, OSError, ImportError) as error:
        print(f"keras-robust: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\nkeras-robust: interrupted.{advice}", file=sys.stderr)
        return INTERRUPTED


def _evaluate(options: argparse.Namespace, argv: Sequence[str]) -> int:
    if options.resume and options.output is None:
        raise ValueError("--resume needs the --output of the evaluation to continue")
    if options.transfer_from is not None and options.no_checks:
        raise ValueError("--transfer-from is for the checks, which --no-checks turns off")
    if options.pictures and options.output is None:
        raise ValueError("--pictures needs an --output to save the pictures in")
    check_data(options)
    check_attacks(options)
    import_modules(options.modules)
    model = load_model(options.model)
    other = None if options.transfer_from is None else load_model(options.transfer_from)
    data = load_data(options, model)
    if options.data is not None:
        print(f"Data: {data.description}.")
    mask = load_mask(options, data.x.shape)
    from_logits = returns_logits(model, data.x, options.from_logits)
    report = evaluate(
        model,
        data.x,
        data.y,
        [make_attack(name, options, from_logits) for name in options.attack],
        batch_size=options.batch_size,
        output=options.output,
        seed=options.seed,
        resume=options.resume,
        checks=not options.no_checks,
        transfer_from=other,
        pictures=options.pictures,
        shard=options.shard,
        class_names=data.class_names,
        mask=mask,
        notes={
            "command": shlex.join(["keras-robust", *argv]),
            "model": options.model,
            "data": data.description,
            "outputs": "logits" if from_logits else "probabilities",
        },
    )
    print()
    _show(report, options)
    return CHECK_FAILED if report.failed_checks else DONE


def _merge(options: argparse.Namespace) -> int:
    _show(merge(options.directories, options.output), options)
    return DONE


def _show(report: Report, options: argparse.Namespace) -> None:
    report.summary(options.per_class)
    if options.output is not None:
        print(f"Report: {pathlib.Path(options.output) / 'report.html'}")


class _Warnings:
    """Prints each of the user's warnings once, without the line of code that raised it."""

    def __init__(self, other: Any) -> None:
        self.other = other
        self.printed: set[str] = set()

    def __call__(self, message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
        text = _one_line(message)
        if category is not UserWarning:
            self.other(message, category, *args, **kwargs)
        elif text not in self.printed:
            self.printed.add(text)
            print(f"keras-robust: warning: {text}", file=sys.stderr)


def _one_line(message: BaseException) -> str:
    text = " ".join(str(message).split()) or type(message).__name__
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]} ..."
