"""The ways to run a model on several devices; `registry` finds them by name without loading any."""
