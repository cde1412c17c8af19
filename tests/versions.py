"""What older versions of the dependencies, which `make test-oldest` runs with, do not have."""

import pytest
import torch
import transformers
from packaging.version import Version

#: Models of transformers had other modules, other paths of their blocks and other arguments.
OLD = Version(transformers.__version__) < Version("5.9")
needs_transformers = pytest.mark.skipif(OLD, reason="the models of transformers before 5.9 are built otherwise")
#: Since 5.23 gradient checkpointing of transformers lies within the hooks of a block.
needs_inner_checkpointing = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers before 5.23 checkpoints blocks with their hooks",
)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
