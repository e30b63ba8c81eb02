"""The tokens of every sample are split over the devices, which exchange rows once in every block (PRISM)."""
