"""`baton plan`: shapes read from config.json, counted weights, what is printed, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cluster_core.capacity import GroupedHeads, LatentHeads
from cluster_launcher.__main__ import main
from cluster_launcher.plan_model import read_shape
from tests.model_fixtures import make_model

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}
MISTRAL_7B = {
    **LLAMA_8B,
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 32_000,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
}
_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
}
_EXPERTS = {"num_experts": 6, "moe_intermediate_size": 24}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 12,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
}


def _write(folder: Path, values: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def _facts(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == code
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen2Moe", {**_EXPERTS, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2}),
        ("Qwen3Moe", {**_EXPERTS, "mlp_only_layers": [1]}),
        ("Gemma", {}),
        ("Gemma2", {}),
        ("Gemma3Text", {}),
        ("Phi3", {}),
        ("DeepseekV2", {**_LATENT, "q_lora_rank": None}),
        ("DeepseekV3", _LATENT),
    ],
)
def test_weights_of_other_families_are_counted_as_transformers_has_them(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    config = getattr(transformers, f"{family}Config")(**_SMALL, **fields)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    tensors = dict(model.named_parameters(remove_duplicate=True))
    corrections = [each for name, each in model.named_buffers() if name.endswith("e_score_correction_bias")]
    shape = read_shape(tmp_path)
    assert shape.parameters == sum(each.numel() for each in (*tensors.values(), *corrections))
    assert shape.layers == 4
    if family.startswith("Deepseek"):
        assert shape.attention == LatentHeads(heads=4, latent_dim=16, rotated_dim=4)
    else:
        assert shape.attention == GroupedHeads(heads=4, kv_heads=2, head_dim=8)


@pytest.mark.parametrize("kind", ["mistral", "qwen2_window", "qwen3", "untied", "llama_bias"])
def test_weights_of_the_served_families_are_those_of_their_files(kind: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, kind)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert read_shape(folder).parameters == sum(each.numel() for each in reference.parameters())


def test_windows_of_mixed_models(tmp_path: Path) -> None:
    transformers.Gemma2Config(**_SMALL, sliding_window=32).save_pretrained(tmp_path)
    assert read_shape(tmp_path).windows == (32, 0, 32, 0)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["layer_types"]
    assert read_shape(Path(_write(tmp_path, values))).windows == (32, 0, 32, 0)
    assert read_shape(Path(_write(tmp_path, {**values, "model_type": "gemma3_text"}))).windows == (32, 32, 32, 32)


def test_llama_8b_on_an_h100(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _facts(capsys, _write(tmp_path, LLAMA_8B), "--context", "4096", "--context", "131072")
    assert facts["parameters"] == 8_030_261_248
    assert facts["kv_bytes_per_token"] == 131_072
    assert facts["block_bytes"] == 2 << 20
    (gpu,) = facts["gpus"]
    left = 80 * 10**9 - 8 * 10**9 - facts["weight_bytes"]
    assert gpu["kv_bytes"] == left
    assert gpu["blocks"] == left // (2 << 20)
    assert [context["largest_batch"] for context in gpu["contexts"]] == [gpu["blocks"] // 256, gpu["blocks"] // 8192]
    assert facts["prompts"][0]["transfer_s"]["100"] == pytest.approx(0.0429, abs=1e-4)
    assert facts["hiding_gigabits_per_s"] == pytest.approx(10.5, abs=0.05)


def test_a_window_bounds_blocks_and_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _facts(capsys, str(Path(_write(tmp_path, MISTRAL_7B)) / "config.json"), "--gpu", "a100-80")
    assert facts["window_tokens"] == 4096
    assert [context["blocks"] for context in facts["gpus"][0]["contexts"]] == [64, 256, 257, 257]
    assert {prompt["moved_bytes"] for prompt in facts["prompts"][1:]} == {4096 * 131_072}


def test_what_does_not_fit_is_exit_code_1_and_names_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _write(tmp_path, LLAMA_8B)
    arguments = [folder, "--gpu", "L4-24", "--dtype", "float32"]
    facts = _facts(capsys, *arguments, code=1)
    assert "--tensor-parallel 2" in facts["gpus"][0]["misfits"][0]
    assert main(["plan", *arguments]) == 1
    assert "does not fit" in capsys.readouterr().out
    _facts(capsys, folder, "--gpu", "L4-24")
    _facts(capsys, folder, "--gpu", "L4-24", "--context", "131072", code=1)


def test_a_plan_for_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", _write(tmp_path, LLAMA_8B), "--gpu", "H100-80", "--gpu", "H200-141"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "131,072 bytes a token",
        "16.06 GB",
        "26,674 blocks",
        "H200-141",
        "data sheet",
        "10.5 Gb/s",
        "42.9 ms",
    ):
        assert part in said, part


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (LLAMA_8B, ["--gpu", "H900"], "H100-80"),
        (LLAMA_8B, ["--dtype", "int3"], "bfloat16"),
        (LLAMA_8B, ["--tensor-parallel", "7"], "1, 2, 4, 8, 16, 32"),
        (LLAMA_8B, ["--tensor-parallel", "0"], "--tensor-parallel"),
        (LLAMA_8B, ["--context", "200000"], "131072"),
        (LLAMA_8B, ["--block-size", "0"], "--block-size"),
        (LLAMA_8B, ["--workspace", "100"], "--workspace"),
        (LLAMA_8B, ["--prefill-rate", "0"], "--prefill-rate"),
        (LLAMA_8B, ["--weights-gb", "nan"], "--weights-gb"),
        ({**LLAMA_8B, "hidden_size": "big"}, [], "hidden_size"),
        ({**LLAMA_8B, "architectures": ["FalconForCausalLM"], "model_type": "falcon"}, [], "--weights-gb"),
        ({"architectures": ["GPT2LMHeadModel"], "n_layer": 12}, ["--weights-gb", "1"], "num_"),
        ({**LLAMA_8B, "architectures": [], "layer_types": ["linear_attention"] * 32}, ["--weights-gb", "1"], "layer_t"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    values: dict[str, Any], options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", _write(tmp_path, values), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert said in printed.err


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_weights_that_are_given_stand_in_for_an_unknown_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**LLAMA_8B, "architectures": ["FalconForCausalLM"], "model_type": "falcon"}
    facts = _facts(capsys, _write(tmp_path, values), "--weights-gb", "15.5")
    assert facts["weight_bytes"] == 15_500_000_000
    assert facts["parameters"] is None
