"""Shared fixtures; no test may reach for a network."""

import os
import socket

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

#: Folders whose tests share expensive fixtures; every other file is a group of its own.
TOGETHER = {"browser", "cli", "distributed", "zoo"}

# Workers share the cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Tests of one group run in one worker of pytest-xdist."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            folder = item.path.parent.name
            item.add_marker(pytest.mark.xdist_group(folder if folder in TOGETHER else str(item.path)))


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
