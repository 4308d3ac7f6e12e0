"""The tables against the real libraries: what they save is whole, and nothing else is."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ckptdoctor.coverage import coverage_of
from ckptdoctor.coverage.families import FAMILIES
from ckptdoctor.coverage.huggingface import _now
from ckptdoctor.coverage.templates import asked_by
from ckptdoctor.findings import Severity
from ckptdoctor.formats import open_path

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),
]

SMALL: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8, "n_embd": 16, "n_layer": 2,
    "max_position_embeddings": 12, "n_head": 2, "n_positions": 12, "n_ctx": 12, "d_model": 16,
    "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "ffn_dim": 24,
    "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 3, "dim": 16,
    "n_layers": 2, "hidden_dim": 24, "n_heads": 2, "word_embed_proj_dim": 16, "patch_size": 4,
    "embedding_size": 16, "image_size": 8, "num_experts": 2, "num_local_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    "max_source_positions": 6, "max_target_positions": 6, "num_mel_bins": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "attention_types": [[["global", "local"], 1]],
    "rotary_dim": 4, "decoder_start_token_id": 0, "conv_dim": (8, 8), "conv_stride": (2, 2),
    "conv_kernel": (3, 3), "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
TOWER = {key: SMALL[key] for key in (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size",
    "patch_size",
)}  # fmt: skip
TOWERS = {
    "text_config": {**TOWER, "vocab_size": 40, "max_position_embeddings": 12},
    "vision_config": {**TOWER, "num_hidden_layers": 3},
}


def second(model_type: str) -> str:
    """Give a head that the library of today has too."""
    heads = FAMILIES[model_type].heads
    likely = ("ForMaskedLM", "ForConditionalGeneration", "ForCausalLM")
    known = [each for each in likely if each in heads and model_type != "gpt2"]
    return (known or list(heads)[1:])[0]


CASES: list[tuple[str, str, dict[str, Any]]] = [
    (model_type, ending, {})
    for model_type, family in FAMILIES.items()
    for ending in {next(iter(family.heads)): 0, second(model_type): 0}
]
CASES += [
    ("llama", "ForCausalLM", {"tie_word_embeddings": True}),
    ("llama", "ForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    ("qwen2", "ForSequenceClassification", {}),
    ("gemma", "ForCausalLM", {"tie_word_embeddings": False}),
    ("gpt2", "LMHeadModel", {"tie_word_embeddings": False}),
    ("gpt_neox", "ForCausalLM", {"attention_bias": False}),
    ("falcon", "ForCausalLM", {"parallel_attn": False, "bias": True}),
    ("opt", "ForCausalLM", {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    ("opt", "ForCausalLM", {"enable_bias": False}),
    ("phi", "ForCausalLM", {"qk_layernorm": True}),
    ("stablelm", "ForCausalLM", {"use_qkv_bias": True, "use_parallel_residual": True}),
    ("cohere", "ForCausalLM", {"use_qk_norm": True}),
    ("bert", "ForPreTraining", {}),
    ("bert", "ForMaskedLM", {"tie_word_embeddings": False}),
    ("bert", "ForSequenceClassification", {}),
    ("roberta", "ForMaskedLM", {}),
    ("roberta", "ForSequenceClassification", {}),
    ("electra", "ForPreTraining", {"embedding_size": 8}),
    ("t5", "ForConditionalGeneration", {"feed_forward_proj": "gated-gelu",
                                        "tie_word_embeddings": False}),
    ("t5", "EncoderModel", {}),
    ("whisper", "ForAudioClassification", {}),
    ("vit", "ForImageClassification", {"qkv_bias": False}),
    ("dinov2", "Model", {"use_swiglu_ffn": True}),
    ("wav2vec2", "ForCTC", {"feat_extract_norm": "layer", "conv_bias": True,
                            "do_stable_layer_norm": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "ending", "settings"),
    CASES,
    ids=[f"{FAMILIES[t].stem}{e}-{'-'.join(s)}" for t, e, s in CASES],
)
def test_transformers_saves_what_the_rows_ask_for(model_type, ending, settings, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    transformers.logging.set_verbosity_error()
    family = FAMILIES[model_type]
    made = getattr(transformers, family.stem + ending)
    config_class = made.config_class
    known = {
        *inspect.signature(config_class.__init__).parameters,
        *getattr(config_class, "__annotations__", {}),
        *vars(config_class()),
    }
    small = TOWERS if model_type == "clip" else {k: v for k, v in SMALL.items() if k in known}
    model = made(config_class(**{**small, **settings}))
    model.save_pretrained(tmp_path)
    with open_path(tmp_path) as table:
        found = coverage_of(table, str(tmp_path))
        assert [each.message for each in found] == []
        config = json.loads((tmp_path / "config.json").read_text())
        asked = asked_by(config, lambda _: 2)
        assert asked is not None
        # what is asked for is there, and what is there is asked for or may be there
        names = {_now(name) for name in table}
        fronts = ("", *family.base)
        body = max(
            ({f + n for n in asked.known_body} for f in fronts), key=lambda s: len(s & names)
        )
        assert names <= body | asked.known_head
        optional = body - {f + n for f in fronts for n in (*asked.body, *asked.soft)}
        lost = next(name for name in sorted(names & body) if name not in optional)
        stored = next(name for name in table if _now(name) == lost)
        left = {name: info for name, info in table.infos.items() if name != stored}
        worst = coverage_of(dataclasses.replace(table, infos=left), str(tmp_path))
        assert any(lost in each.measured["missing"] for each in worst)


def test_transformers_leaves_random_what_is_called_missing(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(**{k: v for k, v in SMALL.items() if k in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "num_key_value_heads",
    )})  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = safetensors.load_file(path)
    gone = [name for name in weights if ".layers.1.mlp." in name]
    for name in gone:
        weights[f"old.{name}"] = weights.pop(name)
    safetensors.save_file(weights, path, metadata={"format": "pt"})
    _, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    with open_path(tmp_path) as table:
        missing, surplus = coverage_of(table, str(tmp_path))
    assert sorted(missing.measured["missing"]) == sorted(info["missing_keys"])
    assert sorted(surplus.measured["surplus"]) == sorted(info["unexpected_keys"])
    assert (missing.severity, surplus.severity) == (Severity.ERROR, Severity.WARNING)


def words(layers: Any, models: Any) -> Any:
    inputs = models.Input((12,))
    x = layers.Embedding(20, 8)(inputs)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.GRU(4, return_sequences=True, reset_after=False, use_bias=False)(x)
    x = layers.SimpleRNN(4, return_sequences=True)(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.MultiHeadAttention(2, 3, use_bias=False)(x, x)
    x = layers.LayerNormalization(center=False)(x)
    x = layers.Conv1D(6, 3, padding="same")(x)
    x = layers.SeparableConv1D(6, 3, padding="same")(x)
    x = layers.Conv1DTranspose(4, 3, padding="same")(x)
    x = layers.DepthwiseConv1D(3, padding="same")(x)
    x = layers.TimeDistributed(layers.Dense(5))(x)
    x = layers.PReLU()(x)
    x = layers.BatchNormalization(scale=False)(x)
    return models.Model(inputs, layers.Dense(3, use_bias=False)(x))


def pictures(layers: Any, models: Any) -> Any:
    inner = models.Sequential(
        [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]
    )
    inputs = models.Input((16, 16, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(inner(inputs))
    x = layers.SeparableConv2D(6, 3, padding="same", use_bias=False)(x)
    x = layers.Conv2DTranspose(5, 2, strides=2)(x)
    x = layers.GroupNormalization(groups=5)(x)
    x = layers.Conv2D(10, 3, groups=5)(x)
    x = layers.ConvLSTM2D(2, 3)(layers.Reshape((1, 30, 30, 10))(x))
    shared = layers.Dense(2)
    return models.Model(inputs, shared(shared(layers.GlobalAveragePooling2D()(x))))


@pytest.mark.parametrize("make", [words, pictures])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("file", ["m.keras", "m.h5", "m.weights.h5"])
def test_keras_saves_what_the_rows_ask_for(library, file, make, tmp_path: Path):
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip(library)
    model = make(keras.layers, keras)
    path, expected = tmp_path / file, None
    if file == "m.weights.h5":
        model.save_weights(path)
        expected = tmp_path / "model.json"
        expected.write_text(model.to_json())
    else:
        model.save(path)
    with open_path(path) as table:
        assert [each.message for each in coverage_of(table, str(path), expected)] == []
        wrapped = [name for name in table if re.search(r"time_distributed\w*/time_dist", name)]
        for name, info in table.items():
            if info.role != "model" or name in wrapped:
                continue  # Keras 2 stores what is in a wrapper as the wrapper's own
            left = {key: value for key, value in table.infos.items() if key != name}
            found = coverage_of(dataclasses.replace(table, infos=left), str(path), expected)
            assert [each.severity for each in found] == [Severity.ERROR], name
