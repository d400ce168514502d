"""A cluster is ready when its router answers whoever asks, and not before."""

import pytest

from cluster_core.errors import PartUnavailable
from cluster_launcher import readiness
from cluster_launcher.readiness import SOON_S, wait_until_it_answers


async def test_it_is_asked_until_it_answers_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_PAUSE_S", 0.0)
    answers, asked = iter((False, False, True)), list[tuple[str, float]]()

    def ask(address: str, timeout_s: float) -> bool:
        asked.append((address, timeout_s))
        return next(answers)

    await wait_until_it_answers("127.0.0.1:7", 60.0, ask)
    assert asked == [("127.0.0.1:7", SOON_S)] * 3


async def test_one_that_never_does_is_not_called_ready() -> None:
    with pytest.raises(
        PartUnavailable, match=r"router: it listens at 127\.0\.0\.1:7, .* overloaded; .*start_timeout_s"
    ):
        await wait_until_it_answers("127.0.0.1:7", 0.0, lambda _address, _timeout_s: False)
