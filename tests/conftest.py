"""What every test starts from: one torch thread, no hub, the same seed."""

from __future__ import annotations

import os

# Before transformers is imported: no test may reach a hub, and progress bars belong to nobody here.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

if "PYTEST_XDIST_WORKER" in os.environ:  # beside others, devices stand still for longer
    os.environ["EDGEPRISM_DEADLINE_S"] = "20"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("edgeprism", deadline=None)  # cores are shared: an example may take long for no reason
settings.load_profile("edgeprism")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Weights and inputs are the same in every run and in any order of the tests."""
    torch.manual_seed(0)
