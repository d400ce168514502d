"""The corruption campaign catches everything, refuses nothing that is right, and notices checks that are missing."""

import pytest

from kv_transfer.exporter import Export
from kv_transfer.import_session import ImporterSession
from kv_transfer.session import SendBlocks
from simulation.corrupting import AT_SOURCE, IN_FLIGHT, IN_MESSAGES, Corruption
from simulation.corruptions import run_campaign


def test_every_corruption_is_caught_and_nothing_else_is_refused() -> None:
    campaign = run_campaign(seed=0, corruptions=300, blocks=10_000)
    assert not campaign.wrong
    assert campaign.caught == campaign.injected == 300
    assert set(campaign.kinds) == {kind.value for kind in Corruption}
    assert campaign.clean_blocks >= 10_000
    assert not campaign.false_alarms


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
