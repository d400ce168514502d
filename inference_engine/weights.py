"""The weights of a model, read once from its safetensors files and laid out as the decoder multiplies them.

Queries, keys and values are one projection, gate and up another: one large product where the files hold three and two.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from cluster_core.errors import ModelFolderError
from inference_engine.code_builder import GROUP
from inference_engine.model_config import ModelConfig
from inference_engine.model_folder import ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """``x`` becomes ``x · weightᵀ + bias``."""

    weight: torch.Tensor  # [outputs, inputs]
    bias: torch.Tensor | None  # [outputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer, or all of them: then every tensor has one dimension more, the layers, before its own."""

    input_norm: torch.Tensor  # [hidden]
    query_key_value: Projection  # [(heads + 2 * kv_heads) * head_dim, hidden]
    query_norm: torch.Tensor | None  # [head_dim]
    key_norm: torch.Tensor | None  # [head_dim]
    attention_output: Projection  # [hidden, heads * head_dim]
    inner_norm: torch.Tensor  # [hidden]
    gate_up: Projection  # [2 * inner, hidden]
    down: Projection  # [hidden, inner]

    def layer(self, index: int) -> "LayerWeights":
        """Return one of all layers, in the same memory."""

        def projection(whole: Projection) -> Projection:
            return Projection(weight=whole.weight[index], bias=None if whole.bias is None else whole.bias[index])

        return LayerWeights(
            input_norm=self.input_norm[index],
            query_key_value=projection(self.query_key_value),
            query_norm=None if self.query_norm is None else self.query_norm[index],
            key_norm=None if self.key_norm is None else self.key_norm[index],
            attention_output=projection(self.attention_output),
            inner_norm=self.inner_norm[index],
            gate_up=projection(self.gate_up),
            down=projection(self.down),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """All weights; ``head`` is the embedding itself where the two are tied."""

    embedding: torch.Tensor  # [vocabulary, hidden]
    stacked: LayerWeights
    layers: tuple[LayerWeights, ...]  # the same one by one
    final_norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [vocabulary, hidden]


def load_weights(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Read all weights as ``dtype``, each once and into its place.

    On the CPU the rows of a matrix take whole groups of the compiled kernels: zeros follow what the tensors show.
    Raises `ModelFolderError` when a file changed since the folder was opened.
    """
    try:
        with ExitStack() as stack:
            reader = _Reader(folder, dtype, device, stack)
            config = folder.config
            assert isinstance(config, ModelConfig)
            embedding = reader.rows("model.embed_tokens.weight")
            stacked = _read_layers(reader, config)
            return ModelWeights(
                embedding=embedding,
                stacked=stacked,
                layers=tuple(stacked.layer(index) for index in range(config.layers)),
                final_norm=reader.tensor("model.norm.weight"),
                head=embedding if config.tied_embeddings else reader.rows("lm_head.weight"),
            )
    except (OSError, SafetensorError, KeyError) as error:
        message = f"{folder.path}: weights cannot be read ({error}); download the model folder again"
        raise ModelFolderError(message) from error


class _Reader:
    """Finds a tensor in whichever file holds it; files are mapped, not read whole."""

    def __init__(self, folder: ModelFolder, dtype: torch.dtype, device: torch.device, stack: ExitStack) -> None:
        self._multiple = GROUP if device.type == "cpu" else 1
        self._dtype = dtype
        self._device = device
        self._files = {}
        for path in folder.weight_files:
            file = stack.enter_context(safe_open(path, framework="pt"))
            self._files.update(dict.fromkeys(file.keys(), file))

    def tensor(self, name: str) -> torch.Tensor:
        """Return the named tensor, in memory of its own."""
        found: torch.Tensor = self._files[name].get_tensor(name)
        return found.clone().to(self._device, self._dtype)

    def rows(self, name: str) -> torch.Tensor:
        """Return the named matrix ``[outputs, inputs]``."""
        return self.matrices([[name]])[0]

    def matrices(self, names: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return for each layer its named matrices, one below the other, ``[layers, outputs, inputs]``."""
        shapes = [self._files[name].get_slice(name).get_shape() for name in names[0]]
        outputs, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
        width = -(-inputs // self._multiple) * self._multiple
        whole = torch.empty((len(names), outputs, width), dtype=self._dtype, device=self._device)
        whole[:, :, inputs:] = 0
        for layer, parts in enumerate(names):
            first = 0
            for name in parts:
                part = self._files[name].get_tensor(name)
                whole[layer, first : first + len(part), :inputs] = part
                first += len(part)
        return whole[:, :, :inputs]

    def vectors(self, names: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return for each layer its named vectors, one after another, ``[layers, length]``."""
        return torch.stack([torch.cat([self.tensor(name) for name in parts]) for parts in names])


def _read_layers(reader: _Reader, config: ModelConfig) -> LayerWeights:
    places = [f"model.layers.{layer}." for layer in range(config.layers)]

    def projection(names: Sequence[str], *, biased: bool) -> Projection:
        """Return the named linear layers of one place in every layer as one."""
        return Projection(
            weight=reader.matrices([[f"{place}{name}.weight" for name in names] for place in places]),
            bias=reader.vectors([[f"{place}{name}.bias" for name in names] for place in places]) if biased else None,
        )

    def norm(name: str) -> torch.Tensor:
        return reader.vectors([[f"{place}{name}.weight"] for place in places])

    return LayerWeights(
        input_norm=norm("input_layernorm"),
        query_key_value=projection([f"self_attn.{kind}_proj" for kind in "qkv"], biased=config.qkv_bias),
        query_norm=norm("self_attn.q_norm") if config.head_norms else None,
        key_norm=norm("self_attn.k_norm") if config.head_norms else None,
        attention_output=projection(["self_attn.o_proj"], biased=config.output_bias),
        inner_norm=norm("post_attention_layernorm"),
        gate_up=projection(["mlp.gate_proj", "mlp.up_proj"], biased=config.mlp_bias),
        down=projection(["mlp.down_proj"], biased=config.mlp_bias),
    )
