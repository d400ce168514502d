"""NIXL itself, in processes of its own."""

import subprocess
import sys
from importlib import util

import pytest

from cluster_core.errors import PartUnavailable
from kv_transfer import nixl_transport
from kv_transfer.settings import TransferSettings

TIMEOUT_S = 400.0


@pytest.mark.skipif(
    util.find_spec("nixl_cu12") is None, reason="NIXL is not installed: pip install 'baton-serve[nixl]'"
)
def test_nixl_keeps_the_contract_and_survives_senders_that_are_killed() -> None:
    suite = subprocess.run(
        [sys.executable, "-m", "tests.kv_transfer.nixl_contract", "--tb=short"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert suite.returncode == 0, suite.stdout + suite.stderr


def test_nixl_refuses_a_process_that_has_another_ucx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ucxx", nixl_transport)
    with pytest.raises(PartUnavailable, match="two copies of UCX"):
        nixl_transport.load_nixl(TransferSettings(transport="nixl"))


def test_without_nixl_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ucxx", raising=False)
    monkeypatch.setattr(nixl_transport, "_WHEELS", ("nixl_that_is_not_there",))
    monkeypatch.setattr(nixl_transport, "_ENVIRONMENT", {})
    with pytest.raises(PartUnavailable, match="pip install"):
        nixl_transport.load_nixl(TransferSettings(transport="nixl"))
