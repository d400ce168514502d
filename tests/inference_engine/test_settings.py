import pytest

from cluster_core.errors import SettingsError
from cluster_core.settings_reader import read_section
from inference_engine.settings import EngineSettings, ModelSettings


def test_defaults() -> None:
    assert read_section({}, "engine", EngineSettings) == EngineSettings()
    assert read_section({"model": {"path": "m"}}, "model", ModelSettings).name == ""


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"device": "tpu"}, r"engine\.device"),
        ({"device": "cpu:0"}, r"engine\.device"),
        ({"device": "cuda:x"}, r"engine\.device"),
        ({"dtype": "float16"}, r"engine\.dtype"),
        ({"attention": "flash"}, r"engine\.attention"),
        ({"attention": "compiled", "device": "cuda"}, "compiled runs on the CPU alone"),
        ({"attention": "varlen"}, "varlen needs device cuda"),
        ({"attention": "varlen", "device": "cuda"}, "dtype bfloat16"),
        ({"attention": "triton"}, "triton needs device cuda"),
        ({"threads": -1}, r"engine\.threads"),
        ({"batch_invariant": True, "device": "cuda"}, "batch_invariant"),
        ({"batch_invariant": True, "attention": "reference"}, "batch_invariant"),
        ({"block_size_tokens": 0}, r"engine\.block_size_tokens"),
        ({"block_size": 16}, r"engine\.block_size: unknown key"),
    ],
)
def test_engine_settings_that_are_refused(section: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_section({"engine": section}, "engine", EngineSettings)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, r"model\.path: must be given"),
        ({"path": ""}, r"model\.path"),
        ({"path": "m", "max_context_tokens": -1}, r"model\.max_context_tokens"),
        ({"path": "m", "implementation": "vllm"}, r"model\.implementation: 'vllm' is not known; right are baton"),
    ],
)
def test_model_settings_that_are_refused(section: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_section({"model": section}, "model", ModelSettings)
