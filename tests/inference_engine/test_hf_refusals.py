"""What ``model.implementation = "transformers"`` does not serve is refused in one line before anything is computed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaMLP

from cluster_core.errors import ModelFolderError, OperatorError, PartUnavailable
from inference_engine.hf_config import HfConfig
from inference_engine.model_folder import ModelFolder, open_model_folder
from inference_engine.settings import ModelSettings
from tests.inference_engine.hf_models import SHAPE, hf_engine, make_hf_model
from tests.model_fixtures import write_model


def opened(folder: Path, **settings: Any) -> ModelFolder:
    return open_model_folder(ModelSettings(path=str(folder), implementation="transformers", **settings))


def refusal(folder: Path, kind: type[OperatorError] = ModelFolderError, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        hf_engine(folder, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("Mamba", {}, "layer_types has linear_attention"),
        ("Jamba", {}, "layer_types has linear_attention"),
        ("Llama4Text", {"num_local_experts": 2}, "layer_types has chunked_attention"),
        ("Bloom", {}, "none of its layers attends through transformers' attention interface"),
        ("GPTNeo", {"attention_types": [[["global", "local"], 1]]}, "cannot load it with attention of our own"),
        ("Doge", {}, "brings a mask of its own making"),
    ],
)
def test_models_that_remember_or_attend_in_other_ways(
    tmp_path: Path, family: str, fields: dict[str, Any], words: str
) -> None:
    assert words in refusal(write_model(tmp_path, family, {**SHAPE, **fields}))


def test_models_that_are_no_decoders(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    transformers.T5Config().save_pretrained(tmp_path)
    assert "is_encoder_decoder is true" in refusal(tmp_path)
    transformers.ViTConfig().save_pretrained(tmp_path)
    assert "model_type is 'vit'" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    assert "transformers does not read it" in refusal(tmp_path)


def test_code_of_the_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    named = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": named}))
    (tmp_path / "configuration_own.py").write_text("raise SystemExit(3)")
    assert "transformers does not read it" in refusal(tmp_path)


@pytest.mark.parametrize("attention", ["compiled"])
def test_an_attention_that_does_not_cap(tmp_path: Path, attention: str) -> None:
    text = refusal(make_hf_model(tmp_path, "gemma2"), attention=attention)
    assert "attn_logit_softcapping" in text
    assert "right are auto and reference" in text


def test_a_window_that_the_model_does_not_keep(tmp_path: Path) -> None:
    """What the configuration says of windows decides which blocks are kept, so the model must do as it says."""
    write_model(tmp_path, "StableLm", SHAPE)
    change_config(tmp_path, sliding_window=24)
    assert "layer 0 does not see exactly the last 24 tokens (sliding_window)" in refusal(tmp_path)


def test_rows_that_mix_outside_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hf_model(tmp_path, "llama")
    plain: Any = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, rows: plain(self, rows + torch.roll(rows, 1, dims=1)))
    assert "its rows mix outside attention" in refusal(tmp_path)


def test_quantised_weights(tmp_path: Path) -> None:
    make_hf_model(tmp_path, "llama")
    change_config(tmp_path, quantization_config={"quant_method": "fp8"})
    assert "quantization_config is set" in refusal(tmp_path)


def test_weights_of_another_model(tmp_path: Path) -> None:
    make_hf_model(tmp_path, "mixtral")
    change_config(tmp_path, num_hidden_layers=3)
    assert "tensor model.layers.2" in refusal(tmp_path)


def test_a_rotation_that_depends_on_the_longest_sequence(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    make_hf_model(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=64)
    assert "set model.max_context_tokens to 64 or less" in refusal(tmp_path)
    assert opened(tmp_path, max_context_tokens=64).identity.max_context_tokens == 64


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hf_model(tmp_path, "llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'baton-serve[hf]'" in refusal(tmp_path, PartUnavailable)


def test_our_own_decoder_names_the_way_out(tmp_path: Path) -> None:
    make_hf_model(tmp_path, "mixtral")
    with pytest.raises(ModelFolderError, match=r'others by model\.implementation = "transformers"'):
        open_model_folder(ModelSettings(path=str(tmp_path)))


def test_the_shape_of_the_memory(tmp_path: Path) -> None:
    make_hf_model(tmp_path, "gemma4")
    config = opened(tmp_path).config
    assert isinstance(config, HfConfig)
    assert (config.layers, config.kv_heads, config.head_dim) == (4, 2, 64)
    assert config.windows == (24, 0, 24, 0)
    assert config.max_context_tokens == 512


def test_transformers_is_imported_only_where_it_is_asked_for(tmp_path: Path) -> None:
    make_hf_model(tmp_path, "llama")
    code = (
        "import sys; from inference_engine.engine import Engine; from inference_engine.settings import *; "
        "from inference_engine.model_folder import open_model_folder; "
        f"Engine.load(open_model_folder(ModelSettings(path={str(tmp_path)!r})), EngineSettings(threads=1), 4); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
