"""Clusters over gloo: child processes, or workers that were started by themselves with ``--transport gloo``.

There are no keys, and no introductions: each device is told its rank, and where the store is.
"""

from __future__ import annotations

import time

from edgeprism.errors import PeerError, PeerTimeout
from edgeprism.runtime.cluster import Cluster
from edgeprism.runtime.cluster_key import of_store
from edgeprism.specs.plan import check_num_devices
from edgeprism.wire.gloo import GlooMode, GlooTransport

CONNECT_TIMEOUT_S = 10.0  # a worker has loaded torch before


def connect_gloo(
    store: str,
    num_devices: int,
    *,
    transport: str,
    interface: str | None,
    insecure: bool,
    timeout_s: float,
    require_all: bool,
) -> Cluster:
    """See ``Cluster.gloo``."""
    check_num_devices(num_devices)
    how = GlooMode.parse(transport)
    gloo = GlooTransport(
        0, num_devices, store,
        interface=interface, timeout_s=timeout_s, mode=how.mode, overlaps=how.overlaps, insecure=insecure,
    )  # fmt: skip
    try:
        gloo.epoch = int(8 * time.time()) % 2**31  # epochs grow from one run to the next
        gloo.wait_connected(time.monotonic() + CONNECT_TIMEOUT_S)
    except PeerTimeout as exc:
        if require_all:
            gloo.close()
            advice = f"start it with edgeprism worker --transport gloo --store {gloo.store}"
            raise PeerError(f"{exc}; {advice}", exc.peers) from exc
    except BaseException:
        gloo.close()
        raise
    key = of_store(gloo.store, num_devices, str(how))
    return Cluster(gloo, close_workers=lambda: None, introductions={}, key=key)
