"""A checkpoint against a Hugging Face config.json beside it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptdoctor.coverage import coverage_of, expectation_digest
from ckptdoctor.coverage.families import FAMILIES
from ckptdoctor.coverage.huggingface import loaded_by_name
from ckptdoctor.findings import Severity, container_finding

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 3,
    "vocab_size": 2,
    "hidden_size": 2,
}
INNER = (
    *(f"self_attn.{each}_proj.weight" for each in "qkvo"),
    *(f"mlp.{each}_proj.weight" for each in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "num_hidden_layers": 2,
    "vocab_size": 2,
    "hidden_size": 2,
}


def llama(layers: int = 3, front: str = "model.") -> list[str]:
    names = [f"{front}layers.{i}.{inner}" for i in range(layers) for inner in INNER]
    return [f"{front}embed_tokens.weight", *names, f"{front}norm.weight", "lm_head.weight"]


def bert(front: str = "bert.") -> list[str]:
    both = ("weight", "bias")
    inner = ("attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
             "output.dense", "output.LayerNorm")  # fmt: skip
    words = ("word", "position", "token_type")
    return [
        *(f"{front}embeddings.{word}_embeddings.weight" for word in words),
        *(f"{front}embeddings.LayerNorm.{end}" for end in both),
        *(
            f"{front}encoder.layer.{i}.{name}.{end}"
            for i in (0, 1)
            for name in inner
            for end in both
        ),
    ]


LM_HEAD = [
    "cls.predictions.bias",
    *(
        f"cls.predictions.transform.{n}.{e}"
        for n in ("dense", "LayerNorm")
        for e in ("weight", "bias")
    ),
]
FLAT = {f"{front}norm.weight": (2,) for front in ("", "model.", "model.model.")}
FLAT |= {f"{front}.model.norm.weight": (2,) for front in ("module", "_orig_mod", "state_dict")}


@pytest.fixture
def told(table_of, beside):
    def tell(config, names, *, file="model.safetensors", **more):
        path = beside(config, file)
        more.setdefault("shapes", FLAT)
        found = coverage_of(table_of(names, path=path, **more), path)
        assert {finding.code for finding in found} <= {"CK003"}
        assert all(len(finding.message) < 1200 for finding in found)
        return [(finding.severity.name, finding.message) for finding in found]

    return tell


def test_what_the_configuration_asks_for_is_nothing_to_tell(told):
    assert told(LLAMA, llama()) == []
    assert told(BERT, [*bert(), *LM_HEAD]) == []


def test_a_missing_weight_is_an_error(told):
    names = [name for name in llama() if name != "model.layers.1.self_attn.k_proj.weight"]
    text = "1 of the 30 weights that config.json (LlamaForCausalLM) asks for is missing, and a "
    text += "loader leaves it random: 'model.layers.1.self_attn.k_proj.weight'"
    assert told(LLAMA, names) == [("ERROR", text)]


def test_a_missing_layer_is_said_once(told):
    text = "9 of the 30 weights that config.json (LlamaForCausalLM) asks for are missing, and a "
    text += "loader leaves them random: 'model.layers.2': all 9 weights"
    assert told(LLAMA, llama(2)) == [("ERROR", text)]


def test_a_surplus_weight_is_a_warning(told):
    text = "1 weight that config.json (LlamaForCausalLM) does not have, loaders pass it by: "
    assert told(LLAMA, [*llama(), "v_head.weight"]) == [("WARNING", f"{text}'v_head.weight'")]
    [(severity, text)] = told(LLAMA, llama(4))
    assert severity == "WARNING"
    assert text.endswith("does not have, loaders pass them by: 'model.layers.3': all 9 weights")
    assert text.startswith("9 weights that config.json (LlamaForCausalLM)")


def test_what_loaders_ignore_on_purpose_is_a_note(told):
    names = [*llama(), *(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3))]
    text = "3 buffers that loaders ignore on purpose: "
    text += "'model.layers.*.self_attn.rotary_emb.inv_freq' in 3 layers"
    assert told(LLAMA, names) == [("NOTE", text)]
    text = "1 buffer that loaders ignore on purpose: 'bert.embeddings.position_ids'"
    assert told(BERT, [*bert(), *LM_HEAD, "bert.embeddings.position_ids"]) == [("NOTE", text)]


@pytest.mark.parametrize("stated", [True, None], ids=["stated", "by default of the family"])
def test_a_tied_head_may_be_missing(stated, told):
    config = LLAMA if stated is None else {**LLAMA, "tie_word_embeddings": stated}
    config = {**config, "model_type": "gemma", "architectures": ["GemmaForCausalLM"]}
    assert told(config, llama()[:-1]) == []
    assert told({**config, "tie_word_embeddings": False}, llama()[:-1]) != []


def test_of_two_tied_weights_either_will_do(told):
    config = {**LLAMA, "tie_word_embeddings": True}
    assert told(config, llama()[1:]) == []
    assert told(config, llama()[1:-1]) != []
    assert told(LLAMA, llama()[1:]) != []


def test_an_untied_head_may_not_be_missing(told):
    [(severity, text)] = told(LLAMA, llama()[:-1])
    assert severity == "ERROR"
    assert text.endswith("leaves it random: 'lm_head.weight'")


def test_a_body_may_lie_with_or_without_its_prefix(told):
    assert told({**LLAMA, "architectures": ["LlamaModel"]}, llama(front="")[:-1]) == []
    assert told({**LLAMA, "architectures": ["LlamaModel"]}, llama()[:-1]) == []
    assert told({**LLAMA, "tie_word_embeddings": True}, llama(front="")[:-1]) == []


def test_without_a_class_no_head_is_asked_for_and_every_one_is_known(told):
    config = {key: value for key, value in BERT.items() if key != "architectures"}
    assert told(config, bert()) == []
    assert told(config, [*bert(), *LM_HEAD, "cls.seq_relationship.weight"]) == []
    assert told(config, bert()[1:]) != []


def test_heads_of_other_classes_are_known(told):
    assert told(BERT, [*bert(), *LM_HEAD, "cls.seq_relationship.weight"]) == []


def test_a_head_that_the_class_names_is_asked_for(told):
    [(severity, text)] = told({**BERT, "architectures": ["BertForTokenClassification"]}, bert())
    assert severity == "ERROR"
    assert text.endswith("'classifier.weight', 'classifier.bias'")


@pytest.mark.parametrize("name", ["modules.json", "config_sentence_transformers.json"])
def test_folders_of_sentence_transformers_use_no_head(name, told, tmp_path: Path):
    assert told(BERT, bert()) != []
    before = expectation_digest(str(tmp_path / "model.safetensors"))
    (tmp_path / name).write_text("[]")
    assert told(BERT, bert()) == []
    assert told(BERT, bert()[1:]) != []
    assert expectation_digest(str(tmp_path / "model.safetensors")) != before


def test_a_pooler_that_models_are_saved_without_is_a_warning(told):
    config = {**BERT, "architectures": ["BertModel"]}
    [(severity, text)] = told(config, bert(""))
    assert severity == "WARNING"
    assert "'pooler.dense.weight', 'pooler.dense.bias'" in text
    assert told(config, [*bert(""), "pooler.dense.weight", "pooler.dense.bias"]) == []


def test_either_of_two_names_of_a_bias_is_enough(told):
    head = [name for name in LM_HEAD if name != "cls.predictions.bias"]
    assert told(BERT, [*bert(), *head, "cls.predictions.decoder.bias"]) == []
    assert told(BERT, [*bert(), *head]) != []


def test_names_of_old_are_understood(told):
    names = [name.replace("LayerNorm.weight", "LayerNorm.gamma") for name in [*bert(), *LM_HEAD]]
    names = [name.replace("LayerNorm.bias", "LayerNorm.beta") for name in names]
    assert told(BERT, names) == []


def test_a_part_that_the_configuration_turns_on_is_asked_for(told):
    biases = [f"model.layers.{i}.self_attn.{each}_proj.bias" for i in range(3) for each in "qkvo"]
    config = {**LLAMA, "attention_bias": True}
    assert told(config, llama() + biases) == []
    [(severity, _)] = told(config, llama())
    assert severity == "ERROR"
    [(severity, _)] = told(LLAMA, llama() + biases)
    assert severity == "WARNING"


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size"])
def test_embeddings_of_another_size_are_an_error(key, told):
    found = told({**LLAMA, key: 7}, llama())
    assert found[0][0] == "ERROR"
    size = "[7, 2]" if key == "vocab_size" else "[2, 7]"
    assert f"is [2, 2], config.json (LlamaForCausalLM) asks for {size}" in found[0][1]
    assert "(and " in found[0][1]


def test_a_size_that_the_configuration_does_not_tell_is_not_judged(told):
    config = {key: value for key, value in LLAMA.items() if key != "vocab_size"}
    assert told(config, llama()) == []
    config = {**config, "hidden_size": 7}
    assert "asks for [?, 7]" in told(config, llama())[0][1]


def test_sizes_under_their_other_names_are_read(told):
    config = {k: v for k, v in LLAMA.items() if k not in ("num_hidden_layers", "hidden_size")}
    assert told({**config, "n_layer": 3, "n_embd": 2}, llama()) == []
    assert told({**config, "n_layer": 4}, llama()) != []
    assert told({**config, "n_layer": 3, "n_embd": 3}, llama()) != []


def test_without_a_number_of_layers_those_of_the_file_count(told):
    config = {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}
    assert told(config, llama(5)) == []
    gap = [name for name in llama(5) if ".layers.3." not in name]
    assert "'model.layers.3': all 9 weights" in told(config, gap)[0][1]
    hostile = [*llama(5), "model.layers.999999.x"]
    assert [severity for severity, _ in told(config, hostile)][-1] == "WARNING"


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "state_dict."])
def test_names_that_no_loader_looks_for_are_one_error(front, told):
    found = told(LLAMA, [front + name for name in llama()])
    text = f"all 30 names start with '{front}', under which no loader looks for the weights of "
    text += "config.json (LlamaForCausalLM): it would leave them random"
    assert found == [("ERROR", text)]


def test_the_prefix_that_loaders_know_is_no_error_in_a_file_that_lacks_most(told):
    [(severity, text)] = told(LLAMA, ["model.norm.weight", "model.embed_tokens.weight"])
    assert severity == "ERROR"
    assert text.startswith("28 of the 30 weights")


def test_a_single_name_is_no_plural(told):
    [(_, text), _] = told(LLAMA, ["module.model.embed_tokens.weight"])
    assert text.startswith("the only name starts with 'module.', under which")


@pytest.mark.parametrize("kind", ["llama", "nobody"])
def test_a_file_without_weights_is_an_error_where_a_model_is_described(kind, told):
    text = "it holds no weights, and config.json describes a model: a loader leaves all of its "
    text += "weights random"
    state = {"state.0.exp_avg": "optimizer"}
    assert told({**LLAMA, "model_type": kind}, []) == [("ERROR", text)]
    assert told({**LLAMA, "model_type": kind}, state, roles=state) == [("ERROR", text)]
    assert told({**LLAMA, "model_type": kind}, state, roles=state, file="optimizer.pt") == []


def test_a_size_of_a_thousand_digits_is_not_repeated(told):
    assert told({**LLAMA, "vocab_size": 10**4000}, llama()) == []


def test_a_file_of_other_names_is_one_error(told):
    names = [f"blocks.{i}.w{j}" for i in range(9) for j in range(9)]
    [(severity, text)] = told(LLAMA, names)
    assert severity == "ERROR"
    assert text.startswith("none of the 29 weights that config.json (LlamaForCausalLM) asks for")
    assert text.endswith("the names are like 'blocks.0.w0'")


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state.pth", "best.ckpt", "head.pt"],
)
def test_other_files_beside_it_are_not_held_against_it(name, told):
    names = ["state.0.exp_avg", "state.0.exp_avg_sq", "classifier.weight"]
    assert told(LLAMA, names, file=name, format="torch-zip") == []
    assert told({**LLAMA, "num_hidden_layers": -1}, names, file=name, format="torch-zip") == []


def test_another_file_that_holds_most_of_the_model_is_held_against_it(told):
    names = [f"model.{name}" for name in llama() if "layers.1" not in name]
    found = told(LLAMA, names, file="best.pt", format="torch-zip")
    assert [severity for severity, _ in found] == ["ERROR"]
    assert "all 9 weights" in found[0][1]
    assert told(LLAMA, [f"model.{n}" for n in llama()], file="best.pt", format="torch-zip") == []
    # heads and what is more are its own affair
    assert told(LLAMA, [*llama()[:-1], "more.weight"], file="best.pt", format="torch-zip") == []


@pytest.mark.parametrize(
    ("name", "loaded"),
    [
        ("model.safetensors", True), ("model.fp16.safetensors", True), ("pytorch_model.bin", True),
        ("model.safetensors.index.json", True), ("model.safetensors.index.fp16.json", True),
        ("pytorch_model.bin.index.json", True), ("pytorch_model.ema-1.bin", True),
        ("adapter_model.safetensors", False), ("model.pt", False), ("model.safetensors.bak", False),
        ("optimizer.bin", False), ("x/model.safetensors", True), ("mymodel.safetensors", False),
    ],
)  # fmt: skip
def test_which_names_loaders_take(name, loaded):
    assert loaded_by_name(name) is loaded


def test_one_shard_of_a_set_is_not_the_model(told):
    names = llama()[:5]
    assert told(LLAMA, names, file="model-00001-of-00003.safetensors") == []
    assert told(LLAMA, names, file="model.safetensors.index.json") != []


@pytest.mark.parametrize("code", ["CK003", "CK004", "CK006"])
def test_what_missing_shards_held_is_not_told_again(code, told):
    error = container_finding(code, Severity.ERROR, "1 of 2 shards are missing")
    assert told(LLAMA, llama()[:9], findings=(error,)) == []
    warning = container_finding(code, Severity.WARNING, "1 shard is one too many")
    assert told(LLAMA, llama()[:9], findings=(warning,)) != []
    other = container_finding("CK001", Severity.ERROR, "a checksum")
    assert told(LLAMA, llama()[:9], findings=(other,)) != []


def test_model_that_was_saved_inside_its_adapter_is_a_warning(told):
    # as accelerate's save_model leaves a model of PEFT: from_pretrained loads nothing of q_proj
    names = [f"base_model.model.{n}".replace("q_proj.", "q_proj.base_layer.") for n in llama()]
    names += [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.weight" for i in range(3)]
    [(severity, text)] = told(LLAMA, names)
    assert severity == "WARNING"
    assert text == (
        "3 weights are of layers around which an adapter was saved: config.json describes the model "
        "without it, and a loader that goes by it leaves these layers random (merge the adapter "
        "first): 'base_model.model.model.layers.*.self_attn.q_proj.base_layer.weight' in 3 layers"
    )
    assert told(LLAMA, names, file="best.pt") == []
    assert told(LLAMA, names[-3:], file="model.safetensors") == []


def test_adapters_are_not_the_model(told):
    names = [f"base_model.model.layers.{i}.q_proj.lora_A.weight" for i in range(3)]
    assert told(LLAMA, names) == []
    assert told(LLAMA, names, file="adapter_model.safetensors") == []


def test_quantised_weights_go_by_other_names(told):
    names = [
        name.replace("proj.weight", f"proj.{end}")
        for name in llama()
        for end in ("qweight", "scales")
    ]
    names = list(dict.fromkeys(names))
    assert told({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, names) == []
    assert told({**LLAMA, "quantization": {"bits": 4}}, names) == []
    assert told(LLAMA, names) == []


@pytest.mark.parametrize(
    ("kind", "stem", "layer"),
    [
        ("mixtral", "Mixtral", "model.layers.{}.mlp.experts.gate_up_proj"),
        ("qwen3_moe", "Qwen3Moe", "model.layers.{}.mlp.experts.down_proj"),
        ("vit", "ViT", "vit.layers.{}.attention.q_proj.weight"),
        ("deit", "DeiT", "layers.{}.attention.o_proj.bias"),
        ("dinov2", "Dinov2", "dinov2.encoder.layer.{}.attention.k_proj.weight"),
    ],
)
def test_names_that_a_model_has_in_memory_alone_are_no_error(kind, stem, layer, told):
    config = {"model_type": kind, "architectures": [f"{stem}Model"], "num_hidden_layers": 6}
    rest = (".norm.weight", ".mlp.fc1.weight", ".mlp.fc2.weight")
    front = layer[: layer.index("{}") + 2]
    names = [each.format(i) for i in range(6) for each in (layer, *(front + r for r in rest))]
    assert told(config, names) == []
    [(severity, text)] = told(config, [name for name in names if ".2." not in name])
    assert severity == "ERROR"
    assert "1 of the layers" in text


def test_code_of_the_repository_may_want_other_weights(told):
    config = {**LLAMA, "auto_map": {"AutoModelForCausalLM": "modeling.LlamaForCausalLM"}}
    assert told(config, [*llama(), "more.weight"]) == []


@pytest.mark.parametrize(
    "change",
    [{"architectures": ["LlamaForEverything"]}, {"architectures": ["MyForCausalLM"]},
     {"model_type": "nobody"}, {"architectures": [3]}, {"model_type": 3}],
    ids=["head", "class", "family", "class that is no name", "family that is no name"],
)  # fmt: skip
def test_of_what_no_table_knows_nothing_is_claimed(change, told):
    assert told({**LLAMA, **change}, [*llama()[:-1], "more.weight"]) == []


def test_experts_are_asked_for_one_by_one(told):
    config = {**LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    config["num_local_experts"] = 4
    names = [name for name in llama() if ".mlp." not in name]
    moe = "block_sparse_moe"
    names += [f"model.layers.{i}.{moe}.gate.weight" for i in range(3)]
    names += [
        f"model.layers.{i}.{moe}.experts.{j}.w{k}.weight"
        for i in range(3) for j in range(4) for k in (1, 2, 3)
    ]  # fmt: skip
    assert told(config, names) == []
    gone = f"model.layers.2.{moe}.experts.3.w2.weight"
    [(_, text)] = told(config, [name for name in names if name != gone])
    assert text.endswith(f"'{gone}'")
    del config["num_local_experts"]
    assert told(config, names) == []


@pytest.mark.parametrize(
    "config",
    [
        [], "x", 3, None, {}, {"model": "resnet"}, {"architecture": "resnet50"},
        {"architectures": "x"}, {"architectures": []}, {"_class_name": "UNet2DConditionModel"},
    ],
    ids=repr,
)  # fmt: skip
def test_a_configuration_of_something_else_is_passed_by(config, told):
    assert told(config, ["anything.weight"]) == []


def test_without_a_configuration_nothing_is_told(table_of, tmp_path: Path):
    path = str(tmp_path / "model.safetensors")
    assert coverage_of(table_of(["x"], path=path), path) == ()


def test_a_configuration_given_as_the_expectation_is_used(table_of, tmp_path: Path):
    (tmp_path / "other.json").write_text(json.dumps(LLAMA))
    [found] = coverage_of(table_of(llama()[:-1], shapes=FLAT), "m", tmp_path / "other.json")
    assert "that other.json (LlamaForCausalLM) asks for" in found.message


def test_of_a_folder_the_configuration_in_it_counts(table_of, beside, tmp_path: Path):
    path = beside(LLAMA)
    table = table_of(llama()[:-1], path=path, shapes=FLAT)
    assert len(coverage_of(table, str(tmp_path))) == 1
    assert expectation_digest(str(tmp_path)) != expectation_digest(path)
    Path(path).write_bytes(b"")
    assert expectation_digest(str(tmp_path)) == expectation_digest(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}", b"1" * 5000, b"x" * (5 << 20)],
    ids=lambda value: repr(value[:6]),
)
def test_a_configuration_that_cannot_be_read_is_a_note(data, tmp_path: Path, table_of):
    path = str(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(data)
    [found] = coverage_of(table_of(["x"], path=path), path)
    assert found.severity is Severity.NOTE
    assert "config.json beside it cannot be read" in found.message
    other = str(tmp_path / "scheduler.pt")
    assert coverage_of(table_of(["x"], path=other, format="torch-zip"), other) == ()


def test_a_pipe_in_its_place_is_not_waited_for(table_of, tmp_path: Path):
    os.mkfifo(tmp_path / "config.json")
    path = str(tmp_path / "model.safetensors")
    [found] = coverage_of(table_of(["x"], path=path), path)
    assert "not a regular file" in found.message
    assert len(expectation_digest(path)) == 64


@pytest.mark.parametrize(
    "value",
    [0, -1, True, 1.5, "3", [], {}, 2001, 10**9, 10**300],
    ids=lambda value: repr(value)[:9],
)
def test_an_absurd_number_of_layers_is_a_warning(value, told):
    [(severity, text)] = told({**LLAMA, "num_hidden_layers": value}, llama())
    assert severity == "WARNING"
    assert "for num_hidden_layers, expected a number from 1 to 2,000" in text


def test_the_highest_number_of_layers_is_taken(told):
    [(severity, text)] = told({**LLAMA, "num_hidden_layers": 2000}, llama(1999))
    assert severity == "ERROR"
    assert "'model.layers.1999': all 9 weights" in text


def test_more_weights_than_any_model_has_are_a_warning(told):
    config = {**LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    config |= {"num_hidden_layers": 2000, "num_local_experts": 2000}
    [(severity, text)] = told(config, llama())
    assert severity == "WARNING"
    assert "more than 1,000,000 weights" in text


ODD = st.sampled_from([0, -1, 10**9, 10**300, 1.5, True, None, "x", [], [1], {}, {"a": 1}, 2])
KEYS = st.sampled_from(
    ["num_hidden_layers", "n_layer", "hidden_size", "vocab_size", "tie_word_embeddings",
     "architectures", "model_type", "attention_bias", "num_experts", "mlp_only_layers",
     "decoder_sparse_step", "text_config", "num_layers", "encoder_layers", "feed_forward_proj",
     "word_embed_proj_dim", "num_hidden_groups", "vision_config"]
)  # fmt: skip


@given(family=st.sampled_from(sorted(FAMILIES)), odd=st.dictionaries(KEYS, ODD, max_size=4))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_configuration_breaks_it(family, odd, told):
    head = next(iter(FAMILIES[family].heads))
    config = {"model_type": family, "architectures": [FAMILIES[family].stem + head], **odd}
    told(config, ["", "..", "1.2.3", "layers.99999999999.x", "٣.٣.x", *llama()])


def test_the_digest_follows_the_configuration_and_the_name(beside, tmp_path: Path):
    path = beside(LLAMA)
    first = expectation_digest(path)
    assert expectation_digest(path) == first
    assert expectation_digest(str(tmp_path / "best.pt")) != first
    beside({**LLAMA, "num_hidden_layers": 4})
    assert expectation_digest(path) != first
    (tmp_path / "config.json").unlink()
    nothing = expectation_digest(path)
    assert nothing == expectation_digest(str(tmp_path / "other.bin"))
    assert nothing not in (first, expectation_digest(path, ["a"]))


def test_a_hundred_thousand_names_take_less_than_a_second(table_of, beside):
    config = {**LLAMA, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}
    config |= {"num_hidden_layers": 100, "num_experts": 330}
    names = [name for name in llama(100) if ".mlp." not in name]
    for i in range(100):
        front = f"model.layers.{i}"
        names += [f"{front}.mlp.gate.weight", f"{front}.self_attn.q_norm.weight"]
        names.append(f"{front}.self_attn.k_norm.weight")
        names += [
            f"{front}.mlp.experts.{j}.{part}_proj.weight"
            for j in range(330) for part in ("gate", "up", "down")
        ]  # fmt: skip
    path = beside(config)
    table = table_of(names, path=path, shapes=FLAT)
    assert len(names) > 99_000
    began = time.process_time()
    assert coverage_of(table, path) == ()
    assert coverage_of(table, path, names) == ()
    assert time.process_time() - began < 2
