"""Models that read and then write: T5, BART, Whisper and their kin."""

from __future__ import annotations

from collections.abc import Mapping

from .family import ANSWERS, CLASSIFIER, Family, rows

__all__ = ["PAIRS"]

_SHARED = (
    "shared.weight / encoder.embed_tokens.weight / decoder.embed_tokens.weight | vocab_size d_model"
)
_SHARED_TOO = "~{encoder,decoder}.embed_tokens.weight"
_T5_ENCODER = (
    "encoder.block.<num_layers>.layer.0.SelfAttention.{q,k,v,o}.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder.block.<num_layers>.layer.{0,1}.layer_norm.weight",
    "encoder.block.<num_layers>.layer.1.DenseReluDense.wo.weight",
    "encoder.final_layer_norm.weight",
)
_T5_DECODER = (
    "decoder.block.<num_decoder_layers>.layer.0.SelfAttention.{q,k,v,o}.weight",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder.block.<num_decoder_layers>.layer.1.EncDecAttention.{q,k,v,o}.weight",
    "decoder.block.<num_decoder_layers>.layer.{0,1,2}.layer_norm.weight",
    "decoder.block.<num_decoder_layers>.layer.2.DenseReluDense.wo.weight",
    "decoder.final_layer_norm.weight",
    "-decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


def _t5(stem: str, activation: str) -> Family:
    gated = f"feed_forward_proj^gated={activation}"
    inner = (
        "encoder.block.<num_layers>.layer.1.DenseReluDense",
        "decoder.block.<num_decoder_layers>.layer.2.DenseReluDense",
    )
    one = (f"{where}.wi.weight ? !{gated}" for where in inner)
    two = (f"{where}.{{wi_0,wi_1}}.weight ? {gated}" for where in inner)
    lm_head = "lm_head.weight = shared.weight | vocab_size d_model"
    return Family(
        stem=stem,
        base=("transformer.",),
        body=rows(_SHARED, _SHARED_TOO, *_T5_ENCODER, *_T5_DECODER, *one, *two),
        heads={
            "Model": "",
            "ForConditionalGeneration": lm_head,
            "WithLMHeadModel": lm_head,
            "EncoderModel": "only encoder. shared.",
            "ForTokenClassification": rows("only encoder. shared.", CLASSIFIER),
            "ForQuestionAnswering": ANSWERS,
            "ForSequenceClassification": "classification_head.{dense,out_proj}.{weight,bias}",
        },
        tied=True,
    )


_BART_ENCODER = (
    "encoder.layers.<encoder_layers>.self_attn.{q,k,v,out}_proj.{weight,bias}",
    "encoder.layers.<encoder_layers>.{fc1,fc2,self_attn_layer_norm,final_layer_norm}.{weight,bias}",
)
_BART_DECODER = (
    "decoder.layers.<decoder_layers>.{self_attn,encoder_attn}.{q,k,v,out}_proj.{weight,bias}",
    "decoder.layers.<decoder_layers>.{self_attn,encoder_attn,final}_layer_norm.{weight,bias}",
    "decoder.layers.<decoder_layers>.{fc1,fc2}.{weight,bias}",
)


def _bart(stem: str, *more: str, lm: str = "ForConditionalGeneration") -> Family:
    return Family(
        stem=stem,
        base=("model.",),
        body=rows(_SHARED, _SHARED_TOO, *_BART_ENCODER, *_BART_DECODER, *more,
                   "-{encoder,decoder}.version"),
        heads={
            "Model": "",
            lm: rows("lm_head.weight = @shared.weight", "~final_logits_bias"),
            "ForQuestionAnswering": ANSWERS,
            "ForSequenceClassification": "classification_head.{dense,out_proj}.{weight,bias}",
        },
        tied=True,
        plain=("share_encoder_decoder_embeddings=true",),
    )  # fmt: skip


_LEARNED = "{encoder,decoder}.embed_positions.weight"
_COMPUTED = "~{encoder,decoder}.embed_positions.weight"
_EMBED_NORM = "{encoder,decoder}.layernorm_embedding.{weight,bias}"
_LAST_NORM = "{encoder,decoder}.layer_norm.{weight,bias}"

_WHISPER = rows(
    "encoder.{conv1,conv2}.{weight,bias}", "encoder.embed_positions.weight",
    "encoder.layers.<encoder_layers>.self_attn.{q,k,v,out}_proj.weight",
    "encoder.layers.<encoder_layers>.self_attn.{q,v,out}_proj.bias",
    "encoder.layers.<encoder_layers>.{fc1,fc2,self_attn_layer_norm,final_layer_norm}"
    ".{weight,bias}",
    "decoder.embed_tokens.weight | vocab_size d_model", "decoder.embed_positions.weight",
    "decoder.layers.<decoder_layers>.{self_attn,encoder_attn}.{q,k,v,out}_proj.weight",
    "decoder.layers.<decoder_layers>.{self_attn,encoder_attn}.{q,v,out}_proj.bias",
    "decoder.layers.<decoder_layers>.{fc1,fc2,self_attn_layer_norm,encoder_attn_layer_norm"
    ",final_layer_norm}.{weight,bias}",
    "encoder.layer_norm.{weight,bias}", "decoder.layer_norm.{weight,bias}",
)  # fmt: skip

PAIRS: Mapping[str, Family] = {
    "t5": _t5("T5", "relu"),
    "mt5": _t5("MT5", "gated-gelu"),
    "bart": _bart("Bart", _LEARNED, _EMBED_NORM),
    "mbart": _bart("MBart", _LEARNED, _EMBED_NORM, _LAST_NORM),
    "blenderbot-small": _bart("BlenderbotSmall", _LEARNED, _EMBED_NORM),
    "pegasus": _bart("Pegasus", _COMPUTED, _LAST_NORM),
    "m2m_100": _bart("M2M100", _COMPUTED, _LAST_NORM),
    "marian": _bart("Marian", _COMPUTED, lm="MTModel"),
    "whisper": Family(
        stem="Whisper",
        base=("model.",),
        body=_WHISPER,
        heads={
            "Model": "",
            "ForConditionalGeneration": "proj_out.weight = @decoder.embed_tokens.weight",
            "ForAudioClassification": rows(
                "only encoder.", "{projector,classifier}.{weight,bias}", "~layer_weights"
            ),
        },
        tied=True,
    ),
}  # fmt: skip
