"""Shared by all tests: one thread, and the folder of real data where there is one."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with taxonomies/ and images/; tests that need it are skipped elsewhere."""
    folder = Path(os.environ.get("BIOCLIP_HC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "taxonomies").is_dir():
        pytest.skip(f"no data in {folder}; set BIOCLIP_HC_DATA")
    return folder
