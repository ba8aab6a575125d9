"""The fields that a call does not have, and that another call or a neighbouring protocol has: refused by name.

The neighbours are OpenAI's, vLLM's, Cohere's and Hugging Face's calls of the same tasks. Other unknown fields are
accepted, as by that server.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.refused_parameters import RefusedParameter, refuse

# Of the other calls.
_OF_CALLS: Mapping[str, RefusedParameter] = {
    **refuse("inputs", "query", "texts", "ids", "source_sentence", "sentences", "dimensions", "prompt_name"),
    **refuse("normalize", "add_special_tokens", neutral=(True,)),
    **refuse("truncate", "raw_scores", "return_text", "skip_special_tokens", neutral=(False,)),
    **refuse("truncation_direction", neutral=("Right", "right")),
    **refuse("parameters", neutral=({},), advice="parameters stand beside inputs"),
}
_OF_NEIGHBOURS: Mapping[str, RefusedParameter] = {
    # Texts.
    **refuse("input", "prompt", "messages", "tokens", "documents", "queries", "items"),
    **refuse("data_1", "data_2", "text_1", "text_2", "text_pair", "images"),
    # The form of vectors.
    **refuse("encoding_format", "embedding_type", "output_dtype", neutral=("float",)),
    **refuse("embedding_types", neutral=(["float"],)),
    **refuse("embed_dtype", neutral=("float32",)),
    **refuse("endianness", neutral=("native", "little")),
    **refuse("output_dimension"),
    **refuse("normalized", neutral=(True,)),
    **refuse("pooling", advice="the model's files say how it pools"),
    # What is before a text, and how much of it is read.
    **refuse("input_type", "instruction", advice="the prompts of embeddings are prompt_name"),
    **refuse("truncation", neutral=(True,), advice="use truncate"),
    **refuse("truncation_side", advice="use truncation_direction"),
    **refuse("truncate_prompt_tokens", "max_tokens", "max_length", advice="--max_length of the server limits texts"),
    **refuse("max_tokens_per_doc", "max_tokens_per_query", neutral=(0,)),
    **refuse("max_chunks_per_doc", neutral=(1,)),
    **refuse("stride"),
    # What an answer has.
    **refuse("task"),
    **refuse("top_n", neutral=(0,), advice="the answer is whole"),
    **refuse("top_k", "threshold", advice="the answer is whole"),
    **refuse("return_documents", "return_embeddings", "return_token_strs", neutral=(False,)),
    **refuse("rank_fields"),
    **refuse("function_to_apply", "activation", "softmax", advice="scores that are not logits need no parameter"),
    **refuse("use_activation", neutral=(True,), advice="logits are raw_scores, of /predict and /rerank"),
    **refuse("candidate_labels", "hypothesis_template", advice="call /pipeline/zero-shot-classification"),
    **refuse("multi_label", neutral=(False,), advice="call /pipeline/zero-shot-classification"),
}
_NOT_TRUNCATING = refuse("truncation", neutral=(False,)) | refuse("truncation_side")
# The model's own vectors, whose length is not 1.
_NOT_NORMALIZING = refuse("normalize", "normalized", neutral=(False,))
# Cosines have no length.
_COSINES = refuse("normalize", "normalized", neutral=(True, False))
_PROMPTED = ("prompt_name", "truncate", "truncation_direction")


def _refuse_but(*names: str, **own: RefusedParameter) -> Mapping[str, RefusedParameter]:
    """
    Args:
        names: the fields that the call has.
        own: the refusals that are the call's own.
    """
    every = {**_OF_CALLS, **_OF_NEIGHBOURS, **own}
    return {name: refusal for name, refusal in every.items() if name not in names}


# By path.
REFUSED: Mapping[str, Mapping[str, RefusedParameter]] = {
    "/embed": _refuse_but("inputs", *_PROMPTED, "normalize", "dimensions"),
    "/embed_all": _refuse_but("inputs", *_PROMPTED, **_NOT_NORMALIZING),
    "/embed_sparse": _refuse_but("inputs", *_PROMPTED, **_NOT_NORMALIZING),
    "/similarity": _refuse_but("inputs", "parameters", **_COSINES, **refuse(*_PROMPTED, advice="put it in parameters")),
    "/predict": _refuse_but("inputs", "truncate", "truncation_direction", "raw_scores"),
    "/rerank": _refuse_but("query", "texts", "truncate", "truncation_direction", "raw_scores", "return_text", "top_n"),
    "/tokenize": _refuse_but("inputs", "prompt_name", "add_special_tokens", **_NOT_TRUNCATING),
    "/decode": _refuse_but(
        "ids", "skip_special_tokens", **_NOT_TRUNCATING, **refuse("add_special_tokens", neutral=(False,))
    ),
}
# In `parameters` of `/similarity`.
REFUSED_OF_SIMILARITY = _refuse_but(*_PROMPTED, **_COSINES)
