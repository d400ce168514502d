"""Tiny tokenizers of the kinds that models come with, built in memory or written to a folder."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from router.tokenizer import Tokenizer

SPECIAL = ("<|bos|>", "<|end|>")
BYTE_LEVEL_SIZE = 256 + 3 + len(SPECIAL)
END_ID = BYTE_LEVEL_SIZE - 1


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's, Llama 3's and Qwen's kind: every byte is a token, some pairs are merged across characters' borders."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é語")[0][0]
    merges = [("t", "h"), (encoded[0], encoded[1]), (encoded[2], encoded[3])]
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", BYTE_LEVEL_SIZE - 2)]
    )
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    """Llama 2's and Mistral's kind: words with a mark for the space before them, bytes for unknown characters."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehlo", "▁a", "he"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    unknown = {"unk_token": "<unk>", "fuse_unk": True}
    model = models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("h", "e")], byte_fallback=True, **unknown)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def in_memory(backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(backend)


def write_folder(folder: Path, backend: tokenizers.Tokenizer, **config: Any) -> Path:
    """Write what a model folder has of a tokenizer."""
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True},
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
