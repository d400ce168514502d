"""What the sections [decode] and [speculation] refuse."""

import pytest

from cluster_core.errors import SettingsError
from cluster_core.settings_reader import read_section
from decode_worker.settings import SpeculationSettings


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"method": "guess"}, "method"),
        ({"max_draft_tokens": 0}, "max_draft_tokens"),
        ({"max_draft_tokens": 65}, "max_draft_tokens"),
        ({"method": "draft_model"}, "draft_model"),
        ({"draft_model": "small"}, "draft_model"),
        ({"method": "draft_model", "draft_model": "small", "draft_total_blocks": -1}, "draft_total_blocks"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_key(section: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError, match=rf"^speculation\.{key}: "):
        read_section({"speculation": section}, "speculation", SpeculationSettings)


def test_a_draft_model_and_every_method_are_accepted() -> None:
    for section in ({"method": "off"}, {}, {"method": "draft_model", "draft_model": "small"}):
        read_section({"speculation": section}, "speculation", SpeculationSettings)
