"""The model that the demo ships is what its README says."""

import ast
import csv
import json
from pathlib import Path

import pytest

from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.single import generate
from router.tokenizer import load_tokenizer

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
LARGEST_WEIGHTS_BYTES = 10_000_000


def test_its_size_is_a_demos() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= LARGEST_WEIGHTS_BYTES
    assert 2_000_000 <= json.loads((FOLDER / "training.json").read_text())["parameters"] <= 5_000_000


def test_its_loss_curve_and_seed_lie_beside_it() -> None:
    with (FOLDER / "loss_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["held_out_loss"]) < float(rows[0]["held_out_loss"]) - 2
    assert isinstance(json.loads((FOLDER / "training.json").read_text())["settings"]["seed"], int)


@pytest.mark.parametrize("prompt", ["def ", "def read_file(path):"])
def test_a_greedy_answer_is_a_python_function(prompt: str) -> None:
    folder = open_model_folder(ModelSettings(path=str(FOLDER)))
    engine = Engine.load(folder, EngineSettings(threads=1), total_blocks=16)
    tokenizer = load_tokenizer(FOLDER)
    sampling = Sampling(
        temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=100, stop_token_ids=folder.eos_token_ids
    )
    text = prompt + tokenizer.decode(
        generate(engine, tokenizer.encode(prompt, add_special_tokens=True), sampling), skip_special=True
    )
    lines = text.splitlines()
    last_return = max(index for index, line in enumerate(lines) if "return" in line)
    function = ast.parse("\n".join(lines[: last_return + 1])).body[0]
    assert isinstance(function, ast.FunctionDef)
