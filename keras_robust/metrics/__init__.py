"""Figures of robustness, one a file; users find them in `kr.evaluation`."""
