"""Where coverage begins and ends to say something: the last case on one side, the first on the other."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import ClassVar

import pytest

from ckptdoctor.coverage import coverage_of
from ckptdoctor.coverage.keras_layers import LAYERS, parts_of
from ckptdoctor.tensors import LayerConfig

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 3,
}
DENSE = {"units": 10, "use_bias": True, "kernel_initializer": "GlorotUniform"}
DIMENSIONS = re.compile("([123])D")
BLOCK = ("norm.weight", "mix.in.weight", "mix.out.weight", "up.weight")


def blocks(numbers):
    return [f"net.blocks.{number}.{inner}" for number in numbers for inner in BLOCK]


def fit_for(*rows):
    """Names for rows in which braces stand for each of several words."""
    names = []
    for row in rows:
        before, _, rest = row.partition("{")
        words, _, behind = rest.partition("}")
        names += [f"{before}{word}{behind}" for word in words.split(",")]
    return [each for name in names for each in (fit_for(name) if "{" in name else [name])]


@pytest.fixture
def told(table_of, beside):
    def tell(config, names, *, file="model.safetensors", **more):
        path = beside(config, file)
        found = coverage_of(table_of(names, path=path, **more), path)
        return [(finding.severity.name, finding.message) for finding in found]

    return tell


class TestConfigBesideIt:
    def test_one_of_four_megabytes_is_read_and_a_larger_one_is_a_note(self, table_of, tmp_path):
        path = str(tmp_path / "model.safetensors")
        text = json.dumps(LLAMA)
        for spare, severity in ((0, "ERROR"), (1, "NOTE")):
            (tmp_path / "config.json").write_text(text.ljust((4 << 20) + spare))
            [found] = coverage_of(table_of(["x"], path=path), path)
            assert found.severity.name == severity
        assert "(4,194,305 bytes, at most 4,194,304 are read)" in found.message

    def test_one_that_the_system_refuses_says_why(self, table_of, tmp_path: Path):
        (tmp_path / "config.json").symlink_to("config.json")
        path = str(tmp_path / "model.safetensors")
        [found] = coverage_of(table_of(["x"], path=path), path)
        assert "(Too many levels of symbolic links)" in found.message

    def test_one_that_breaks_off_while_it_is_read_says_why(self, table_of, tmp_path, monkeypatch):
        def broken(_):
            raise OSError(5, "Input/output error")

        (tmp_path / "config.json").write_text(json.dumps(LLAMA))
        path = str(tmp_path / "model.safetensors")
        monkeypatch.setattr(os, "dup", broken)
        [found] = coverage_of(table_of(["x"], path=path), path)
        assert "(Input/output error)" in found.message


class TestStacks:
    config: ClassVar = {"model_type": "nobody", "num_hidden_layers": 12}

    def test_gaps_are_called_missing_up_to_half_as_many_as_there_are_layers(self, told):
        [(severity, text)] = told(self.config, blocks((0, 1, 2, 3, 4, 5, 6, 11)))
        assert severity == "ERROR"
        assert text.startswith("4 of the layers")
        assert told(self.config, blocks((0, 1, 2, 3, 4, 5, 6, 12))) == []

    def test_part_of_one_layer_has_a_length_of_its_own(self, told):
        assert told(self.config, blocks(range(10))) != []
        assert told({**self.config, "decoder_layers": 1}, blocks(range(10))) == []


class TestTies:
    def bert(self, ending):
        config = {"model_type": "bert", "architectures": [f"Bert{ending}"], "num_hidden_layers": 1}
        both = "{weight,bias}"
        names = fit_for(
            "bert.embeddings.{word,position,token_type}_embeddings.weight",
            f"bert.embeddings.LayerNorm.{both}",
            f"bert.encoder.layer.0.attention.self.{{query,key,value}}.{both}",
            f"bert.encoder.layer.0.attention.output.{{dense,LayerNorm}}.{both}",
            f"bert.encoder.layer.0.intermediate.dense.{both}",
            f"bert.encoder.layer.0.output.{{dense,LayerNorm}}.{both}",
            f"bert.pooler.dense.{both}",
        )
        flat = [name for name in names if "LayerNorm" in name or name.endswith("bias")]
        return config, names, dict.fromkeys(flat, (2,))

    def test_head_of_another_class_does_not_stand_in_for_the_embeddings(self, told):
        config, names, shapes = self.bert("ForSequenceClassification")
        names += ["classifier.weight", "classifier.bias"]
        assert told(config, names, shapes=shapes) == []
        gone = "bert.embeddings.word_embeddings.weight"
        names = [name for name in names if name != gone] + ["cls.predictions.decoder.weight"]
        [(severity, text)] = told(config, names, shapes=shapes)
        assert severity == "ERROR"
        assert text.endswith(f"leaves it random: '{gone}'")

    @pytest.mark.parametrize("there", ["shared.weight", "lm_head.weight"])
    def test_of_t5_the_head_or_the_embeddings_will_do(self, there, told):
        norm = "layer_norm.weight"
        names = fit_for(
            "encoder.block.0.layer.0.SelfAttention.{q,k,v,o}.weight",
            "{encoder,decoder}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"encoder.block.0.layer.{{0,1}}.{norm}",
            "encoder.block.0.layer.1.DenseReluDense.{wi,wo}.weight",
            "{encoder,decoder}.final_layer_norm.weight",
            "decoder.block.0.layer.0.SelfAttention.{q,k,v,o}.weight",
            "decoder.block.0.layer.1.EncDecAttention.{q,k,v,o}.weight",
            f"decoder.block.0.layer.{{0,1,2}}.{norm}",
            "decoder.block.0.layer.2.DenseReluDense.{wi,wo}.weight",
        )
        config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
        config |= {"num_layers": 1}
        assert told(config, [*names, there]) == []
        [(severity, text)] = told(config, names)
        assert severity == "ERROR"
        assert text.endswith("leaves it random: 'shared.weight'")
        [(severity, text)] = told({**config, "tie_word_embeddings": False}, [*names, there])
        assert severity == "ERROR"
        gone = {"shared.weight", "lm_head.weight"} - {there}
        assert text.endswith(f"leaves it random: '{gone.pop()}'")


class TestShapes:
    def test_size_of_one_is_a_size(self, told):
        config, names, shapes = TestTies().bert("Model")
        table = "bert.embeddings.token_type_embeddings.weight"
        assert told({**config, "type_vocab_size": 1}, names, shapes={**shapes, table: (1, 2)}) == []
        [(severity, text)] = told({**config, "type_vocab_size": 1}, names, shapes=shapes)
        assert severity == "ERROR"
        assert text == f"'{table}' is [2, 2], config.json (BertModel) asks for [1, ?]"


class TestParts:
    def missing(self, table_of, beside, names, **config):
        path = beside(config)
        [found] = coverage_of(table_of(names, path=path), path)
        assert found.severity.name == "ERROR"
        return found.measured["missing"]

    @pytest.mark.parametrize("ending", ["EncoderModel", "ForTokenClassification"])
    def test_class_with_the_encoder_alone_needs_no_decoder(self, ending, table_of, beside):
        config = {"model_type": "t5", "architectures": [f"T5{ending}"], "num_layers": 1}
        gone = self.missing(table_of, beside, ["shared.weight"], **config)
        head = {"EncoderModel": 0, "ForTokenClassification": 2}[ending]
        assert sum(name.startswith("encoder.") for name in gone) == len(gone) - head
        assert [name for name in gone if name.startswith("classifier.")] == (
            ["classifier.weight", "classifier.bias"][:head]
        )

    @pytest.mark.parametrize("width", [8, 4])
    def test_projection_is_needed_where_widths_differ(self, width, table_of, beside):
        config = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": 8}
        config |= {"num_hidden_layers": 1, "word_embed_proj_dim": width}
        names = ["model.decoder.embed_positions.weight"]
        gone = self.missing(table_of, beside, names, **config)
        assert ("model.decoder.project_in.weight" in gone) is (width != 8)


class TestExperts:
    def test_models_in_which_not_every_layer_has_them_are_not_judged_by_name(self, told):
        config = {**LLAMA, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}
        config |= {"num_experts": 2}
        names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
        for sparse in ({}, {"decoder_sparse_step": 1}, {"mlp_only_layers": []}):
            [(severity, text), *_] = told({**config, **sparse}, names)
            assert severity == "ERROR"
            assert "Qwen3MoeForCausalLM) asks for are missing" in text
        for other in ({"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}):
            assert told({**config, **other}, names) == []


class TestCopies:
    """A file that holds the same model several times, under words of the same length."""

    words = ("student", "teacher", "average", "network", "shadows", "targets")

    @pytest.mark.parametrize("turn", range(6))
    def test_of_equal_copies_the_first_in_the_file_is_named_each_time(self, turn, told, table_of):
        words = self.words[turn:] + self.words[:turn]
        names = ["conv.weight", "bn.weight", "fc.weight"]
        table = table_of([f"{word}.{name}" for word in words for name in names])
        first, _ = coverage_of(table, "m", names)
        assert first.message.startswith(f"3 names start with '{words[0]}.'")
        names = [f"model.layers.{number}.input_layernorm.weight" for number in range(3)]
        names += [f"model.layers.{number}.mlp.up_proj.weight" for number in range(3)]
        found = told(LLAMA, [f"{word}.{name}" for word in words for name in names])
        assert found[0][1].startswith(f"6 names start with '{words[0]}.'")


class TestPrefixes:
    names: ClassVar = [f"part{letter}.weight" for letter in "abcde"]

    def test_one_that_explains_half_of_what_is_missing_is_called_one(self, table_of):
        here = [f"net.{name}" for name in self.names[:2]]
        first, *_ = coverage_of(table_of(here), "m", self.names[:4])
        assert first.message.startswith("all 2 names start with 'net.'")
        first, *_ = coverage_of(table_of(here), "m", self.names)
        assert first.message.startswith("5 of the 5 weights that the list expects are missing")

    def test_all_means_all_of_the_file(self, table_of):
        here = [f"net.{name}" for name in self.names]
        first, *_ = coverage_of(table_of([*here, "other.weight"]), "m", self.names)
        assert first.message.startswith("5 names start with 'net.'")

    def test_later_half_of_a_model_is_found_behind_one_too(self, table_of):
        names = [f"h.{number}.w" for number in range(30)]
        first, *_ = coverage_of(table_of([f"net.{name}" for name in names[14:]]), "m", names)
        assert first.message.startswith("all 16 names start with 'net.'")


class TestPatterns:
    @pytest.mark.parametrize("here", [["a.w"], ["a.w", "ab.w"], ["a.w", "ab.w", "ac.w"]])
    def test_name_that_only_ends_as_a_pattern_does_is_surplus(self, here, table_of):
        [found] = coverage_of(table_of([*here, "b.w"]), "m", ["a*w"])
        assert found.message == "1 weight that the list does not expect: 'b.w'"


class TestHalfAModel:
    def test_file_of_any_name_is_held_against_the_model_that_it_holds_half_of(self, told):
        config = {**LLAMA, "num_hidden_layers": 2}
        inner = fit_for(
            "model.layers.0.self_attn.{q,k,v,o}_proj.weight",
            "model.layers.0.mlp.{gate,up,down}_proj.weight",
            "model.layers.0.{input,post_attention}_layernorm.weight",
        )
        names = ["model.embed_tokens.weight", *inner]
        [(severity, text)] = told(config, names, file="best.pt", format="torch-zip")
        assert severity == "ERROR"
        assert text.startswith("10 of the 21 weights that config.json (LlamaForCausalLM) asks for")
        assert told(config, names[:-1], file="best.pt", format="torch-zip") == []


class TestLayersThatNobodyCounts:
    config: ClassVar = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}

    def llama(self, numbers, front="model."):
        inner = ["self_attn.{q,k,v,o}_proj.weight", "mlp.{gate,up,down}_proj.weight"]
        inner += ["{input,post_attention}_layernorm.weight"]
        rows = (f"{front}layers.{number}.{each}" for number in numbers for each in inner)
        return [f"{front}embed_tokens.weight", f"{front}norm.weight", *fit_for(*rows)]

    def test_gaps_between_those_of_the_file_are_missing(self, told):
        names = [*self.llama((0, 1, 2, 7)), "lm_head.weight"]
        flat = {name: (2,) for name in names if "norm" in name}
        [(severity, text)] = told(self.config, names, shapes=flat)
        assert severity == "ERROR"
        assert text.endswith("'model.layers.3' to 'model.layers.6': all 36 weights")

    def test_they_are_those_of_the_file_without_a_prefix_too(self, told):
        config = {**self.config, "architectures": ["LlamaModel"]}
        names = self.llama(range(12), front="")
        flat = {name: (2,) for name in names if "norm" in name}
        assert told(config, names, shapes=flat) == []
        [(severity, text)] = told(config, [n for n in names if "layers.4." not in n], shapes=flat)
        assert severity == "ERROR"
        assert text.endswith("'layers.4': all 9 weights")

    def test_one_at_least_is_asked_for(self, told):
        names = [*self.llama(()), "lm_head.weight"]
        [(_, text)] = told(self.config, names, shapes={"model.norm.weight": (2,)})
        assert text.startswith("9 of the 12 weights")
        assert text.endswith("'model.layers.0': all 9 weights")


class TestListing:
    def missing(self, table_of, gone, here=("fc.weight",)):
        [found] = coverage_of(table_of(here), "m", [*here, *gone])
        return found.message.partition("missing: ")[2]

    def test_layer_of_one_weight_is_said_as_such_beside_others(self, table_of):
        gone = ["h.1.w", "h.5.w"]
        text = "'h.1': the only weight, 'h.5': the only weight"
        assert self.missing(table_of, gone) == text
        assert self.missing(table_of, ["h.1.w", "h.2.w"]) == "'h.1' to 'h.2': all 2 weights"

    def test_single_weight_of_a_single_layer_goes_by_its_name(self, table_of):
        assert self.missing(table_of, ["h.1.w", "x.weight"]) == "'x.weight', 'h.1.w'"
        assert self.missing(table_of, ["h.1.w", "h.1.v", "x.weight"]) == (
            "'h.1': all 2 weights, 'x.weight'"
        )

    def test_name_of_a_hundred_characters_is_shown_whole(self, table_of):
        for length, ending in ((100, "x'"), (101, "...'")):
            assert self.missing(table_of, ["x" * length]).endswith(ending)


class TestKeras:
    def dense(self, name):
        return LayerConfig(name=name, class_name="Dense", settings=DENSE)

    @pytest.mark.parametrize("class_name", [name for name in LAYERS if DIMENSIONS.search(name)])
    def test_kernels_have_as_many_extents_as_their_class_says(self, class_name):
        settings = {"filters": 6, "kernel_size": 9, "use_bias": False, "strides": 1}
        settings |= {"depth_multiplier": 2, "recurrent_initializer": "Orthogonal"}
        rank = int(DIMENSIONS.search(class_name)[1])
        for part in parts_of(class_name, settings):
            extent = 1 if part.names == ("pointwise_kernel",) else 9
            assert part.shape[:rank] == (extent,) * rank
            assert len(part.shape) == rank + 2

    @pytest.mark.parametrize(("class_name", "gates"), [("LSTM", 4), ("GRU", 3), ("SimpleRNN", 1)])
    def test_kernels_of_recurrent_layers_hold_all_gates(self, class_name, gates):
        settings = {"units": 5, "use_bias": True, "recurrent_initializer": "Orthogonal"}
        kernel, recurrent, bias = parts_of(class_name, settings)
        assert (kernel.shape, recurrent.shape) == ((None, 5 * gates), (5, 5 * gates))
        assert bias.shape in (None, (5 * gates,))
        assert (bias.shape is None) is (class_name == "GRU")

    def test_six_unknown_layers_are_all_named(self, table_of):
        names = ["model_weights/fc/fc/kernel:0", "model_weights/fc/fc/bias:0"]
        shapes = {names[0]: (4, 10), names[1]: (10,)}
        names += [f"model_weights/o{number}/k:0" for number in range(6)]
        table = table_of(
            names, format="keras-h5", path="m.h5", layers=[self.dense("fc")], shapes=shapes
        )
        [found] = coverage_of(table, "m.h5")
        assert found.message.endswith("'o4', 'o5'")

    def test_layers_inside_a_numbered_layer_are_its_own(self, table_of, tmp_path: Path):
        settings = {"name": "att", "num_heads": 2, "key_dim": 2, "use_bias": True}
        layer = {"class_name": "MultiHeadAttention", "config": settings}
        model = {"class_name": "Sequential", "config": {"name": "net", "layers": [layer]}}
        path = tmp_path / "model.json"
        path.write_text(json.dumps(model))
        words = [f"{word}_dense" for word in ("query", "key", "value", "output")]
        names = [
            f"layers/multi_head_attention/{word}/vars/{part}" for word in words for part in (0, 1)
        ]
        table = table_of(names, format="keras-weights-h5")
        assert coverage_of(table, "m", path) == ()
        [found] = coverage_of(table_of(names[:6], format="keras-weights-h5"), "m", path)
        assert found.message.endswith("'att' (MultiHeadAttention): 2 of 8 variables")

    def test_layers_of_models_in_models_are_found_in_a_legacy_file(self, table_of, tmp_path: Path):
        fc = {"class_name": "Dense", "config": {"name": "fc", **DENSE}}
        inner = {"class_name": "Sequential", "config": {"name": "enc", "layers": [fc]}}
        outer = {"class_name": "Sequential", "config": {"name": "net", "layers": [inner]}}
        path = tmp_path / "model.json"
        path.write_text(json.dumps(outer))
        names = ["enc/fc/kernel:0", "enc/fc/bias:0"]
        shapes = {names[0]: (4, 10), names[1]: (10,)}
        table = table_of(names, format="keras-h5", path="w.h5", shapes=shapes)
        assert coverage_of(table, "w.h5", path) == ()
        [found] = coverage_of(table_of(names[:1], format="keras-h5", shapes=shapes), "w.h5", path)
        assert found.message.endswith("'enc/fc' (Dense): bias")
