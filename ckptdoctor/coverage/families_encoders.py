"""Language models that read: BERT and its kin."""

from __future__ import annotations

from collections.abc import Mapping

from .family import ANSWERS, CLASSIFIER, POOLER, Family, rows

__all__ = ["ENCODERS"]

_BERT_LAYER = (
    "encoder.layer.<N>.attention.self.{query,key,value}.{weight,bias}",
    "encoder.layer.<N>.attention.output.{dense,LayerNorm}.{weight,bias}",
    "encoder.layer.<N>.intermediate.dense.{weight,bias}",
    "encoder.layer.<N>.output.{dense,LayerNorm}.{weight,bias}",
    "~encoder.layer.<N>.attention.self.distance_embedding.weight",
    "~encoder.layer.<N>.crossattention.self.{query,key,value}.{weight,bias}",
    "~encoder.layer.<N>.crossattention.output.{dense,LayerNorm}.{weight,bias}",
)
_BERT = rows(
    "embeddings.word_embeddings.weight | vocab_size hidden_size",
    "embeddings.position_embeddings.weight | max_position_embeddings hidden_size",
    "embeddings.token_type_embeddings.weight | type_vocab_size hidden_size",
    "embeddings.LayerNorm.{weight,bias}", *_BERT_LAYER,
    "-embeddings.{position_ids,token_type_ids}", "~pooler.dense.{weight,bias}",
)  # fmt: skip
_BERT_LM = rows(
    "cls.predictions.bias / cls.predictions.decoder.bias",
    "~cls.predictions.decoder.bias",
    "cls.predictions.decoder.weight = @embeddings.word_embeddings.weight",
    "cls.predictions.transform.{dense,LayerNorm}.{weight,bias}",
)
_NSP = "cls.seq_relationship.{weight,bias}"
_BERT_HEADS = {
    "Model": f"!{POOLER}",
    "LMHeadModel": _BERT_LM,
    "ForMaskedLM": _BERT_LM,
    "ForPreTraining": rows(POOLER, _BERT_LM, _NSP),
    "ForNextSentencePrediction": rows(POOLER, _NSP),
    "ForSequenceClassification": rows(POOLER, CLASSIFIER),
    "ForMultipleChoice": rows(POOLER, CLASSIFIER),
    "ForTokenClassification": CLASSIFIER,
    "ForQuestionAnswering": ANSWERS,
}
_ROBERTA_LM = rows(
    "lm_head.bias / lm_head.decoder.bias",
    "~lm_head.decoder.bias",
    "lm_head.decoder.weight = @embeddings.word_embeddings.weight",
    "lm_head.{dense,layer_norm}.{weight,bias}",
)
_TWO_STEPS = "classifier.{dense,out_proj}.{weight,bias}"
_ROBERTA_HEADS = {
    "Model": f"!{POOLER}",
    "ForCausalLM": _ROBERTA_LM,
    "ForMaskedLM": _ROBERTA_LM,
    "ForSequenceClassification": _TWO_STEPS,
    "ForMultipleChoice": rows(POOLER, CLASSIFIER),
    "ForTokenClassification": CLASSIFIER,
    "ForQuestionAnswering": ANSWERS,
}
_DISTILBERT = rows(
    "embeddings.word_embeddings.weight | vocab_size hidden_size",
    "embeddings.position_embeddings.weight | max_position_embeddings hidden_size",
    "embeddings.LayerNorm.{weight,bias}", "-embeddings.position_ids",
    "transformer.layer.<N>.attention.{q,k,v,out}_lin.{weight,bias}",
    "transformer.layer.<N>.ffn.{lin1,lin2}.{weight,bias}",
    "transformer.layer.<N>.{sa,output}_layer_norm.{weight,bias}",
)  # fmt: skip
_DISTILBERT_HEADS = {
    "Model": "",
    "ForMaskedLM": rows(
        "vocab_transform.{weight,bias}", "vocab_layer_norm.{weight,bias}", "vocab_projector.bias",
        "vocab_projector.weight = @embeddings.word_embeddings.weight",
    ),
    "ForSequenceClassification": "{pre_classifier,classifier}.{weight,bias}",
    "ForMultipleChoice": "{pre_classifier,classifier}.{weight,bias}",
    "ForTokenClassification": CLASSIFIER,
    "ForQuestionAnswering": ANSWERS,
}  # fmt: skip
_ALBERT_LAYER = "encoder.albert_layer_groups.<num_hidden_groups>.albert_layers.<inner_group_num>"
_ALBERT = rows(
    "embeddings.word_embeddings.weight | vocab_size embedding_size",
    "embeddings.position_embeddings.weight | max_position_embeddings embedding_size",
    "embeddings.token_type_embeddings.weight | type_vocab_size embedding_size",
    "embeddings.LayerNorm.{weight,bias}", "-embeddings.{position_ids,token_type_ids}",
    "encoder.embedding_hidden_mapping_in.{weight,bias}",
    f"{_ALBERT_LAYER}.attention.{{query,key,value,dense,LayerNorm}}.{{weight,bias}}",
    f"{_ALBERT_LAYER}.{{ffn,ffn_output,full_layer_layer_norm}}.{{weight,bias}}",
    "~pooler.{weight,bias}",
)  # fmt: skip
_ALBERT_LM = rows(
    "predictions.bias / predictions.decoder.bias", "~predictions.decoder.bias",
    "predictions.decoder.weight = @embeddings.word_embeddings.weight",
    "predictions.{dense,LayerNorm}.{weight,bias}",
)  # fmt: skip
_ALBERT_HEADS = {
    "Model": "!@pooler.{weight,bias}",
    "ForMaskedLM": _ALBERT_LM,
    "ForPreTraining": rows(
        "@pooler.{weight,bias}", _ALBERT_LM, "sop_classifier.classifier.{weight,bias}"
    ),
    "ForSequenceClassification": rows("@pooler.{weight,bias}", CLASSIFIER),
    "ForMultipleChoice": rows("@pooler.{weight,bias}", CLASSIFIER),
    "ForTokenClassification": CLASSIFIER,
    "ForQuestionAnswering": ANSWERS,
}
_ELECTRA = rows(
    "embeddings.word_embeddings.weight | vocab_size embedding_size",
    "embeddings.position_embeddings.weight | max_position_embeddings embedding_size",
    "embeddings.token_type_embeddings.weight | type_vocab_size embedding_size",
    "embeddings.LayerNorm.{weight,bias}", *_BERT_LAYER,
    "-embeddings.{position_ids,token_type_ids}",
    "embeddings_project.{weight,bias} ? embedding_size!=hidden_size",
)  # fmt: skip
_ELECTRA_LM = rows(
    "generator_predictions.{dense,LayerNorm}.{weight,bias}", "generator_lm_head.bias",
    "generator_lm_head.weight = @embeddings.word_embeddings.weight",
)  # fmt: skip
_ELECTRA_HEADS = {
    "Model": "",
    "ForCausalLM": _ELECTRA_LM,
    "ForMaskedLM": _ELECTRA_LM,
    "ForPreTraining": "discriminator_predictions.{dense,dense_prediction}.{weight,bias}",
    "ForSequenceClassification": _TWO_STEPS,
    "ForMultipleChoice": rows("sequence_summary.summary.{weight,bias}", CLASSIFIER),
    "ForTokenClassification": CLASSIFIER,
    "ForQuestionAnswering": ANSWERS,
}
_MPNET = rows(
    "embeddings.word_embeddings.weight | vocab_size hidden_size",
    "embeddings.position_embeddings.weight | max_position_embeddings hidden_size",
    "embeddings.LayerNorm.{weight,bias}", "-embeddings.position_ids",
    "encoder.layer.<N>.attention.attn.{q,k,v,o}.{weight,bias}",
    "encoder.layer.<N>.attention.LayerNorm.{weight,bias}",
    "encoder.layer.<N>.intermediate.dense.{weight,bias}",
    "encoder.layer.<N>.output.{dense,LayerNorm}.{weight,bias}",
    "encoder.relative_attention_bias.weight", "~pooler.dense.{weight,bias}",
)  # fmt: skip

ENCODERS: Mapping[str, Family] = {
    "bert": Family(stem="Bert", base=("bert.",), body=_BERT, heads=_BERT_HEADS, tied=True),
    "roberta": Family(
        stem="Roberta", base=("roberta.",), body=_BERT, heads=_ROBERTA_HEADS, tied=True
    ),
    "xlm-roberta": Family(
        stem="XLMRoberta", base=("roberta.",), body=_BERT, heads=_ROBERTA_HEADS, tied=True
    ),
    "camembert": Family(
        stem="Camembert", base=("roberta.",), body=_BERT, heads=_ROBERTA_HEADS, tied=True
    ),
    "distilbert": Family(
        stem="DistilBert",
        base=("distilbert.",),
        body=_DISTILBERT,
        heads=_DISTILBERT_HEADS,
        tied=True,
    ),
    "albert": Family(
        stem="Albert", base=("albert.",), body=_ALBERT, heads=_ALBERT_HEADS, tied=True
    ),
    "electra": Family(
        stem="Electra", base=("electra.",), body=_ELECTRA, heads=_ELECTRA_HEADS, tied=True
    ),
    "mpnet": Family(stem="MPNet", base=("mpnet.",), body=_MPNET, heads=_ROBERTA_HEADS, tied=True),
}  # fmt: skip
