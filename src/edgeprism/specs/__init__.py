"""Frozen, self-validating descriptions: models, plans, codecs, counts. Nothing here imports torch."""
