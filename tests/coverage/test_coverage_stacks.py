"""Checkpoints of families that no table knows: what their own layers and a few settings prove."""

from __future__ import annotations

import pytest

from ckptdoctor.coverage import coverage_of

INNER = ("norm.weight", "mix.in.weight", "mix.out.weight", "up.weight")


def stack(numbers, inner=INNER, front="net.blocks"):
    return [f"{front}.{i}.{each}" for i in numbers for each in inner]


@pytest.fixture
def told(table_of, beside):
    def tell(names, *, file="model.safetensors", shapes=None, **config):
        config = {"model_type": "nobody", "num_hidden_layers": 8, **config}
        path = beside(config, file)
        found = coverage_of(table_of(names, path=path, shapes=shapes), path)
        return [(finding.severity.name, finding.message) for finding in found]

    return tell


def test_a_whole_stack_is_nothing_to_tell(told):
    assert told([*stack(range(8)), "head.weight"]) == []


def test_a_gap_is_an_error(told):
    text = "1 of the layers of 'net.blocks' that config.json asks for is missing, and a loader "
    text += "leaves it random: 'net.blocks.5': all 4 weights"
    assert told(stack([0, 1, 2, 3, 4, 6, 7])) == [("ERROR", text)]
    [(_, text)] = told(stack([0, 1, 4, 5, 6, 7]))
    assert text.startswith("2 of the layers of 'net.blocks' that config.json asks for are missing")
    assert text.endswith("'net.blocks.2' to 'net.blocks.3': all 8 weights")


def test_layers_that_lack_at_the_end_are_an_error(told):
    [(severity, text)] = told(stack(range(6)))
    assert severity == "ERROR"
    assert text.endswith("'net.blocks.6' to 'net.blocks.7': all 8 weights")
    assert told(stack(range(4)))[0][0] == "ERROR"
    assert told(stack(range(7)))[0][0] == "ERROR"


def test_half_as_many_layers_may_be_meant_otherwise(told):
    assert told(stack(range(8)), num_hidden_layers=17) == []
    assert told(stack(range(8)), num_hidden_layers=16) != []


def test_layers_beyond_the_last_are_a_warning(told):
    [(severity, text)] = told(stack(range(10)))
    assert severity == "WARNING"
    assert "asks for 8 layers, 'net.blocks' has 10" in text
    assert text.endswith("'net.blocks.8' to 'net.blocks.9': all 8 weights")


def test_embeddings_and_a_head_that_are_numbered_too_are_no_layers(told):
    names = ["layers.0.wte.weight", *stack(range(1, 9), front="layers")]
    names += [f"layers.9.{each}" for each in ("ln.weight", "ln.bias", "linear.weight")]
    assert told(names) == []
    assert told(names, num_hidden_layers=7) != []


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_heads"])
def test_layers_for_predicting_ahead_come_behind_the_last(key, told):
    assert told(stack(range(9)), **{key: 1}) == []


@pytest.mark.parametrize(
    "more",
    [{"decoder_layers": 6}, {"text_config": {"num_layers": 6}}, {"depths": [2, 6]}],
    ids=["of a decoder", "of a part", "of stages"],
)
def test_where_the_configuration_has_other_numbers_lengths_prove_nothing(more, told):
    assert told(stack(range(6)), **more) == []
    assert told(stack([0, 1, 2, 4, 5]), **more) != []


def test_of_two_stacks_lengths_prove_nothing(told):
    assert told([*stack(range(6)), *stack(range(5), front="decoder.layers")]) == []


def test_the_number_may_be_that_of_a_part(told):
    config = {"num_hidden_layers": None, "text_config": {"num_hidden_layers": 8}}
    assert told(stack(range(7)), **config) != []


def test_a_lone_layer_that_lacks_a_weight_is_a_warning(told):
    names = [name for name in stack(range(8)) if name != "net.blocks.3.up.weight"]
    text = "layer 3 of 'net.blocks' lacks what the other layers have: 'net.blocks.3.up.weight'"
    assert told(names) == [("WARNING", text)]


def test_one_of_few_stages_may_be_without_what_the_others_have(told):
    # 'neck.reassemble_stage' of DPT and Depth Anything: the third of four is not resized
    inner = ("projection.weight", "projection.bias", "resize.weight", "resize.bias")
    names = [name for name in stack(range(4), inner, "neck.layers") if ".2.resize." not in name]
    assert told(names, num_hidden_layers=12) == []
    six = [name for name in stack(range(6), inner) if ".2.resize." not in name]
    assert told(six, num_hidden_layers=6) != []


@pytest.mark.parametrize("number", [0, 7])
def test_first_and_last_layers_differ_by_design(number, told):
    assert (
        told([name for name in stack(range(8)) if name != f"net.blocks.{number}.up.weight"]) == []
    )


def test_a_layer_of_another_kind_lacks_nothing(told):
    names = [name for name in stack(range(8)) if name != "net.blocks.3.up.weight"]
    assert told([*names, "net.blocks.3.experts.0.weight"]) == []
    assert told([*stack(range(8)), "net.blocks.3.more.weight"]) == []


def test_two_layers_that_differ_are_a_design(told):
    gone = ("net.blocks.3.up.weight", "net.blocks.5.up.weight")
    assert told([name for name in stack(range(8)) if name not in gone]) == []


def test_of_stacks_that_are_not_uniform_nothing_is_claimed(told):
    mixed = [*stack((0, 2, 4)), *stack((1, 3, 6, 7), inner=("a.weight", "b.weight", "c.weight"))]
    assert told(mixed) == []
    six = [*stack((0, 1, 2, 3, 4, 6)), *stack((7, 8), inner=("a.weight", "b.weight", "c.weight"))]
    assert told(six, num_hidden_layers=9) != []


@pytest.mark.parametrize(
    "names",
    [
        stack((0, 2, 4, 6), inner=("weight", "bias")),
        stack((0, 2, 3, 4), inner=("weight", "bias", "running_mean")[:2]),
        stack((0, 1, 3)),
        stack((0, 2, 4, 6)),
        stack((0, 1, 2, 9)),
        stack((0, 2, 4, 5), inner=("a", "a.b", "a.c")),
        [f"{name}" for name in ("1.2.3", "x.999999999.y.z", "", ".")],
    ],
    ids=["kernels", "layers of a kernel and a bias", "three layers", "every other one", "far away",
         "one part", "odd names"],
)  # fmt: skip
def test_numbers_with_gaps_by_design(names, told):
    assert told(names) == []


def test_fewer_words_than_the_configuration_has_are_a_warning(told):
    name = "net.embed_tokens.weight"
    names = [*stack(range(8)), name]
    [(severity, text)] = told(names, shapes={name: (90, 4)}, vocab_size=100)
    assert (severity, text) == ("WARNING", f"'{name}' has 90 rows, config.json asks for 100 words")
    assert told(names, shapes={name: (100, 4)}, vocab_size=100) == []
    assert told(names, shapes={name: (128, 4)}, vocab_size=100) == []
    assert told(names, shapes={name: (90,)}, vocab_size=100) == []
    assert told(names, shapes={name: (90, 4)}, vocab_size="100") == []
    assert told(names, shapes={name: (90, 4)}, vocab_size=10**400) == []
    assert told(names, shapes={name: (90, 4)}, vocab_size=100, t2u_vocab_size=90) == []
    assert told(names, shapes={name: (90, 4)}, vocab_size=100, type_vocab_size=2) != []
    assert told(names, shapes={name: (90, 4)}, text_config={"vocab_size": 100}) != []
    assert told([*names, "b.wte.weight"], shapes={name: (90, 4)}, vocab_size=100) == []


def test_embeddings_of_one_of_two_vocabularies_are_not_judged(told):
    # BLIP-2: the file of a class that has the words of its query model alone
    name = "embeddings.word_embeddings.weight"
    both = {"text_config": {"vocab_size": 100}, "qformer_config": {"vocab_size": 90}}
    assert told([*stack(range(8)), name], shapes={name: (90, 4)}, **both) == []
    same = {"text_config": {"vocab_size": 100}, "qformer_config": {"vocab_size": 100}}
    assert told([*stack(range(8)), name], shapes={name: (90, 4)}, **same) != []


def test_only_the_file_that_loaders_take_is_judged(told):
    assert told(stack([0, 1, 2, 3, 4, 6, 7]), file="best.pt") == []


@pytest.mark.parametrize(
    "value", [-1, 0, 10**300, "8", [8], {}, True, 1.5], ids=lambda v: repr(v)[:8]
)
def test_odd_numbers_of_layers_claim_nothing(value, told):
    assert told(stack(range(6)), num_hidden_layers=value) == []
