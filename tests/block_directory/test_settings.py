import pytest

from block_directory.settings import DirectorySettings
from cluster_core.errors import SettingsError
from cluster_core.settings_reader import read_section


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "http://there"),
        ("cluster", "a b"),
        ("cluster", ""),
        ("cluster", "x}:{y"),
        ("lease_s", 0),
        ("call_timeout_s", -1.0),
        ("tail_wait_s", float("nan")),
        ("retry_max_s", 0.001),
        ("resync_spread_s", -0.1),
        ("event_log_entries", 0),
        ("index_max_blocks", 0),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"directory\.{key}"):
        read_section({"directory": {key: value}}, "directory", DirectorySettings)


def test_the_section_may_be_left_out() -> None:
    assert read_section({}, "directory", DirectorySettings) == DirectorySettings()
