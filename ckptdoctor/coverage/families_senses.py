"""Models of images and of sound."""

from __future__ import annotations

from collections.abc import Mapping

from .family import CLASSIFIER, POOLER, Family, rows

__all__ = ["SENSES"]

_VIT_LAYER = (
    "encoder.layer.<N>.attention.attention.{query,key,value}.weight",
    "encoder.layer.<N>.attention.attention.{query,key,value}.bias ? qkv_bias=true",
    "encoder.layer.<N>.attention.output.dense.{weight,bias}",
)
_VIT_REST = (
    "encoder.layer.<N>.{intermediate,output}.dense.{weight,bias}",
    "encoder.layer.<N>.layernorm_{before,after}.{weight,bias}",
    "layernorm.{weight,bias}", "~pooler.dense.{weight,bias}", "~embeddings.mask_token",
    "embeddings.{cls_token,position_embeddings}",
    "embeddings.patch_embeddings.projection.{weight,bias}",
)  # fmt: skip
_VIT_HEADS = {"Model": f"!{POOLER}", "ForImageClassification": CLASSIFIER}
_MASKED_IMAGE = rows("decoder.0.{weight,bias}", "@embeddings.mask_token")
_DINO = rows(
    *_VIT_LAYER, "encoder.layer.<N>.layer_scale{1,2}.lambda1",
    "encoder.layer.<N>.norm{1,2}.{weight,bias}",
    "encoder.layer.<N>.mlp.{fc1,fc2}.{weight,bias} ? !use_swiglu_ffn=false",
    "encoder.layer.<N>.mlp.{weights_in,weights_out}.{weight,bias}"
    " ? use_swiglu_ffn=false",
    "layernorm.{weight,bias}", "~embeddings.mask_token",
    "embeddings.{cls_token,position_embeddings}",
    "embeddings.patch_embeddings.projection.{weight,bias}",
)  # fmt: skip


def _tower(prefix: str, layers: str) -> tuple[str, ...]:
    return (
        f"{prefix}encoder.layers.<{layers}>.self_attn.{{q,k,v,out}}_proj.{{weight,bias}}",
        f"{prefix}encoder.layers.<{layers}>.mlp.{{fc1,fc2}}.{{weight,bias}}",
        f"{prefix}encoder.layers.<{layers}>.layer_norm{{1,2}}.{{weight,bias}}",
        f"-{prefix}embeddings.position_ids",
    )


_CLIP_TEXT = ("final_layer_norm.{weight,bias}", "embeddings.position_embedding.weight")
_CLIP_VISION = (
    "{pre_layrnorm,post_layernorm}.{weight,bias}", "embeddings.class_embedding",
    "embeddings.{patch,position}_embedding.weight",
)  # fmt: skip
_CLIP = rows(
    "text_model.embeddings.token_embedding.weight"
    " | text_config.vocab_size text_config.hidden_size",
    *(f"text_model.{row}" for row in _CLIP_TEXT),
    *_tower("text_model.", "text_config.num_hidden_layers"),
    *(f"vision_model.{row}" for row in _CLIP_VISION),
    *_tower("vision_model.", "vision_config.num_hidden_layers"),
    "logit_scale", "{text,visual}_projection.weight",
)  # fmt: skip
_CLIP_TEXT_MODEL = rows(
    "embeddings.token_embedding.weight | vocab_size hidden_size", *_CLIP_TEXT,
    *_tower("", "num_hidden_layers"),
)  # fmt: skip
_CLIP_VISION_MODEL = rows(*_CLIP_VISION, *_tower("", "num_hidden_layers"))
_SPEECH = rows(
    "encoder.layers.<N>.attention.{q,k,v,out}_proj.{weight,bias}",
    "encoder.layers.<N>.feed_forward.{intermediate,output}_dense.{weight,bias}",
    "encoder.layers.<N>.{layer_norm,final_layer_norm}.{weight,bias}",
    "encoder.layer_norm.{weight,bias}", "encoder.pos_conv_embed.conv.bias",
    "encoder.pos_conv_embed.conv.parametrizations.weight.{original0,original1}",
    "feature_extractor.conv_layers.<num_feat_extract_layers>.conv.weight",
    "feature_extractor.conv_layers.<num_feat_extract_layers>.conv.bias ? conv_bias=false",
    "feature_extractor.conv_layers.0.layer_norm.{weight,bias}",
    "feature_extractor.conv_layers.<num_feat_extract_layers>.layer_norm.{weight,bias}"
    " ? !feat_extract_norm^group=group",
    "feature_projection.projection.{weight,bias}",
    "feature_projection.layer_norm.{weight,bias} ? feat_proj_layer_norm=true",
    "~masked_spec_embed",
)  # fmt: skip
_SPEECH_HEADS = {
    "Model": "",
    "ForCTC": "lm_head.{weight,bias}",
    "ForSequenceClassification": rows("{projector,classifier}.{weight,bias}", "~layer_weights"),
    "ForAudioFrameClassification": rows(CLASSIFIER, "~layer_weights"),
    "ForPreTraining": rows(
        "{project_hid,project_q,quantizer.weight_proj}.{weight,bias}", "quantizer.codevectors"
    ),
}
_PLAIN_SPEECH = ("!add_adapter=false", "!adapter_attn_dim=false", "!conv_pos_batch_norm=false")

SENSES: Mapping[str, Family] = {
    "vit": Family(
        stem="ViT",
        base=("vit.",),
        body=rows(*_VIT_LAYER, *_VIT_REST),
        heads={**_VIT_HEADS, "ForMaskedImageModeling": _MASKED_IMAGE},
    ),
    "deit": Family(
        stem="DeiT",
        base=("deit.",),
        body=rows(*_VIT_LAYER, *_VIT_REST, "embeddings.distillation_token"),
        heads={
            **_VIT_HEADS,
            "ForMaskedImageModeling": _MASKED_IMAGE,
            "ForImageClassificationWithTeacher": "{cls,distillation}_classifier.{weight,bias}",
        },
    ),
    "dinov2": Family(
        stem="Dinov2",
        base=("dinov2.",),
        body=_DINO,
        heads={"Model": "", "ForImageClassification": CLASSIFIER},
    ),
    "clip": Family(
        stem="CLIP",
        base=("clip.",),
        body=_CLIP,
        heads={"Model": "", "ForImageClassification": rows("only vision_model.", CLASSIFIER)},
    ),
    "clip_text_model": Family(
        stem="CLIP",
        base=("text_model.",),
        body=_CLIP_TEXT_MODEL,
        heads={"TextModel": "", "TextModelWithProjection": "text_projection.weight"},
    ),
    "clip_vision_model": Family(
        stem="CLIP",
        base=("vision_model.",),
        body=_CLIP_VISION_MODEL,
        heads={"VisionModel": "", "VisionModelWithProjection": "visual_projection.weight"},
    ),
    "wav2vec2": Family(
        stem="Wav2Vec2",
        base=("wav2vec2.",),
        body=_SPEECH,
        heads=_SPEECH_HEADS,
        plain=_PLAIN_SPEECH,
    ),
    "hubert": Family(
        stem="Hubert", base=("hubert.",), body=_SPEECH, heads=_SPEECH_HEADS, plain=_PLAIN_SPEECH
    ),
}  # fmt: skip
