"""The weights of a model, read once from its safetensors files and laid out as the decoder multiplies them.

Queries, keys and values are one projection, gate and up another: one large product where the files hold three and two.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from cluster_core.errors import ModelFolderError
from inference_engine.model_config import ModelConfig
from inference_engine.model_folder import ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """``x`` becomes ``x · weightᵀ + bias``."""

    weight: torch.Tensor  # [outputs, inputs]
    bias: torch.Tensor | None  # [outputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer."""

    input_norm: torch.Tensor  # [hidden]
    query_key_value: Projection  # [(heads + 2 * kv_heads) * head_dim, hidden]
    query_norm: torch.Tensor | None  # [head_dim]
    key_norm: torch.Tensor | None  # [head_dim]
    attention_output: Projection  # [hidden, heads * head_dim]
    inner_norm: torch.Tensor  # [hidden]
    gate_up: Projection  # [2 * inner, hidden]
    down: Projection  # [hidden, inner]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """The whole model. ``head`` is the embedding itself where the two are tied."""

    embedding: torch.Tensor  # [vocabulary, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [vocabulary, hidden]


def load_weights(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Read all weights as ``dtype``. Raises `ModelFolderError` when a file changed since the folder was opened."""
    try:
        with ExitStack() as stack:
            reader = _Reader(folder, dtype, device, stack)
            config = folder.config
            embedding = reader.tensor("model.embed_tokens.weight")
            return ModelWeights(
                embedding=embedding,
                layers=tuple(_read_layer(reader, config, layer) for layer in range(config.layers)),
                final_norm=reader.tensor("model.norm.weight"),
                head=embedding if config.tied_embeddings else reader.tensor("lm_head.weight"),
            )
    except (OSError, SafetensorError, KeyError) as error:
        message = f"{folder.path}: weights cannot be read ({error}); download the model folder again"
        raise ModelFolderError(message) from error


class _Reader:
    """Finds a tensor in whichever file holds it; files are mapped, not read whole."""

    def __init__(self, folder: ModelFolder, dtype: torch.dtype, device: torch.device, stack: ExitStack) -> None:
        self._dtype = dtype
        self._device = device
        self._files = {}
        for path in folder.weight_files:
            file = stack.enter_context(safe_open(path, framework="pt"))
            self._files.update(dict.fromkeys(file.keys(), file))

    def tensor(self, *names: str) -> torch.Tensor:
        """Return the named tensors, one below the other, in memory of their own."""
        parts = [self._files[name].get_tensor(name).to(self._dtype) for name in names]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        return whole.to(self._device)

    def projection(self, place: str, *names: str, biased: bool) -> Projection:
        """Return the named linear layers of one place as one."""
        return Projection(
            weight=self.tensor(*(f"{place}{name}.weight" for name in names)),
            bias=self.tensor(*(f"{place}{name}.bias" for name in names)) if biased else None,
        )


def _read_layer(reader: _Reader, config: ModelConfig, layer: int) -> LayerWeights:
    place = f"model.layers.{layer}."
    attention, inner = f"{place}self_attn.", f"{place}mlp."
    return LayerWeights(
        input_norm=reader.tensor(f"{place}input_layernorm.weight"),
        query_key_value=reader.projection(attention, "q_proj", "k_proj", "v_proj", biased=config.qkv_bias),
        query_norm=reader.tensor(f"{attention}q_norm.weight") if config.head_norms else None,
        key_norm=reader.tensor(f"{attention}k_norm.weight") if config.head_norms else None,
        attention_output=reader.projection(attention, "o_proj", biased=config.output_bias),
        inner_norm=reader.tensor(f"{place}post_attention_layernorm.weight"),
        gate_up=reader.projection(inner, "gate_proj", "up_proj", biased=config.mlp_bias),
        down=reader.projection(inner, "down_proj", biased=config.mlp_bias),
    )
