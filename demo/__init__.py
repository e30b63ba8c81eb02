"""The demo model: a ViT-S/14 backbone from a pinned package, adapted to CIFAR-10 by low-rank adaptors."""
