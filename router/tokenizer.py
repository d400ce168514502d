"""Text to token ids and back, exactly as the model folder's ``tokenizer.json`` says.

A beginning-of-text token is added where the file's own post-processor adds one, and nowhere else: transformers'
``AutoTokenizer`` does the same. Padding and truncation that a file may ask for are switched off.
"""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models

from cluster_core.errors import ModelFolderError

TOKENIZER_FILE = "tokenizer.json"
LONG_TEXT_CHARS = 16 * 1024
"""Longer texts go through the library's batch call, which lets other threads run; its single call does not."""


class Tokenizer:
    """One model's tokenizer. Holds no state between calls; may be used from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of ``text``. A chat template writes its own special tokens: pass False for its output."""
        if len(text) < LONG_TEXT_CHARS:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:
            (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def token_id(self, text: str) -> int | None:
        """Return the token that stands for exactly ``text``, special or not; None if there is none."""
        found: int | None = self._backend.token_to_id(text)
        return found

    def special_tokens(self) -> dict[str, int]:
        """Return the tokens that the file marks as special, by their text."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of ``token_ids``; ids that the file does not know have none."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special)
        return text


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder. Raises `ModelFolderError`."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        message = f"{path}: missing; save the model's fast tokenizer there (tokenizer.save_pretrained in transformers)"
        raise ModelFolderError(message)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever it cannot read
        message = f"{path}: not a tokenizer that the tokenizers library can read ({error})"
        raise ModelFolderError(message) from error
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend)


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a tokenizer for a model without one: a text's tokens are its bytes in UTF-8, ids 0 to 255.

    The text of any other id is a space and the id in digits.
    """
    vocabulary = [f"<0x{value:02X}>" for value in range(256)] + [f" {token_id}" for token_id in range(256, vocab_size)]
    token_ids = {text: token_id for token_id, text in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=token_ids, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(backend)
