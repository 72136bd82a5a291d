import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from deepen.formats.architecture import architecture_from_config

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(("length", "giga_flops"), [(4096, 51.5), (8192, 57.9)])
def test_flops_per_token_of_an_8b_model(length, giga_flops):
    shape = architecture_from_config(LLAMA_8B)
    assert shape.training_flops_per_token(length) / 1e9 == pytest.approx(giga_flops, abs=0.1)
    assert shape.num_parameters / 1e9 == pytest.approx(8.03, abs=0.005)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_parameter_counts_agree_with_the_model_library(family, tied):
    config = AutoConfig.for_model(
        family, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=101, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert architecture_from_config(config.to_dict()).num_parameters == model.num_parameters()


def test_gpt2_counts_agree_with_the_model_library():
    config = AutoConfig.for_model("gpt2", n_embd=64, n_layer=3, n_head=4, vocab_size=101, n_positions=32)
    model = AutoModelForCausalLM.from_config(config)
    assert architecture_from_config(config.to_dict()).num_parameters == model.num_parameters()
