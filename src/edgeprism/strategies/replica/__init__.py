"""Each device runs the whole model on its samples of the batch: exact, and nothing travels inside a block."""
