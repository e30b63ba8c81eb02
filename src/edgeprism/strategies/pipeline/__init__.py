"""Blocks, or parts of blocks, split over devices: micro-batches go through them one behind the other. Exact,
unless what travels is rounded."""
