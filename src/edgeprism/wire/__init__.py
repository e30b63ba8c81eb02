"""The wire between devices: frames of arrays, and the transports that carry them. Knows nothing of models."""
