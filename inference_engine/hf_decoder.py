"""A decoder that `transformers` computes, with its attention over our pool.

All rows of a step go in as one sequence of one batch, each with its own position; only attention knows which rows
belong together, as in our own decoder. Nothing is kept in the model from step to step.
"""

import inspect
from typing import Any

import torch
import transformers

from cluster_core.errors import ModelFolderError
from inference_engine.attention import AttentionBackend
from inference_engine.attention_capped import CappedAttention
from inference_engine.batch import Batch
from inference_engine.hf_attention import PROBING, SERVING, CurrentStep, PooledStep, register
from inference_engine.hf_config import HfConfig
from inference_engine.hf_probe import probe
from inference_engine.kv_pool import DTYPES, KvPool
from inference_engine.model_folder import ModelFolder
from inference_engine.settings import EngineSettings

_CAPPED = ("auto", "reference")


class HfModel:
    """A model that was found to fit, not yet bound to a pool."""

    def __init__(self, model: Any, current: CurrentStep, windows: tuple[int, ...], *, capped: bool) -> None:
        self.model = model
        self.current = current
        self.windows = windows
        self.capped = capped
        """Its scores are capped or have sinks, which `CappedAttention` alone computes."""


class HfDecoder:
    """A model, bound to a pool and a way to attend over it."""

    def __init__(self, loaded: HfModel, pool: KvPool, attention: AttentionBackend) -> None:
        assert isinstance(attention, CappedAttention) or not loaded.capped
        self._loaded = loaded
        self._pool = pool
        self.attention = attention
        self._keeps_rows = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters

    def logits(self, batch: Batch) -> torch.Tensor:
        """Compute the batch, write its KV into the pool, and return the logits ``[draws, vocabulary]`` in float32."""
        loaded = self._loaded
        step = self.attention.prepare(batch)
        loaded.current.step = PooledStep(self._pool, batch, step, loaded.windows)
        keep = {"logits_to_keep": batch.draw_rows} if self._keeps_rows else {}
        try:
            output = loaded.model(
                input_ids=batch.token_ids[None], position_ids=batch.positions[None], use_cache=False, **keep
            )
        finally:
            loaded.current.step = None
        logits: torch.Tensor = output.logits[0]
        return (logits if self._keeps_rows else logits[batch.draw_rows]).float()


def load_hf_model(folder: ModelFolder, config: HfConfig, settings: EngineSettings, device: torch.device) -> HfModel:
    """Read the weights into the model that config.json names, and probe it.

    Raises `ModelFolderError` when they cannot be read, or when the pool cannot serve what the model does.
    """
    register()
    library: Any = transformers  # half of it has no types
    library.utils.logging.disable_progress_bar()
    try:
        model, info = library.AutoModelForCausalLM.from_pretrained(
            folder.path,
            attn_implementation=PROBING,
            dtype=DTYPES[settings.dtype],
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # what is wrong with a model, each of them says in its own way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = (
            f"{folder.path}: transformers cannot load it with attention of our own ({reason[:300]}); name another model"
        )
        raise ModelFolderError(message) from error
    missing = sorted(info["missing_keys"])
    if missing:
        message = f"{folder.path}: tensor {missing[0]} is in none of the weight files; download the whole model folder"
        raise ModelFolderError(message)
    model.requires_grad_(requires_grad=False).train(mode=False).to(device)
    current = CurrentStep(model)
    place = str(folder.path / "config.json")
    capped = probe(model, current, config, place)
    if capped and settings.attention not in _CAPPED:
        message = (
            f"{place}: the model caps its attention scores (attn_logit_softcapping) or gives them sinks, which "
            f"engine.attention {settings.attention!r} does not compute; right are {' and '.join(_CAPPED)}"
        )
        raise ModelFolderError(message)
    model.set_attn_implementation(SERVING)
    return HfModel(model, current, config.windows, capped=capped)
