"""The command's options."""

import argparse
import fractions
import sys
from typing import NoReturn

import keras

from keras_robust.cli.attacks import OFFERED
from keras_robust.datasets.load import EMBEDDED


class Parser(argparse.ArgumentParser):
    """Raises a `ValueError` where `argparse` would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> Parser:
    """What the command takes."""
    top = Parser(prog="keras-robust", description="How robust a Keras classifier is.")
    top.add_argument("--version", action="version", version=_versions())
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "evaluate",
        help="accuracy of a model file on clean images and under attacks",
        description="Measures the accuracy of a classifier on clean images and under attacks, "
        "and checks whether the figures can be trusted.",
        epilog="Exit status: 0 done, 2 bad input, 3 done but a check has failed, 130 interrupted. "
        "The environment variable KERAS_BACKEND chooses TensorFlow or JAX. TensorFlow's own log is "
        "left out: TF_CPP_MIN_LOG_LEVEL=0 brings it back.",
    )
    per_class = "show the accuracy of each class; without it, only the worst class is named"
    add = command.add_argument
    # fmt: off
    add("model", metavar="MODEL.keras", help="model file, as model.save() writes it")
    data = command.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset", metavar="NAME",
                      help=f"{EMBEDDED}, or a data set of TensorFlow Datasets")
    data.add_argument("--data", metavar="PATH",
                      help="data of your own: a .npz file of the arrays x (integers from 0 to 255, "
                      "or floating values from 0 to 1) and y; or a folder that holds a folder of "
                      "images for each class, in the order of the model's outputs")
    add("--data-dir", metavar="DIR",
        help="of a --dataset: where TensorFlow Datasets keeps its data")
    add("--split", help="of a --dataset; default: test")
    add("--num-examples", type=_count, metavar="N", help="the first N only; default: all")
    add("--attack", required=True, action="append", metavar="NAME",
        help=f"one of {', '.join(OFFERED)}; may be given several times")
    add("--epsilon", type=_number,
        help="radius in units of the images: 8/255 for images from 0 to 1, 8 for 0 to 255")
    add("--norm", choices=["linf", "l2", "l1"], help="default: the attack's own")
    add("--num-steps", type=_count, metavar="N",
        help="of the attacks that have a number of steps; default: the attack's own")
    add("--fast", action="store_const", const="fast", dest="version",
        help="of AutoAttack: nearly the same accuracy in about a fifth of the time")
    add("--mask", metavar="FILE",
        help="a .npy or .npz file of one array of 0 and 1 that broadcasts to the images, of shape "
        "(height, width, 1), say: attacks change only what is 1; default: all may change")
    add("--bounds", type=_number, nargs=2, default=[0.0, 1.0], metavar=("LOW", "HIGH"),
        help="range of the images that the model takes: they are scaled to it; default: 0 1")
    outputs = command.add_mutually_exclusive_group()
    outputs.add_argument("--from-logits", action="store_const", const=True,
                         help="the model returns logits; default: as its outputs look")
    outputs.add_argument("--from-probabilities", action="store_const", const=False,
                         dest="from_logits", help="the model returns probabilities")
    add("--batch-size", type=_count, default=128, metavar="N", help="default: 128")
    add("--seed", type=_seed, default=0, metavar="N", help="default: 0")
    add("--output", metavar="DIR", help="where to save the report, and what is done so far")
    add("--resume", action="store_true", help="continue what was begun in --output")
    add("--shard", type=_shard, metavar="I/N",
        help="evaluate the I-th of N shares of the batches; keras-robust merge puts them together")
    add("--per-class", action="store_true", help=per_class)
    add("--no-checks", action="store_true", help="do not check whether the figures hold")
    add("--transfer-from", metavar="OTHER.keras",
        help="another model for the same data: the checks also attack with its images")
    add("--pictures", action="store_true",
        help="add curves over epsilon and steps, and the geometry of features, to the report in "
        "--output; takes longer")
    add("--import", dest="modules", action="append", default=[], metavar="MODULE",
        help="import (and so run) a Python module of yours that registers custom layers")
    # fmt: on
    merging = commands.add_parser(
        "merge",
        help="one report of the shares of an evaluation",
        description="Makes one report of what keras-robust evaluate --shard I/N has found. The "
        "same evaluate with --resume, in the new --output and without --shard, adds the checks.",
    )
    merging.add_argument("directories", nargs="+", metavar="DIR", help="the --output of each share")
    merging.add_argument("--output", required=True, metavar="DIR", help="where to save the report")
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
