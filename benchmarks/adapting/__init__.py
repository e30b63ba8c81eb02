"""What `benchmarks.adaptive` runs: the emulated cluster, and the cases on its device 0."""
