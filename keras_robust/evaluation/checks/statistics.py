"""Exact statistical tests on counts."""

import math

# A comparison fails if chance alone gives its counts, or more extreme ones, in fewer than 1% of all
# cases. Only the examples on which the two attacks differ count. At least 7 of them are needed to
# fail, so a few examples that flip with the random start never do, whatever the number of examples.
SIGNIFICANCE = 0.01


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """`P(X >= successes)` for `X` binomial."""
    chances = (_chance(k, trials, probability) for k in range(successes, trials + 1))
    return min(1.0, math.fsum(chances))


def _chance(successes: int, trials: int, probability: float) -> float:
    """`P(X = successes)`."""
    p, q, failures = probability, 1 - probability, trials - successes
    if trials <= 1000 or not 0 < p < 1:
        return math.comb(trials, successes) * p**successes * q**failures
    # Logarithms, because the factors overflow and underflow.
    ways = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(failures + 1)
    return math.exp(ways + successes * math.log(p) + failures * math.log(q))


def sign_test(against: int, in_favour: int) -> float:
    """Returns the one-sided p-value of `against` or more cases if both outcomes are equally likely.

    Applied to the examples on which two attacks differ, this is McNemar's exact test.
    """
    return binomial_tail(against, against + in_favour, 0.5)
