"""The model under test: its layers, its structure, its data and its outputs."""
