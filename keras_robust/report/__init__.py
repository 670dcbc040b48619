"""What an evaluation has found: as text, JSON, pictures and a page."""
