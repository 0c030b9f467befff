"""Shared by all tests: one thread, Triton's interpreter where there is no GPU, the folder of real data."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any import of them


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> None:
    """Let Triton's interpreter prepare a device function once, not at each call: tests run in half the time."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    prepared = set()

    def call(self, *arguments, **options):
        if self.fn not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn)
        return self.rewrite()(*arguments, **options)

    interpreter.InterpretedFunction.__call__ = call


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    """Tests find nothing in the user's caches, and leave nothing there."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with taxonomies/ and images/; tests that need it are skipped elsewhere."""
    folder = Path(os.environ.get("BIOCLIP_HC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "taxonomies").is_dir():
        pytest.skip(f"no data in {folder}; set BIOCLIP_HC_DATA")
    return folder
