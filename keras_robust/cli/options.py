"""The command's options."""

import argparse
import fractions
import sys
from typing import NoReturn

import keras

from keras_robust.cli.attacks import OFFERED
from keras_robust.datasets.load import EMBEDDED


class Parser(argparse.ArgumentParser):
    """Raises a `ValueError` where `argparse` would print the usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> Parser:
    """Returns the parser of the command's arguments."""
    top = Parser(prog="keras-robust", description="Measures how robust a Keras classifier is.")
    top.add_argument("--version", action="version", version=_versions())
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "evaluate",
        help="measure the accuracy of a saved model on clean images and under attacks",
        description="Measures the accuracy of a classifier on clean images and under attacks, "
        "and checks whether the results can be trusted.",
        epilog="Exit status: 0 success, 2 invalid input, 3 success but a check has failed, 130 "
        "interrupted. The environment variable KERAS_BACKEND selects TensorFlow or JAX. "
        "TensorFlow's own log is hidden: set TF_CPP_MIN_LOG_LEVEL=0 to show it.",
    )
    per_class = "show the accuracy of each class; default: only the worst class"
    add = command.add_argument
    # fmt: off
    add("model", metavar="MODEL.keras", help="model file, saved by model.save()")
    data = command.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset", metavar="NAME",
                      help=f"{EMBEDDED}, or the name of a data set in TensorFlow Datasets")
    data.add_argument("--data", metavar="PATH",
                      help="your own data: a .npz file with the arrays x (integers from 0 to 255, "
                      "floats from 0 to 1, or floats within --bounds) and y, or a folder with a "
                      "subfolder of images for each class; sorted by name, the subfolders must be "
                      "in the order of the model's outputs")
    add("--data-dir", metavar="DIR",
        help="with --dataset: folder in which TensorFlow Datasets keeps its data")
    add("--split", help="with --dataset: the split to use; default: test")
    add("--num-examples", type=_count, metavar="N",
        help="evaluate only the first N examples; default: all")
    add("--attack", required=True, action="append", metavar="NAME",
        help=f"attack to run: one of {', '.join(OFFERED)}; may be given several times")
    add("--epsilon", type=_number,
        help="radius of the attacks, in units of the images: 8/255 for images from 0 to 1, 8 for "
        "images from 0 to 255")
    add("--norm", choices=["linf", "l2", "l1"],
        help="norm of the attacks; default: each attack's own")
    add("--num-steps", type=_count, metavar="N",
        help="number of steps, for attacks that have one; default: each attack's own")
    add("--fast", action="store_const", const="fast", dest="version",
        help="run the fast version of AutoAttack: nearly the same accuracy in about a fifth of the "
        "time")
    add("--mask", metavar="FILE",
        help=".npy or .npz file with one array of 0 and 1 that broadcasts to the images, for "
        "example of shape (height, width, 1); attacks change only the values where it is 1; "
        "default: attacks may change all values")
    add("--bounds", type=_number, nargs=2, default=[0.0, 1.0], metavar=("LOW", "HIGH"),
        help="range of the images that the model expects; images are scaled to it; default: 0 1")
    outputs = command.add_mutually_exclusive_group()
    outputs.add_argument("--from-logits", action="store_const", const=True,
                         help="the model returns logits; default: detected from its outputs")
    outputs.add_argument("--from-probabilities", action="store_const", const=False,
                         dest="from_logits", help="the model returns probabilities")
    add("--batch-size", type=_count, default=128, metavar="N",
        help="number of examples in a batch; default: 128")
    add("--seed", type=_seed, default=0, metavar="N", help="seed of the random numbers; default: 0")
    add("--output", metavar="DIR",
        help="folder for the report and for the progress of the evaluation")
    add("--resume", action="store_true", help="continue the evaluation in --output")
    add("--shard", type=_shard, metavar="I/N",
        help="evaluate only the I-th of N shares of the batches; keras-robust merge combines them")
    add("--per-class", action="store_true", help=per_class)
    add("--no-checks", action="store_true", help="do not check whether the results can be trusted")
    add("--transfer-from", metavar="OTHER.keras",
        help="another model for the same data: the checks also attack with adversarial examples "
        "that are made on it")
    add("--pictures", action="store_true",
        help="add accuracy curves over epsilon and steps, and a plot of the features, to the "
        "report in --output; takes longer")
    add("--import", dest="modules", action="append", default=[], metavar="MODULE",
        help="import a Python module of yours that registers custom layers; this runs its code")
    # fmt: on
    merging = commands.add_parser(
        "merge",
        help="combine the shares of an evaluation into one report",
        description="Combines the results of keras-robust evaluate --shard I/N into one report. To "
        "add the checks, run the same evaluate command with --resume and the new --output, without "
        "--shard.",
    )
    merging.add_argument("directories", nargs="+", metavar="DIR", help="the --output of each share")
    merging.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
    merging.add_argument("--per-class", action="store_true", help=per_class)
    return top


def _versions() -> str:
    names = ("keras_robust", "keras", keras.backend.backend())
    return ", ".join(f"{name.replace('_', '-')} {sys.modules[name].__version__}" for name in names)


def _number(text: str) -> float:
    try:
        return float(fractions.Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        message = f"expected a number or a fraction, such as 0.3 or 8/255, not {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, not {text!r}")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a share such as 3/8, not {text!r}")
    return int(number), int(count)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, not {text!r}")
    return int(text)
