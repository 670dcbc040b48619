"""Prints the results of `attacks.py` as the table in `benchmarks/README.md`.

python benchmarks/table.py benchmarks/results/attacks-*-tensorflow.json
"""

import argparse
import json
import pathlib
from typing import Any

COLUMNS = {
    "keras_robust, unjudged": "ours, unjudged",
    "foolbox": "Foolbox",
    "art": "ART",
    "cleverhans": "CleverHans",
    "torchattacks": "torchattacks",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=pathlib.Path)
    return parser.parse_args()


def quality(row: dict[str, float]) -> str:
    """Returns the median distance of a minimum-norm attack, else the robust accuracy."""
    distance = row.get("median_l2_of_fooled")
    return f"{row['robust_accuracy']:.1%}" if distance is None else f"L2 {distance:.3f}"


def cell(row: dict[str, float] | None) -> str:
    return "" if row is None else f"{row['times_as_slow_as_ours']:.2f} ({quality(row)})"


def line(name: str, libraries: dict[str, Any], columns: list[str]) -> str:
    ours = libraries["keras_robust"]
    first = f"{ours['ratio_to_floor']:.2f} ({quality(ours)})"
    cells = [name, first, *(cell(libraries.get(peer)) for peer in columns)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    content = json.loads(parse_arguments().results.read_text())
    print(f"{content['machine']}, {content['backend']}\n")
    found = {library for case in content["cases"].values() for library in case["libraries"]}
    columns = [library for library in COLUMNS if library in found]
    print("| " + " | ".join(["attack", "ours / floor", *map(COLUMNS.get, columns)]) + " |")
    print("|---" * (2 + len(columns)) + "|")
    for name, case in content["cases"].items():
        print(line(name, case["libraries"], columns))


if __name__ == "__main__":
    main()
