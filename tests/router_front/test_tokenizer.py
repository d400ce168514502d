from pathlib import Path
from typing import Any

import pytest

from cluster_core.errors import ModelFolderError
from router.tokenizer import load_tokenizer
from tests.router_front import tokenizers_for_tests as kinds

TEXTS = ["", "the 語 é", "  two  spaces\n", "a<|end|>b", "<|bos|>", "👩‍👩‍👧‍👦\t#", "hello a"]


@pytest.mark.parametrize(
    ("kind", "special_tokens"),
    [(kinds.byte_level, {}), (kinds.byte_fallback, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})],
)
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, kind: Any, special_tokens: dict[str, str]) -> None:
    transformers = pytest.importorskip("transformers")
    kinds.write_folder(tmp_path, kind(), **special_tokens)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS:
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == reference(text, add_special_tokens=special).input_ids
            assert tokenizer.decode(ids, skip_special=special) == reference.decode(
                ids, skip_special_tokens=special, clean_up_tokenization_spaces=False
            )


def test_the_files_own_post_processor_alone_adds_a_beginning(tmp_path: Path) -> None:
    kinds.write_folder(tmp_path, kinds.byte_level())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a", add_special_tokens=True)[0] == kinds.BYTE_LEVEL_SIZE - 2
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    backend = kinds.byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    kinds.write_folder(tmp_path, backend)
    assert len(load_tokenizer(tmp_path).encode("abcdefgh", add_special_tokens=False)) == 8


def test_ids_without_a_token_have_no_text(tmp_path: Path) -> None:
    kinds.write_folder(tmp_path, kinds.byte_level())
    tokenizer = load_tokenizer(tmp_path)
    (letter,) = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.decode([letter, 4_000_000_000, letter], skip_special=True) == "aa"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"tokenizer.json: missing; save"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0", "model": {"type": "BPE"', "\x00\x01"])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFolderError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path)
