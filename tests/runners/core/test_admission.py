from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from runners.core.admission import Admission, Admitted
from runners.core.errors import LimitExceededError, OverloadedError
from runners.core.request_limits import RequestLimits

LIMITS = RequestLimits(
    max_concurrent_requests=2, max_queue_characters=100, max_queue_tokens=50, max_answer_numbers=1000
)


@pytest.fixture
def admission() -> Admission:
    return Admission(LIMITS)


@contextlib.contextmanager
def refused(error: type[Exception], message: str) -> Iterator[None]:
    with pytest.raises(error, match=message):
        yield


def count(admission: Admission) -> tuple[int, int, int, int]:
    return admission.requests, admission.characters.held, admission.tokens.held, admission.numbers.held


def test_requests(admission: Admission) -> None:
    most = r"the model is busy with 2 requests, which is the most it takes \(max_concurrent_requests\)"
    with admission.admit(), admission.admit(), refused(OverloadedError, most):
        admission.admit().__enter__()
    with admission.admit():
        assert admission.requests == 1


def test_characters_count_until_they_are_tokens(admission: Admission) -> None:
    with admission.admit(500) as alone:
        with refused(
            OverloadedError, "have 500 characters; 1 more would exceed the 100 that --max_queue_characters allows"
        ):
            admission.admit(1).__enter__()
        alone.queue(20)
        with admission.admit(100):
            assert count(admission) == (2, 100, 20, 0)


def test_tokens_count_until_an_output_begins(admission: Admission) -> None:
    with admission.admit() as one, admission.admit() as other:
        one.queue(30)
        with refused(OverloadedError, "have 30 tokens; 21 more would exceed the 50 that --max_queue_tokens allows"):
            other.queue(21)
        one.start(10)
        other.queue(21)
        with refused(LimitExceededError, "51 tokens of prompts, each times its outputs, are more than the 50"):
            other.queue(51)


def test_logprobs_count_until_the_request_is_over(admission: Admission) -> None:
    with admission.admit() as other:
        with admission.admit() as one:
            one.queue(1, 600)
            one.start(1)
            with refused(
                OverloadedError, "have 600 numbers in answers; 401 more would exceed the 1000 that --max_answer_numbers"
            ):
                other.queue(1, 401)
            other.queue(1, 400)
        assert admission.numbers.held == 400
        other.queue(1, 600)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_of_a_request_that_is_over(admission: Admission, fails: bool) -> None:
    def serve(admitted: Admitted) -> None:
        admitted.queue(20, 7)
        admitted.start(5)
        if fails:
            raise RuntimeError

    with contextlib.suppress(RuntimeError), admission.admit(10) as admitted:
        serve(admitted)
    assert count(admission) == (0, 0, 0, 0)
