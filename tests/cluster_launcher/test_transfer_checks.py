"""What is said before anything starts, where blocks could not be handed over as the file says."""

from pathlib import Path

import pytest

from cluster_core.errors import PartUnavailable, SettingsError
from cluster_launcher import configuration as under_test
from cluster_launcher.configuration import (
    Configuration,
    check_model,
    check_surroundings,
    check_transfer,
    configuration_of,
)
from cluster_launcher.network_findings import nixl


def configured(**transfer: object) -> Configuration:
    return configuration_of({"model": {"implementation": "hash"}, "transfer": transfer}, Path("test.toml"))


def test_the_hash_models_blocks_are_not_rounded() -> None:
    assert check_model(configured(wire_format="exact")).identity.name == "hash"
    with pytest.raises(SettingsError, match=r"^transfer\.wire_format: .* right is exact$"):
        check_surroundings(configured(wire_format="int8"))


def test_a_transport_whose_library_is_not_there_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "NIXL_PACKAGES", ("nixl-of-nowhere",))
    with pytest.raises(PartUnavailable, match="pip install"):
        check_transfer(configured(transport="nixl"))
    check_transfer(configured(transport="ucx"))


def test_the_doctor_says_whether_nixl_is_here() -> None:
    assert "nixl" in nixl().found
