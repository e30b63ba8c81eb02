"""Key pairs."""

from __future__ import annotations

from edgeprism.wire.keys import KeyPair


def test_no_public_key_looks_like_an_option() -> None:
    """`edgeprism worker --coordinator KEY` would take 1 in 85 for an option."""
    assert not [key for key in (KeyPair.generate().public for _ in range(500)) if key.startswith("-")]
