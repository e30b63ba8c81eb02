"""What a partition sends instead of its rows: fewer rows, fewer bits, or both. Nothing here knows of a network."""
