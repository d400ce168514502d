"""Models are made once a test process."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_engine.engine import Engine
from inference_engine.model_folder import ModelFolder, open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from tests.model_fixtures import make_model, reference_model

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: its kernels then run here, in Python

torch.set_num_threads(1)  # tests run beside one another, and small products are slower on two threads


class Models:
    """Small models by kind: the folder, an engine over it, and transformers' view of it."""

    def __init__(self, folder: Path) -> None:
        self._root = folder
        self.folder: Callable[[str], Path] = cache(self._folder)
        self.reference: Callable[[str], Any] = cache(lambda kind: reference_model(self.folder(kind)))

    def _folder(self, kind: str) -> Path:
        return make_model(self._root / kind, kind)

    def opened(self, kind: str) -> ModelFolder:
        return open_model_folder(ModelSettings(path=str(self.folder(kind))))

    def engine(self, kind: str, blocks: int = 64, **settings: Any) -> Engine:
        return Engine.load(self.opened(kind), EngineSettings(**{"threads": 1, **settings}), blocks)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))
