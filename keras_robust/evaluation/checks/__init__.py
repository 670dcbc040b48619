"""Checks that must pass before a failed attack counts as evidence of robustness."""
