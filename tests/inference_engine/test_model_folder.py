"""Every way a model folder can be wrong is one line that names the file and what to do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_core.errors import ModelFolderError
from inference_engine.model_config import ModelConfig
from inference_engine.model_folder import layout_of, open_model_folder
from inference_engine.rope_config import Llama3Rope, PlainRope, YarnRope
from inference_engine.settings import EngineSettings, ModelSettings
from tests.inference_engine.conftest import Models
from tests.model_fixtures import EOS_TOKEN_ID


@pytest.fixture
def folder(models: Models, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models.folder("llama"), tmp_path / "copied"))


def change_config(folder: Path, **values: Any) -> None:
    """Set fields of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def error_of(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelFolderError) as caught:
        open_model_folder(ModelSettings(path=str(folder), **settings))
    text = str(caught.value)
    assert "\n" not in text
    return text


def rewrite_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_a_whole_folder_opens(models: Models) -> None:
    opened = models.opened("llama")
    assert opened.identity.name == "llama"
    assert opened.identity.vocab_size == 320
    assert opened.identity.max_context_tokens == 4096
    assert opened.eos_token_ids == {EOS_TOKEN_ID}
    assert [file.name for file in opened.weight_files] == ["model.safetensors"]
    layout = layout_of(opened.config, EngineSettings(dtype="bfloat16"))
    assert layout.token_bytes == 2 * 2 * 2 * 16 * 2


def test_opening_costs_no_torch(models: Models) -> None:
    code = (
        "import sys; from inference_engine.model_folder import *; "
        f"open_model_folder(ModelSettings(path={str(models.folder('sharded'))!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_name_and_context_come_from_the_settings(folder: Path) -> None:
    opened = open_model_folder(ModelSettings(path=str(folder), name="mine", max_context_tokens=100))
    assert opened.identity.name == "mine"
    assert opened.identity.max_context_tokens == 100
    assert "must not be 5000" in error_of(folder, max_context_tokens=5000)


def test_fingerprints_tell_models_apart(models: Models, folder: Path) -> None:
    original = models.opened("llama").identity.fingerprint
    assert open_model_folder(ModelSettings(path=str(folder), name="other")).identity.fingerprint == original
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    retrained = open_model_folder(ModelSettings(path=str(folder))).identity.fingerprint
    assert retrained != original
    change_config(folder, rms_norm_eps=1e-6)
    assert open_model_folder(ModelSettings(path=str(folder))).identity.fingerprint not in {original, retrained}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "config.json: cannot be read"),
        ("tokenizer.json", "tokenizer.json: missing"),
        ("model.safetensors", "model.safetensors: missing"),
    ],
)
def test_missing_files(folder: Path, name: str, words: str) -> None:
    (folder / name).unlink()
    assert words in error_of(folder)


def test_missing_folder(tmp_path: Path) -> None:
    assert "no such folder" in error_of(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -1000])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors: truncated or damaged" in error_of(folder)


def test_weights_with_bytes_too_many(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "truncated or damaged" in error_of(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header.update({"model.norm.weight": 3}), "cannot be understood"),
        (lambda header: header["model.norm.weight"].update(shape=[65]), "not what its shape takes"),
        (lambda header: header["model.norm.weight"].update(shape=[-64]), "whole numbers"),
        (lambda header: header["model.norm.weight"].update(dtype="F8_E4M3"), "served are F64"),
        (lambda header: header["model.norm.weight"].update(data_offsets=[0, 256]), "gap or overlap"),
        (lambda header: header.update(extra=header.pop("model.norm.weight")), "model.norm.weight is in none"),
    ],
)
def test_inconsistent_headers(folder: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    rewrite_header(folder, change)
    assert words in error_of(folder)


def test_a_header_of_absurd_length(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    assert "truncated or damaged" in error_of(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=200)
    assert "config.json asks for [200, 64]" in error_of(folder)


def test_a_tensor_that_has_no_place(models: Models, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.folder("qwen2"), tmp_path / "copied"))
    change_config(folder, architectures=["LlamaForCausalLM"])
    assert "_proj.bias has no place in a llama model" in error_of(folder)


def test_sharded_weights(models: Models, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.folder("sharded"), tmp_path / "copied"))
    assert len(open_model_folder(ModelSettings(path=str(folder))).weight_files) > 1
    next(folder.glob("model-00002*")).unlink()
    assert "missing, though model.safetensors.index.json names it" in error_of(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    assert "../secret.safetensors: missing" in error_of(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in error_of(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "model.safetensors.index.json: missing" in error_of(folder)


def test_unknown_architectures_get_the_list_of_the_known(folder: Path) -> None:
    change_config(folder, architectures=["GemmaForCausalLM"])
    assert error_of(folder).endswith(
        "architectures is ['GemmaForCausalLM']; served are "
        "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, "
        'and others by model.implementation = "transformers"'
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", "320"),
        ("hidden_size", 10**12),
        ("num_hidden_layers", -2),
        ("num_attention_heads", 3.5),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
        ("max_position_embeddings", True),
        ("rms_norm_eps", float("nan")),
        ("tie_word_embeddings", "yes"),
        ("hidden_act", "gelu"),
        ("quantization_config", {"bits": 4}),
        ("eos_token_id", 5000),
    ],
)
def test_insane_fields_are_named(folder: Path, key: str, value: object) -> None:
    if key == "eos_token_id":
        (folder / "generation_config.json").unlink()
    change_config(folder, **{key: value})
    assert f"config.json: {key} is " in error_of(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "\xff"}'])
def test_json_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json: " in error_of(folder)


def test_end_tokens(folder: Path) -> None:
    def ids() -> frozenset[int]:
        return open_model_folder(ModelSettings(path=str(folder))).eos_token_ids

    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 9]}')
    assert ids() == {5, 9}
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    assert ids() == {EOS_TOKEN_ID}
    (folder / "generation_config.json").unlink()
    change_config(folder, eos_token_id=[1, 2])
    assert ids() == {1, 2}
    change_config(folder, eos_token_id=None)
    assert ids() == frozenset()


def test_rotary_embeddings_in_the_old_spelling(folder: Path) -> None:
    def rope() -> object:
        config = open_model_folder(ModelSettings(path=str(folder))).config
        assert isinstance(config, ModelConfig)
        return config.rope

    change_config(folder, rope_parameters=None, rope_theta=5e5)
    assert rope() == PlainRope(theta=5e5)
    change_config(folder, rope_scaling={"type": "linear", "factor": 4})
    assert rope() == PlainRope(theta=5e5, factor=4.0)
    change_config(folder, rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    assert rope() == PlainRope(theta=5e5)
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    change_config(folder, rope_scaling={"rope_type": "llama3", "factor": 8.0, **llama3})
    assert isinstance(rope(), Llama3Rope)
    change_config(folder, rope_scaling={"rope_type": "yarn", "factor": 8.0})
    yarn = rope()
    assert isinstance(yarn, YarnRope)
    assert yarn.original_context_tokens == 4096


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "longrope"}, "served are default, linear, dynamic, llama3, yarn"),
        ({"rope_type": ["linear"]}, "served are default"),
        ({"rope_type": "linear"}, "factor is None; it must be a number"),
        ({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}, "high_freq_factor is 1"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "rotate whole heads"),
        ("linear", "must be an object"),
    ],
)
def test_rotary_embeddings_that_are_not_served(folder: Path, scaling: object, words: str) -> None:
    change_config(folder, rope_parameters=None, rope_scaling=scaling)
    assert words in error_of(folder)


def test_windows_by_family(models: Models, tmp_path: Path) -> None:
    def windows(folder: Path) -> tuple[int, ...]:
        return open_model_folder(ModelSettings(path=str(folder))).config.windows

    assert windows(models.folder("mistral")) == (24, 24)
    assert windows(models.folder("qwen2_window")) == (0, 24, 24)
    assert windows(models.folder("qwen2")) == (0, 0)
    folder = Path(shutil.copytree(models.folder("qwen2_window"), tmp_path / "copied"))
    change_config(folder, layer_types=None)
    assert windows(folder) == (0, 24, 24)
    change_config(folder, layer_types=["full_attention"])
    assert "layer_types" in error_of(folder)
    change_config(folder, use_sliding_window=False, layer_types=None)
    assert windows(folder) == (0, 0, 0)
