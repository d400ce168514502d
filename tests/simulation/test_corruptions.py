"""The corruption campaign catches everything, refuses nothing that is right, and notices checks that are missing."""

from collections.abc import Sequence

import pytest

from cluster_core.blocks import BlockReference
from cluster_core.identity import BlockHash
from kv_transfer.digest import BlockDigests, DigestMemo
from kv_transfer.exporter import Export
from kv_transfer.import_session import ImporterSession
from kv_transfer.session import SendBlocks
from simulation import corruptions
from simulation.corrupting import AT_SOURCE, IN_FLIGHT, IN_MESSAGES, Corruption
from simulation.corruptions import run_campaign


def test_every_corruption_is_caught_and_nothing_else_is_refused() -> None:
    campaign = run_campaign(seed=0, corruptions=300, blocks=10_000)
    assert not campaign.wrong
    assert campaign.caught == campaign.injected == 300
    assert set(campaign.kinds) == {kind.value for kind in Corruption}
    assert campaign.clean_blocks >= 10_000
    assert not campaign.false_alarms
    assert campaign.packed > 40


def test_every_kind_is_of_one_place() -> None:
    assert len(IN_FLIGHT) + len(IN_MESSAGES) + len(AT_SOURCE) == len(Corruption)
    assert set(Corruption) == IN_FLIGHT | IN_MESSAGES | AT_SOURCE


def test_a_campaign_is_the_same_every_time() -> None:
    assert run_campaign(seed=3, corruptions=40, blocks=100).facts() == (
        run_campaign(seed=3, corruptions=40, blocks=100).facts()
    )


def test_digests_that_are_not_compared_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImporterSession, "_compare", lambda _self, _position: None)
    wrong = run_campaign(seed=0, corruptions=len(Corruption), blocks=0).wrong
    for kind in IN_FLIGHT | {Corruption.OVERWRITTEN}:
        assert any(each.startswith(f"{kind.value}: accepted") for each in wrong), kind


def test_generations_that_are_not_compared_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def believe_block(_export: Export, _action: SendBlocks) -> bool:
        return True

    monkeypatch.setattr(Export, "_still_sealed", believe_block)
    wrong = run_campaign(seed=0, corruptions=len(Corruption), blocks=0).wrong
    assert [each.partition(":")[0] for each in wrong] == [Corruption.REUSED_UNCHANGED.value]


def test_digests_of_the_sealing_in_packed_blocks_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: dict[tuple[int, BlockHash | None], bytes] = {}
    of_memo, of_rows = DigestMemo.of, BlockDigests.of

    def noted(memo: DigestMemo, blocks: Sequence[BlockReference]) -> list[bytes]:
        digests = of_memo(memo, blocks)
        sealed.update({(block.position, block.hash): each for block, each in zip(blocks, digests, strict=True)})
        return digests

    class Remembered(BlockDigests):
        def of(
            self, indices: Sequence[int], positions: Sequence[int], hashes: Sequence[BlockHash | None]
        ) -> Sequence[bytes]:
            fresh = of_rows(self, indices, positions, hashes)
            names = zip(positions, hashes, strict=True)
            return [sealed.get(name, digest) for name, digest in zip(names, fresh, strict=True)]

    monkeypatch.setattr(DigestMemo, "of", noted)
    monkeypatch.setattr("kv_transfer.wire.BlockDigests", Remembered)
    monkeypatch.setattr(corruptions, "PACKED", 1.0)
    wrong = run_campaign(seed=0, corruptions=2 * len(Corruption), blocks=0).wrong
    at_source = {Corruption.OVERWRITTEN, Corruption.FLIPPED_AT_SOURCE, Corruption.SWAPPED_AT_SOURCE}
    for kind in at_source:
        assert any(each.startswith(f"{kind.value}: accepted") for each in wrong), kind
