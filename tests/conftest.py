"""What every test starts from: one torch thread, no hub, the same seed; and which tests run beside others."""

from __future__ import annotations

import os
from pathlib import Path

# Before transformers is imported: no test may reach a hub, and progress bars belong to nobody here.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

if "PYTEST_XDIST_WORKER" in os.environ:  # beside others, devices that are threads stand still for longer
    os.environ["EDGEPRISM_DEADLINE_S"] = "20"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("edgeprism", deadline=None)  # cores are shared: an example may take long for no reason
settings.load_profile("edgeprism")

ALONE = {"benchmarks", "cli", "install", "runtime", "tasks", "wire"}
"""Folders of tests that start processes, or judge how long something takes."""
BESIDE = {"test_evaluate.py", "test_finetune.py", "test_finetune_text.py", "test_log_budget.py", "test_plan.py"}
"""Files of `cli` whose tests do neither, but for those that are marked."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks those, here and elsewhere, that are not to run beside others (see `make test`)."""
    for item in items:
        folder = Path(item.path).relative_to(item.config.rootpath).parts[1]
        is_alone = folder in ALONE and not (folder == "cli" and item.path.name in BESIDE)
        if is_alone or item.get_closest_marker("processes"):
            item.add_marker("alone")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Weights and inputs are the same in every run and in any order of the tests."""
    torch.manual_seed(0)
