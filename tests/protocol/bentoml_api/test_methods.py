"""BentoML's methods against the tasks that they call."""

from __future__ import annotations

import bentoml
import pytest

from protocol.bentoml_api.functions import create_function
from protocol.bentoml_api.methods import METHODS, Method
from runners.core.models import Models
from runners.core.request_limits import RequestLimits
from runners.core.sampling_parameters import SamplingParameters
from runners.core.task import Task
from runners.encoder.tasks import ENCODER_TASKS

# Why a method does not have an option of its task.
LEFT_OUT = {
    "labels": "answers always have the labels",
    "return_truncated_tokens": "answers have no place for it",
}
LEFT_OUT_OF = {
    "classify_zero_shot": {
        "function_to_apply": "for texts without candidate_labels",
        "stride": "for texts without candidate_labels",
        "window_aggregation": "for texts without candidate_labels",
    },
    "rank": {"top_k": "a pair has one score", "threshold": "a pair has one score"},
}


def refuse() -> Models:
    raise AssertionError


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_method_has_all_options_of_its_task(method: Method) -> None:
    names = [option.name for option in method.options]
    assert len(names) == len({*names})
    if method.is_stream:
        assert {*names} == {*SamplingParameters.__struct_fields__} - {"max_new_tokens"}
        return
    [task] = method.tasks
    options = ENCODER_TASKS[task].answer_options | ENCODER_TASKS[task].overflow_options
    assert {*names} == options - LEFT_OUT.keys() - LEFT_OUT_OF.get(method.name, {}).keys()


def test_every_task_has_a_method() -> None:
    assert frozenset().union(*(method.tasks for method in METHODS.values())) == {*Task}


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_bentoml_makes_a_schema_of_a_method(method: Method) -> None:
    made = bentoml.api(route=method.path)(create_function(method, refuse, RequestLimits()))
    schema = made.schema()
    assert (schema["name"], schema["route"]) == (method.name, method.path)
    assert made.doc == method.description
    properties = schema["input"]["properties"]
    assert [*properties] == [argument.name for argument in method.arguments]
    assert schema["input"]["required"] == [argument.name for argument in method.arguments if argument.is_required]
    # Each argument has a type or its values, which the pages of BentoML show a field for.
    assert all(each.keys() & {"type", "enum"} for each in properties.values())
    assert schema["output"].get("is_stream", False) is method.is_stream
