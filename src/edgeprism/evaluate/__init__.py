"""What a lossy codec costs: data sets, metrics, and the comparison with one device."""
