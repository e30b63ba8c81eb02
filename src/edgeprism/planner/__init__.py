"""Which layers on which devices: exact partitions of a pipeline, and the published ones to compare with. No torch."""
