"""The hash model: its settings, and a definition that must never change unnoticed."""

import hashlib
from pathlib import Path

import pytest
import xxhash

from cluster_core.errors import OperatorError, SettingsError
from cluster_core.settings_reader import read_section
from inference_engine.hash_model import LONGEST_CONTEXT, HashModel, hash_answer
from inference_engine.served_model import layout_of_served, open_draft_model, open_served_model
from inference_engine.settings import EngineSettings, HashModelSettings
from tests.inference_engine.hash_models import hash_model, hash_sampling, random_tokens


def test_the_definition_in_the_plainest_words() -> None:
    model = hash_model(block_size=2, layers=2, kv_heads=1, head_dim=2)
    token_bytes, head_bytes = 32, 8
    kv = hashlib.shake_128(b"baton-hash-kv-1|0").digest(token_bytes)
    kvs = []
    for token_id in (7, 8, 9):
        kv = hashlib.blake2b(kv + token_id.to_bytes(4, "little"), digest_size=token_bytes).digest()
        kvs.append(kv)
    full = b"".join(
        kvs[slot][head : head + head_bytes] for head in range(0, token_bytes, head_bytes) for slot in (0, 1)
    )
    read = xxhash.xxh3_128_digest(full + kvs[2])
    greedy = hashlib.blake2b(read, digest_size=16).digest()
    assert hash_answer(model, [7, 8, 9], hash_sampling(1)) == [int.from_bytes(greedy, "little") % (1 << 24)]
    seeded = hashlib.blake2b(read + (5).to_bytes(8, "little") + (3).to_bytes(8, "little"), digest_size=16).digest()
    assert hash_answer(model, [7, 8, 9], hash_sampling(1, 0.3, 5)) == [int.from_bytes(seeded, "little") % (1 << 24)]


def test_answers_are_fixed_for_ever() -> None:
    assert hash_answer(hash_model(), [1, 2, 3], hash_sampling(3)) == [1497783, 5100140, 9278643]
    assert hash_answer(hash_model(layers=9), [1, 2, 3], hash_sampling(3, 1.0, -1)) == [15151252, 3327314, 1889357]


def test_an_answer_ends_at_a_stop_token() -> None:
    model = hash_model(vocab_size=256, eos_tokens=128)
    ends = [
        hash_answer(model, random_tokens(3, seed), hash_sampling(9, stop_token_ids=model.eos_token_ids))
        for seed in range(50)
    ]
    assert model.eos_token_ids == frozenset(range(128, 256))
    assert {len(answer) for answer in ends} >= {1, 2, 3, 4}
    assert all(answer[-1] >= 128 for answer in ends if len(answer) < 9)
    assert all(token < 128 for answer in ends for token in answer[:-1])


def test_it_is_served_without_a_folder() -> None:
    model = open_served_model({"model": {"implementation": "hash"}, "engine": {"block_size_tokens": 8}})
    assert isinstance(model, HashModel)
    assert (model.identity.name, model.identity.max_context_tokens) == ("hash", LONGEST_CONTEXT)
    assert layout_of_served(model, EngineSettings(block_size_tokens=8)).block_bytes == 8 * 32
    named = {"implementation": "hash", "name": "mine", "max_context_tokens": 100}
    assert open_served_model({"model": named}).identity.max_context_tokens == 100
    assert open_served_model({"model": named}).identity.name == "mine"


def test_what_changes_answers_changes_the_fingerprint_and_step_times_do_not() -> None:
    plain = hash_model().identity.fingerprint
    assert plain == hash_model(decode_step_s=1.0, prefill_tokens_per_s=5.0).identity.fingerprint
    assert len({plain, hash_model(seed=1).identity.fingerprint, hash_model(vocab_size=300).identity.fingerprint}) == 3


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"vocab_size": 255}, r"^hash_model\.vocab_size: must be 256 to"),
        ({"eos_tokens": 129}, r"^hash_model\.eos_tokens: must be 0 to 128"),
        ({"layers": 0}, r"^hash_model\.layers"),
        ({"head_dim": -2}, r"^hash_model\.head_dim"),
        ({"kv_heads": 4097}, r"^hash_model\.kv_heads"),
        ({"prefill_tokens_per_s": -1.0}, r"^hash_model\.prefill_tokens_per_s"),
        ({"decode_step_s": float("inf")}, r"^hash_model\.decode_step_s"),
        ({"speed": 1}, r"^hash_model\.speed: unknown key"),
    ],
)
def test_settings_that_are_refused(section: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_section({"hash_model": section}, "hash_model", HashModelSettings)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"model": {"implementation": "hash", "path": "m"}}, r"^model\.path: the hash model has no folder"),
        ({"model": {"implementation": "hash", "max_context_tokens": 1 << 30}}, r"^model\.max_context_tokens"),
        ({"model": {"implementation": "hash"}, "engine": {"device": "cuda"}}, r"^engine\.device: .* right is cpu"),
        (
            {"model": {"implementation": "hash"}, "transfer": {"wire_format": "fp8"}},
            r"^transfer\.wire_format: .* exact",
        ),
    ],
)
def test_documents_that_are_refused(document: dict[str, object], words: str) -> None:
    with pytest.raises(OperatorError, match=words):
        open_served_model(document)


def test_no_model_guesses_for_it(tmp_path: Path) -> None:
    document = {"model": {"implementation": "hash"}}
    with pytest.raises(SettingsError, match=r"^speculation\.draft_model: no model can guess hashes"):
        open_draft_model(document, open_served_model(document), str(tmp_path))
