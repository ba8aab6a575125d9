"""BentoML's methods: one for each task of encoders, `generate` and `chat`.

They show a model to BentoML's own clients and pages as functions with typed arguments. Their answers have the same form
whatever the operator's defaults are: names and scores, in lists, for each text.

service.py imports this module in BentoML's parent process too: it imports nothing that answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.bentoml_api.arguments import MODEL, Argument, ChatMessage, encoder_options, sampling_options
from protocol.bentoml_api.outputs import Answer, ClassScore, Entity, MaskToken, RankedText, SparseValue, Vectors
from runners.core.task import GENERATION, Task


@dataclass(frozen=True, slots=True)
class Method:
    """A method.

    Attributes:
        description: what it does, for users.
        tasks: the tasks of the models that it calls.
        inputs: the arguments that are no options.
        options: the arguments that set options of the model.
        output: the type of the answer; where it is a generator, the answer is a stream of pieces of a text.
    """

    name: str
    description: str
    tasks: frozenset[Task]
    inputs: Sequence[Argument]
    options: Sequence[Argument]
    output: Any

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream."""
        return self.tasks == GENERATION

    @property
    def path(self) -> str:
        """No other protocol has paths below this prefix."""
        return f"/bentoml/{self.name}"

    @property
    def arguments(self) -> Sequence[Argument]:
        """All arguments, those that are required first."""
        return sorted([*self.inputs, MODEL, *self.options], key=lambda argument: not argument.is_required)


_TEXTS = Argument("texts", list[str], "The texts.")
_TRUNCATION = ("truncation", "truncation_side")
_WINDOWS = ("stride", "window_aggregation")
_SAMPLING = sampling_options()

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "classify",
            "Classify texts, or pairs of texts. Answers with the best classes of each text, best first: one, or top_k.",
            frozenset({Task.SEQUENCE_CLASSIFICATION}),
            [_TEXTS, Argument("text_pairs", list[str], "The second text of each pair.", is_required=False)],
            encoder_options("top_k", "threshold", "function_to_apply", *_TRUNCATION, *_WINDOWS),
            list[list[ClassScore]],
        ),
        Method(
            "classify_tokens",
            "Classify the tokens of texts. Answers with the tokens of each text that have a label, or, with an "
            "aggregation_strategy, with its entities.",
            frozenset({Task.TOKEN_CLASSIFICATION}),
            [_TEXTS],
            encoder_options("aggregation_strategy", "ignore_labels", *_TRUNCATION, "stride"),
            list[list[Entity]],
        ),
        Method(
            "classify_zero_shot",
            "Classify texts by labels that the call names. Answers with the labels of each text, best first.",
            frozenset({Task.ZERO_SHOT_CLASSIFICATION}),
            [_TEXTS],
            [
                Argument("candidate_labels", list[str], "The labels."),
                *encoder_options(
                    "hypothesis_template", "multi_label", "top_k", "threshold", "truncation", "truncation_side"
                ),
            ],
            list[list[ClassScore]],
        ),
        Method(
            "fill_mask",
            "Fill the masks of texts. Answers with the best tokens of each mask of each text, best first.",
            frozenset({Task.FILL_MASK}),
            [_TEXTS],
            encoder_options("top_k", "targets", *_TRUNCATION, "stride"),
            list[list[list[MaskToken]]],
        ),
        Method(
            "answer",
            "Answer questions from their contexts. Answers with the best answers to each question, best first: one, or "
            "top_k.",
            frozenset({Task.QUESTION_ANSWERING}),
            [
                Argument("questions", list[str], "The questions."),
                Argument("contexts", list[str], "The text that has the answer, for each question."),
            ],
            encoder_options("top_k", "max_answer_len", "handle_impossible_answer", "stride"),
            list[list[Answer]],
        ),
        Method(
            "embed",
            "Embed texts. Answers with the vectors of the texts, a row for each.",
            frozenset({Task.TEXT_EMBEDDING}),
            [_TEXTS],
            encoder_options("normalize", "dimensions", "prompt_name", *_TRUNCATION),
            Vectors,
        ),
        Method(
            "embed_sparse",
            "Embed texts as sparse vectors. Answers with the values of each vector that are not 0.",
            frozenset({Task.SPARSE_EMBEDDING}),
            [_TEXTS],
            encoder_options("max_active_dims", "prompt_name", *_TRUNCATION),
            list[list[SparseValue]],
        ),
        Method(
            "rank",
            "Rank texts by their relevance to a query, best first.",
            frozenset({Task.TEXT_RANKING}),
            [Argument("query", str, "The query."), _TEXTS],
            encoder_options("function_to_apply", *_TRUNCATION, *_WINDOWS),
            list[RankedText],
        ),
        Method(
            "generate",
            "Continue a text, or answer it if the model is an encoder-decoder. Answers with the pieces of the text.",
            GENERATION,
            [Argument("prompt", str, "The text.")],
            _SAMPLING,
            AsyncGenerator[str, None],
        ),
        Method(
            "chat",
            "Answer a chat, for models with a chat template. Answers with the pieces of the message.",
            GENERATION,
            [Argument("messages", list[ChatMessage], "The messages, each with its role and its content.")],
            _SAMPLING,
            AsyncGenerator[str, None],
        ),
    )
}
