"""How text becomes a served model's tokens: what its folder says, or bytes where there is no folder."""

from dataclasses import dataclass

from inference_engine.hash_model import HashModel
from inference_engine.served_model import ServedModel
from router.chat_template import ChatTemplate, load_chat_template
from router.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTexts:
    """All that a model knows of text."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None


def load_model_texts(model: ServedModel) -> ModelTexts:
    """Read the files that concern text. Raises `ModelFolderError`."""
    if isinstance(model, HashModel):
        return ModelTexts(tokenizer=byte_tokenizer(model.identity.vocab_size), chat_template=None)
    return ModelTexts(tokenizer=load_tokenizer(model.path), chat_template=load_chat_template(model.path))
