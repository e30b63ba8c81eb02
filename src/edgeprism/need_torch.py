"""Whether torch starts here, asked before anything is imported that needs it: edgeprism is installed without it."""

from __future__ import annotations

import re

from edgeprism.errors import InputError

OLDEST = (2, 6)
_HOW = (
    "install it with: pip install 'edgeprism[torch]'; on a device whose vendor supplies torch (a Jetson), install that"
)


def need_torch() -> None:
    """InputError, with what to install, where torch is missing, does not start or is too old."""
    try:
        import torch
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise InputError(f"torch does not start here, it lacks {exc.name}; {_HOW}") from exc
        raise InputError(f"this needs torch, which is not installed; {_HOW}") from exc
    except Exception as exc:  # each missing library of CUDA has its own: ImportError, OSError, ValueError
        why = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise InputError(f"torch is installed but does not start here ({why}); {_HOW}") from exc
    found = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if found and (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"torch {torch.__version__} is too old; edgeprism needs {oldest} or later; {_HOW}")
