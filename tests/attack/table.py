"""All cases."""

from __future__ import annotations

from itertools import chain

from tests.attack import cases_bodies, cases_generation, cases_grpc, cases_http, cases_tasks

CASES = [
    *chain.from_iterable(each.CASES for each in (cases_http, cases_bodies, cases_grpc, cases_tasks, cases_generation))
]
