"""The model that a configuration serves: one in a folder, or hashes."""

from cluster_core.errors import SettingsError
from cluster_core.handoff import EXACT
from cluster_core.layout import KvLayout
from cluster_core.settings_reader import Document, read_section
from inference_engine.draft_folder import open_draft_folder
from inference_engine.hash_model import HashModel, make_hash_model
from inference_engine.model_folder import ModelFolder, layout_of, open_model_folder
from inference_engine.settings import HASH, EngineSettings, HashModelSettings, ModelSettings

ServedModel = ModelFolder | HashModel


def open_served_model(document: Document) -> ServedModel:
    """Check the model that ``document`` names and read what is needed of it; no torch. Raises `OperatorError`."""
    settings = read_section(document, "model", ModelSettings)
    if settings.implementation == HASH:
        _refuse_rounding(document)
        shape = read_section(document, "hash_model", HashModelSettings)
        return make_hash_model(settings, shape, read_section(document, "engine", EngineSettings))
    return open_model_folder(settings)


def _refuse_rounding(document: Document) -> None:
    """Raise `SettingsError` where blocks of hashes would be rounded. Which formats there are is another's business."""
    wire_format = document.get("transfer", {}).get("wire_format", EXACT)
    if wire_format != EXACT:
        message = (
            f"transfer.wire_format: the hash model's blocks are no numbers that {wire_format} could round; "
            f"right is {EXACT}"
        )
        raise SettingsError(message)


def open_draft_model(document: Document, served: ServedModel, path: str) -> ModelFolder:
    """Open the folder of a smaller model that guesses for the served one. Raises `OperatorError`."""
    if isinstance(served, HashModel):
        message = "speculation.draft_model: no model can guess hashes; right is method off or prompt_lookup"
        raise SettingsError(message)
    return open_draft_folder(served, read_section(document, "model", ModelSettings), path)


def layout_of_served(model: ServedModel, settings: EngineSettings) -> KvLayout:
    """Return how one block of the model's KV lies in memory."""
    return model.layout if isinstance(model, HashModel) else layout_of(model.config, settings)
