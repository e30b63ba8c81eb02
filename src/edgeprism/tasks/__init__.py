"""From what a person gives (pictures, sentences) to a model's inputs, and from its outputs to answers."""
