"""The tokenizer of a model without a folder."""

import pytest

from router.detokenizer import Detokenizer
from router.tokenizer import byte_tokenizer


@pytest.mark.parametrize("text", ["", "plain", "täxt €\n\0", " 300 ", "<0x41>", "👩‍🚀" * 9, "long " * 9_000])
def test_a_text_is_its_bytes_and_comes_back(text: str) -> None:
    tokenizer = byte_tokenizer(1_000)
    assert tokenizer.encode(text, add_special_tokens=True) == list(text.encode())
    assert tokenizer.decode(list(text.encode()), skip_special=True) == text


def test_other_ids_read_as_numbers() -> None:
    detokenizer = Detokenizer(byte_tokenizer(1_000), skip_special=True)
    shown = [detokenizer.feed(token_id) for token_id in (65, 256, 999, *"ä".encode(), 300)]
    assert shown == ["A", " 256", " 999", "", "ä", " 300"]
    assert detokenizer.finish() == ""


def test_it_has_no_special_tokens() -> None:
    assert byte_tokenizer(300).special_tokens() == {}
