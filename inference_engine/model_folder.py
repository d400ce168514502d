"""A model folder, opened and checked without torch: cheap enough for every process, before anything is started."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cluster_core.errors import ModelFolderError
from cluster_core.layout import KvLayout, ModelIdentity
from inference_engine.hf_config import HfConfig, read_hf_config
from inference_engine.json_fields import JsonFields, read_json_object
from inference_engine.model_config import ModelConfig, expected_tensors, read_model_config
from inference_engine.safetensors_header import SafetensorsHeader, read_header
from inference_engine.settings import EngineSettings, ModelSettings

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SAMPLES = 16
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder whose files are there, whole, and fit one another."""

    path: Path
    config: ModelConfig | HfConfig
    """The one or the other by ``model.implementation``."""
    identity: ModelIdentity
    eos_token_ids: frozenset[int]
    weight_files: tuple[Path, ...]


def open_model_folder(settings: ModelSettings) -> ModelFolder:
    """Check the folder and read what is needed of it. Raises `ModelFolderError`, one line naming file and cure."""
    path = Path(settings.path).expanduser()
    if not path.is_dir():
        message = f"{path}: no such folder; model.path must name a folder with config.json, weights and tokenizer.json"
        raise ModelFolderError(message)
    values = read_json_object(path / "config.json")
    if not (path / "tokenizer.json").is_file():
        message = f"{path / 'tokenizer.json'}: missing; save the tokenizer in its fast form into the model folder"
        raise ModelFolderError(message)
    config: ModelConfig | HfConfig
    if settings.implementation == "transformers":
        config = read_hf_config(path, settings.max_context_tokens)
    else:
        config = read_model_config(JsonFields(values, str(path / "config.json")))
    headers = {file: read_header(file) for file in _weight_files(path)}
    if isinstance(config, ModelConfig):
        _check_tensors(path, config, headers)
    if settings.max_context_tokens > config.max_context_tokens:
        message = (
            f"{path / 'config.json'}: the model reads {config.max_context_tokens} tokens; "
            f"model.max_context_tokens must not be {settings.max_context_tokens}"
        )
        raise ModelFolderError(message)
    identity = ModelIdentity(
        name=settings.name or path.resolve().name,
        fingerprint=_fingerprint(json.dumps(values, sort_keys=True).encode(), headers),
        vocab_size=config.vocab_size,
        max_context_tokens=settings.max_context_tokens or config.max_context_tokens,
    )
    return ModelFolder(
        path=path,
        config=config,
        identity=identity,
        eos_token_ids=_eos_token_ids(path, values, config.vocab_size),
        weight_files=tuple(headers),
    )


def layout_of(config: ModelConfig | HfConfig, settings: EngineSettings) -> KvLayout:
    """Return how one block of this model's KV lies in memory."""
    return KvLayout(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        block_size_tokens=settings.block_size_tokens,
        dtype=settings.dtype,
        window_tokens=max(config.windows) if all(config.windows) else 0,
    )


def _weight_files(path: Path) -> list[Path]:
    index = path / _INDEX
    if index.is_file():
        places = read_json_object(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            message = f"{index}: has no weight_map from tensors to files; download it again"
            raise ModelFolderError(message)
        files = sorted({str(name) for name in places.values()})
        for name in files:
            if Path(name).name != name or not (path / name).is_file():
                message = f"{path / name}: missing, though {_INDEX} names it; download the whole model folder"
                raise ModelFolderError(message)
        return [path / name for name in files]
    if (path / _SINGLE).is_file():
        return [path / _SINGLE]
    loose = sorted(file.name for file in path.glob("*.safetensors"))
    if loose:
        message = f"{index}: missing, while weights lie in {loose[0]}; download the index that names the weight files"
        raise ModelFolderError(message)
    message = f"{path / _SINGLE}: missing; weights must be in the safetensors format"
    raise ModelFolderError(message)


def _check_tensors(path: Path, config: ModelConfig, headers: dict[Path, SafetensorsHeader]) -> None:
    found = {name: (file, shape) for file, header in headers.items() for name, shape in header.shapes.items()}
    expected = expected_tensors(config)
    for name, shape in expected.items():
        if name not in found:
            message = f"{path}: tensor {name} is in none of the weight files; download the whole model folder"
            raise ModelFolderError(message)
        file, found_shape = found[name]
        if found_shape != shape:
            message = f"{file}: tensor {name} has shape {list(found_shape)}, config.json asks for {list(shape)}"
            raise ModelFolderError(message)
    for name, (file, _) in found.items():
        if name not in expected and not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight":
            message = f"{file}: tensor {name} has no place in a {config.family} model; config.json is of another model"
            raise ModelFolderError(message)


def _eos_token_ids(path: Path, values: dict[str, object], vocab_size: int) -> frozenset[int]:
    """Return the ids that end a text: those of generation_config.json, else of config.json."""
    source, found = path / "config.json", values.get("eos_token_id")
    generation = path / "generation_config.json"
    if generation.is_file():
        value = read_json_object(generation).get("eos_token_id")
        if value is not None:
            source, found = generation, value
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        message = f"{source}: eos_token_id is {found!r}; it must hold token ids below vocab_size, {vocab_size}"
        raise ModelFolderError(message)
    return frozenset(ids)


def _fingerprint(config: bytes, headers: dict[Path, SafetensorsHeader]) -> str:
    """Digest of the configuration, the weight headers, and samples of the weights.

    Two trainings of one shape have equal headers, so a few pages spread over each file are read too: milliseconds
    where hashing whole files would take minutes.
    """
    digest = hashlib.sha256(config)
    for file, header in sorted(headers.items()):
        digest.update(header.file_bytes.to_bytes(8, "little") + header.text)
        span = max(0, header.file_bytes - header.data_start - _SAMPLE_BYTES)
        with file.open("rb") as weights:
            for sample in range(_SAMPLES):
                weights.seek(header.data_start + span * sample // (_SAMPLES - 1))
                digest.update(weights.read(_SAMPLE_BYTES))
    return digest.hexdigest()
