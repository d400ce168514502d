"""The folder of a draft model, opened and checked without torch, before anything is started."""

from pathlib import Path

from cluster_core.errors import ModelFolderError
from inference_engine.json_fields import read_json_object
from inference_engine.model_folder import ModelFolder, open_model_folder
from inference_engine.settings import ModelSettings


def open_draft_folder(served: ModelFolder, settings: ModelSettings, path: str) -> ModelFolder:
    """Open the draft model's folder; ``settings`` are the served model's.

    Raises `ModelFolderError` for what `open_model_folder` refuses, and where a token id means another token.
    """
    draft = open_model_folder(ModelSettings(path=path, implementation=settings.implementation))
    own, other = served.identity.vocab_size, draft.identity.vocab_size
    if own != other:
        message = (
            f"speculation.draft_model: {draft.path} has {other} tokens, the model {own}; take one that has as many"
        )
        raise ModelFolderError(message)
    files = [folder / "tokenizer.json" for folder in (served.path, draft.path)]
    if files[0].read_bytes() != files[1].read_bytes() and _vocabulary(files[0]) != _vocabulary(files[1]):
        message = f"speculation.draft_model: the tokens of {draft.path} are not the model's; take one of its family"
        raise ModelFolderError(message)
    return draft


def _vocabulary(file: Path) -> object:
    """Return what tokenizer.json says of the tokens; how text is cut into them does not matter here."""
    values = read_json_object(file)
    model, added = values.get("model"), values.get("added_tokens")
    tokens = model.get("vocab") if isinstance(model, dict) else None
    special = [(token.get("id"), token.get("content")) for token in added] if isinstance(added, list) else None
    return tokens, special
