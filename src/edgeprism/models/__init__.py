"""Family adaptors: the weights of transformers models behind the ``Block`` seam. Nothing here knows of a network."""
