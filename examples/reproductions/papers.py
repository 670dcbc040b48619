"""The registry of all papers, and the folder of their records."""

import pathlib

import deep_defense
import graph_interpolation
import latent_disparity
import weight_penalization
import wnll_defense
from tables import Paper

PAPERS: dict[str, Paper] = {
    module.PAPER.key: module.PAPER
    for module in (
        wnll_defense, graph_interpolation, deep_defense, weight_penalization, latent_disparity,
    )
}  # fmt: skip
RECORDS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "reproductions"
