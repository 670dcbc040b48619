"""Robustness metrics, one per file. They are public in `kr.evaluation`."""
