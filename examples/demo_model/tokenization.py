"""Train the byte-level BPE tokenizer, write its files, and turn the corpus into one array of token ids.

A space belongs to the word or sign before it (`"def "`, `"= "`), unlike in most tokenizers. A prompt such as `def `
then ends on a whole token that the model has met a thousand times. Newlines and indentation are tokens of their own
for the same reason: a prompt may end after either.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.demo_model.conversations import CHAT_TEMPLATE, END, SPECIAL_TOKENS, chats
from examples.demo_model.corpus import SourceFile

PIECES = r"\w+ ?|[^\w\s]+ ?|\n+| +|\s"
DEFINITION_STARTS = ("def ", "class ", "import ", "from ", "async ")

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenisedText:
    """One stream of token ids and the positions at which a training window may start."""

    token_ids: TokenIds  # [tokens]
    line_starts: TokenIds  # [lines], positions of the first token of each line
    definition_starts: TokenIds  # [definitions], line starts that open a top-level statement, a document or a chat


def train_tokenizer(files: Sequence[SourceFile], vocab_size: int) -> Tokenizer:
    """Train the tokenizer on the files; the special tokens take the first ids, `<|endoftext|>` is 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.code for file in files), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_tokens: int) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that names the special tokens and the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def tokenise(tokenizer: Tokenizer, files: Sequence[SourceFile], cache_folder: Path) -> TokenisedText:
    """Encode the files, each followed by the chats made from it; kept in `cache_folder` under a hash of the input."""
    documents = list(_documents(files))
    digest = hashlib.sha256(tokenizer.to_str().encode())
    for document in documents:
        digest.update(document.encode())
    cached = cache_folder / f"tokens-{digest.hexdigest()[:16]}.npy"
    if cached.exists():
        token_ids: TokenIds = np.load(cached)
    else:
        encodings = tokenizer.encode_batch_fast(documents)
        token_ids = np.concatenate([np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings])
        cache_folder.mkdir(parents=True, exist_ok=True)
        np.save(cached, token_ids)
    return _with_starts(tokenizer, token_ids)


def _documents(files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        yield file.code + END
        yield from chats(file)


def _with_starts(tokenizer: Tokenizer, token_ids: TokenIds) -> TokenisedText:
    vocabulary = tokenizer.get_vocab()
    end = tokenizer.token_to_id(END)
    newlines = [i for token, i in vocabulary.items() if token.strip("Ċ") == "" or i == end]  # Ċ: byte-level newline
    openers = [tokenizer.token_to_id(word.replace(" ", "Ġ")) for word in DEFINITION_STARTS]
    openers += [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    line_starts = np.flatnonzero(np.isin(token_ids[:-1], newlines)) + 1
    is_opener = np.isin(token_ids[line_starts], [i for i in openers if i is not None]) | (
        token_ids[line_starts - 1] == end
    )
    return TokenisedText(token_ids=token_ids, line_starts=line_starts, definition_starts=line_starts[is_opener])
