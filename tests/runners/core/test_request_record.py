"""Records of requests: their observers, the requests in progress, and what the running code sees of them."""

from __future__ import annotations

from contextvars import copy_context

from runners.core.request_record import (
    RequestRecord,
    add_start_observer,
    begin_record,
    current_record,
    end_record,
    in_progress,
    record_refusal,
    remove_observer,
)


def test_observers_get_a_record_once_it_has_ended(ended: list[RequestRecord]) -> None:
    record = begin_record("tei", "/embed", "POST", lambda _: None)
    assert current_record.get() is record
    assert not ended
    end_record(record)
    assert ended == [record]
    assert current_record.get() is None
    assert record.ended >= record.started > 0


def test_a_start_observer_reads_headers() -> None:
    def observe(record: RequestRecord, read_header: object) -> None:
        assert callable(read_header)
        record.trace_id = read_header("traceparent")

    add_start_observer(observe)
    try:
        record = begin_record("tei", "/embed", "POST", {"traceparent": "00-1"}.get)
        assert record.trace_id == "00-1"
        end_record(record)
    finally:
        remove_observer(observe)


def test_requests_in_progress_move_to_their_protocol() -> None:
    before = dict(in_progress)
    record = begin_record("server", "unknown", "POST", lambda _: None)
    record.locate("openai", "/v1/completions")
    assert in_progress["openai"] == before.get("openai", 0) + 1
    assert in_progress["server"] == before.get("server", 0)
    end_record(record)
    assert in_progress["openai"] == before.get("openai", 0)


def test_a_request_in_the_context_of_another_has_its_own_record(ended: list[RequestRecord]) -> None:
    """As a pipelined request, which begins while the one before it ends."""
    first = begin_record("tei", "/embed", "POST", lambda _: None)

    def run_second() -> None:
        second = begin_record("tei", "/embed", "POST", lambda _: None)
        assert current_record.get() is second
        end_record(second)
        assert current_record.get() is None

    copy_context().run(run_second)
    assert current_record.get() is first
    end_record(first)
    assert len({id(record) for record in ended}) == 2


def test_a_refusal_without_a_request_leaves_the_running_record(ended: list[RequestRecord]) -> None:
    running = begin_record("tei", "/embed", "POST", lambda _: None)
    record_refusal("server", "408", "timeout", "")
    assert current_record.get() is running
    assert [(each.route, each.status, each.refusal) for each in ended] == [("unknown", "408", "timeout")]
    end_record(running)
