"""Reports of an evaluation: as text, JSON, plots and an HTML page."""
