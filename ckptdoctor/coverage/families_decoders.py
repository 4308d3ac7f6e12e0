"""Language models that write: Llama, GPT and their kin."""

from __future__ import annotations

from collections.abc import Mapping

from .family import Family, rows

__all__ = ["DECODERS"]

_EMBED = "embed_tokens.weight | vocab_size hidden_size"
_LM_HEAD = "lm_head.weight = @embed_tokens.weight | vocab_size hidden_size"
_GATED = "layers.<N>.mlp.{gate,up,down}_proj.weight"
_ATTN = "layers.<N>.self_attn.{q,k,v,o}_proj.weight"
_ATTN_BIAS = "layers.<N>.self_attn.{q,k,v,o}_proj.bias ? attention_bias=false"
_QKV_BIAS = "layers.<N>.self_attn.{q,k,v}_proj.bias"
_QK_NORM = "layers.<N>.self_attn.{q,k}_norm.weight"
_TWO_NORMS = "layers.<N>.{input,post_attention}_layernorm.weight"
_TWO_NORM_BIASES = "layers.<N>.{input,post_attention}_layernorm.bias"
_ROTARY = "-layers.<N>.self_attn.rotary_emb.inv_freq"


def _decoder_heads(lm_head: str = _LM_HEAD) -> dict[str, str]:
    return {
        "Model": "",
        "ForCausalLM": lm_head,
        "ForSequenceClassification": "score.weight",
        "ForTokenClassification": "score.{weight,bias}",
        "ForQuestionAnswering": "qa_outputs.{weight,bias}",
    }


_LLAMA = rows(
    _EMBED, _ATTN, _ATTN_BIAS, _GATED,
    "layers.<N>.mlp.{gate,up,down}_proj.bias ? mlp_bias=false",
    _TWO_NORMS, "norm.weight | hidden_size", _ROTARY,
)  # fmt: skip
_GEMMA2 = rows(
    _EMBED, _ATTN, _ATTN_BIAS, _GATED, _TWO_NORMS,
    "layers.<N>.{pre,post}_feedforward_layernorm.weight",
    "norm.weight | hidden_size", _ROTARY,
)  # fmt: skip
_QWEN2 = rows(_EMBED, _ATTN, _QKV_BIAS, _GATED, _TWO_NORMS, "norm.weight | hidden_size", _ROTARY)
_QWEN3 = rows(
    _EMBED, _ATTN, _ATTN_BIAS, _QK_NORM, _GATED, _TWO_NORMS, "norm.weight | hidden_size", _ROTARY
)
_EXPERTS = "layers.<N>.mlp.experts.<num_experts>.{gate,up,down}_proj.weight"
_EVERY_LAYER_SPARSE = ("!mlp_only_layers=false", "decoder_sparse_step==1")


def _decoder(stem: str, body: str, *, tied: bool = False, plain: tuple[str, ...] = ()) -> Family:
    return Family(
        stem=stem, base=("model.", "transformer."), body=body, heads=_decoder_heads(), tied=tied,
        plain=plain,
    )  # fmt: skip


_WTE = "wte.weight | vocab_size hidden_size"
_GPT_HEADS = {
    "Model": "",
    "LMHeadModel": "lm_head.weight = @wte.weight | vocab_size hidden_size",
    "ForCausalLM": "lm_head.weight = @wte.weight | vocab_size hidden_size",
    "ForSequenceClassification": "score.weight",
    "ForTokenClassification": "classifier.{weight,bias}",
    "ForQuestionAnswering": "qa_outputs.{weight,bias}",
}
_GPT2 = rows(
    _WTE, "wpe.weight | max_position_embeddings hidden_size",
    "h.<N>.attn.{c_attn,c_proj}.{weight,bias}",
    "h.<N>.mlp.{c_fc,c_proj}.{weight,bias}",
    "h.<N>.{ln_1,ln_2}.{weight,bias}", "ln_f.{weight,bias}",
    "-h.<N>.attn.{bias,masked_bias}",
    "-h.<N>.crossattention.{bias,masked_bias}",
    "~h.<N>.crossattention.{c_attn,c_proj,q_attn}.{weight,bias}",
    "~h.<N>.ln_cross_attn.{weight,bias}",
)  # fmt: skip
_GPT_NEO = rows(
    _WTE, "wpe.weight | max_position_embeddings hidden_size",
    "h.<N>.attn.attention.{q,k,v,out}_proj.weight",
    "h.<N>.attn.attention.out_proj.bias",
    "h.<N>.mlp.{c_fc,c_proj}.{weight,bias}",
    "h.<N>.{ln_1,ln_2}.{weight,bias}", "ln_f.{weight,bias}",
    "-h.<N>.attn.attention.{bias,masked_bias}",
)  # fmt: skip
_GPT_J = rows(
    _WTE, "h.<N>.attn.{q,k,v,out}_proj.weight",
    "h.<N>.mlp.{fc_in,fc_out}.{weight,bias}",
    "h.<N>.ln_1.{weight,bias}", "ln_f.{weight,bias}",
    "-h.<N>.attn.{bias,masked_bias,embed_positions}",
)  # fmt: skip
_GPT_NEOX = rows(
    "embed_in.weight | vocab_size hidden_size",
    "layers.<N>.attention.{query_key_value,dense}.weight",
    "layers.<N>.attention.{query_key_value,dense}.bias ? attention_bias=true",
    "layers.<N>.mlp.{dense_h_to_4h,dense_4h_to_h}.{weight,bias}",
    "layers.<N>.{input,post_attention}_layernorm.{weight,bias}",
    "final_layer_norm.{weight,bias}",
    "-layers.<N>.attention.{bias,masked_bias,rotary_emb.inv_freq}",
)  # fmt: skip
_BLOOM = rows(
    "word_embeddings.weight | vocab_size hidden_size",
    "word_embeddings_layernorm.{weight,bias}",
    "h.<N>.self_attention.{query_key_value,dense}.{weight,bias}",
    "h.<N>.mlp.{dense_h_to_4h,dense_4h_to_h}.{weight,bias}",
    "h.<N>.{input,post_attention}_layernorm.{weight,bias}", "ln_f.{weight,bias}",
)  # fmt: skip
_FALCON = rows(
    "word_embeddings.weight | vocab_size hidden_size",
    "h.<N>.self_attention.{query_key_value,dense}.weight",
    "h.<N>.self_attention.{query_key_value,dense}.bias ? bias=false",
    "h.<N>.mlp.{dense_h_to_4h,dense_4h_to_h}.weight",
    "h.<N>.mlp.{dense_h_to_4h,dense_4h_to_h}.bias ? bias=false",
    "h.<N>.input_layernorm.{weight,bias}",
    "h.<N>.post_attention_layernorm.{weight,bias} ? !parallel_attn=true",
    "ln_f.{weight,bias}",
)  # fmt: skip
_OPT = rows(
    "decoder.embed_tokens.weight | vocab_size word_embed_proj_dim",
    "decoder.embed_positions.weight",
    "decoder.layers.<N>.self_attn.{q,k,v,out}_proj.weight",
    "decoder.layers.<N>.self_attn.{q,k,v,out}_proj.bias ? enable_bias=true",
    "decoder.layers.<N>.{fc1,fc2}.weight",
    "decoder.layers.<N>.{fc1,fc2}.bias ? enable_bias=true",
    "decoder.layers.<N>.{self_attn,final}_layer_norm.{weight,bias}"
    " ? layer_norm_elementwise_affine=true",
    "decoder.final_layer_norm.{weight,bias} ? do_layer_norm_before=true"
    " & !_remove_final_layer_norm=false & layer_norm_elementwise_affine=true",
    "decoder.project_{in,out}.weight ? word_embed_proj_dim!=hidden_size",
)  # fmt: skip
_OPT_LM_HEAD = "lm_head.weight = @decoder.embed_tokens.weight | vocab_size word_embed_proj_dim"

DECODERS: Mapping[str, Family] = {
    "llama": _decoder("Llama", _LLAMA),
    "mistral": _decoder("Mistral", rows(_EMBED, _ATTN, _GATED, _TWO_NORMS, "norm.weight", _ROTARY)),
    "mixtral": _decoder(
        "Mixtral",
        rows(
            _EMBED, _ATTN, _TWO_NORMS, "norm.weight", _ROTARY,
            "layers.<N>.block_sparse_moe.gate.weight",
            "layers.<N>.block_sparse_moe.experts.<num_local_experts>"
            ".{w1,w2,w3}.weight",
        ),
    ),
    "qwen2": _decoder("Qwen2", _QWEN2),
    "qwen2_moe": _decoder(
        "Qwen2Moe",
        rows(
            _EMBED, _ATTN, _QKV_BIAS, _TWO_NORMS, "norm.weight", _EXPERTS,
            "layers.<N>.mlp.{gate,shared_expert_gate}.weight",
            "layers.<N>.mlp.shared_expert.{gate,up,down}_proj.weight",
        ),
        plain=_EVERY_LAYER_SPARSE,
    ),
    "qwen3": _decoder("Qwen3", _QWEN3),
    "qwen3_moe": _decoder(
        "Qwen3Moe",
        rows(
            _EMBED, _ATTN, _ATTN_BIAS, _QK_NORM, _TWO_NORMS, "norm.weight", _EXPERTS,
            "layers.<N>.mlp.gate.weight",
        ),
        plain=_EVERY_LAYER_SPARSE,
    ),
    "gemma": _decoder(
        "Gemma",
        rows(_EMBED, _ATTN, _ATTN_BIAS, _GATED, _TWO_NORMS, "norm.weight", _ROTARY),
        tied=True,
    ),
    "gemma2": _decoder("Gemma2", _GEMMA2, tied=True),
    "gemma3_text": Family(
        stem="Gemma3",
        base=("model.",),
        body=rows(_GEMMA2, _QK_NORM),
        heads={"TextModel": "", "ForCausalLM": _LM_HEAD,
               "TextForSequenceClassification": "score.weight"},
        tied=True,
    ),
    "phi": Family(
        stem="Phi",
        base=("model.",),
        body=rows(
            _EMBED, "layers.<N>.self_attn.{q,k,v}_proj.{weight,bias}",
            "layers.<N>.self_attn.dense.{weight,bias}",
            "layers.<N>.self_attn.{q,k}_layernorm.{weight,bias}"
            " ? qk_layernorm=false",
            "layers.<N>.mlp.{fc1,fc2}.{weight,bias}",
            "layers.<N>.input_layernorm.{weight,bias}",
            "final_layernorm.{weight,bias}", _ROTARY,
        ),
        heads=_decoder_heads(rows(_LM_HEAD, "lm_head.bias")),
    ),
    "phi3": _decoder(
        "Phi3",
        rows(
            _EMBED, "layers.<N>.self_attn.{qkv,o}_proj.weight",
            "layers.<N>.mlp.{gate_up,down}_proj.weight", _TWO_NORMS,
            "norm.weight", _ROTARY,
        ),
    ),
    "stablelm": _decoder(
        "StableLm",
        rows(
            _EMBED, _ATTN,
            "layers.<N>.self_attn.{q,k,v}_proj.bias ? use_qkv_bias=false",
            _GATED, "layers.<N>.input_layernorm.{weight,bias}",
            "layers.<N>.post_attention_layernorm.{weight,bias}"
            " ? !use_parallel_residual=false",
            "norm.{weight,bias}", _ROTARY,
        ),
        plain=("!qk_layernorm=false",),
    ),
    "starcoder2": _decoder(
        "Starcoder2",
        rows(
            _EMBED, _ATTN, "layers.<N>.self_attn.{q,k,v,o}_proj.bias"
            " ? use_bias=true",
            "layers.<N>.mlp.{c_fc,c_proj}.weight",
            "layers.<N>.mlp.{c_fc,c_proj}.bias ? use_bias=true",
            _TWO_NORMS, _TWO_NORM_BIASES, "norm.{weight,bias}", _ROTARY,
        ),
        tied=True,
        plain=("norm_type^layer_norm=layer_norm", "mlp_type^default=default"),
    ),
    "olmo": _decoder("Olmo", rows(_EMBED, _ATTN, _ATTN_BIAS, _GATED, _ROTARY)),
    "olmo2": _decoder(
        "Olmo2",
        rows(
            _EMBED, _ATTN, _ATTN_BIAS, _QK_NORM, _GATED, "norm.weight",
            "layers.<N>.post_{attention,feedforward}_layernorm.weight",
        ),
    ),
    "granite": _decoder("Granite", _LLAMA),
    "smollm3": _decoder("SmolLM3", _LLAMA, tied=True),
    "cohere": _decoder(
        "Cohere",
        rows(
            _EMBED, _ATTN, _ATTN_BIAS, _GATED, "layers.<N>.input_layernorm.weight",
            "norm.weight", "layers.<N>.self_attn.{q,k}_norm.weight"
            " ? use_qk_norm=false",
        ),
        tied=True,
    ),
    "gpt2": Family(stem="GPT2", base=("transformer.",), body=_GPT2, heads=_GPT_HEADS, tied=True),
    "gpt_bigcode": Family(
        stem="GPTBigCode", base=("transformer.",), body=_GPT2, heads=_GPT_HEADS, tied=True
    ),
    "gpt_neo": Family(
        stem="GPTNeo", base=("transformer.",), body=_GPT_NEO, heads=_GPT_HEADS, tied=True
    ),
    "gptj": Family(
        stem="GPTJ",
        base=("transformer.",),
        body=_GPT_J,
        heads={**_GPT_HEADS, "ForCausalLM": rows(_GPT_HEADS["ForCausalLM"], "lm_head.bias")},
    ),
    "gpt_neox": Family(
        stem="GPTNeoX",
        base=("gpt_neox.",),
        body=_GPT_NEOX,
        heads={
            **_GPT_HEADS,
            "ForCausalLM": "embed_out.weight / lm_head.weight = @embed_in.weight"
            " | vocab_size hidden_size",
        },
    ),
    "bloom": Family(
        stem="Bloom",
        base=("transformer.",),
        body=_BLOOM,
        heads={**_GPT_HEADS, "ForCausalLM": "lm_head.weight = @word_embeddings.weight"},
        tied=True,
    ),
    "falcon": Family(
        stem="Falcon",
        base=("transformer.",),
        body=_FALCON,
        heads={**_GPT_HEADS, "ForCausalLM": "lm_head.weight = @word_embeddings.weight"},
        tied=True,
        plain=("!new_decoder_architecture=false",),
    ),
    "opt": Family(
        stem="OPT",
        base=("model.",),
        body=_OPT,
        heads=_decoder_heads(_OPT_LM_HEAD),
        tied=True,
    ),
}  # fmt: skip
