"""Each alarm by promtool: when it fires, when it does not, and that no other one does."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.debian import find_program, needs_program
from tests.observability.files import FOLDER, RULES, RUNBOOK, alarms, all_expressions, fill_in
from tests.servers import ROOT

ON = 'job="r",instance="a:1"'
MODEL = f'{ON},model_name="m"'
REQUESTS = f'runtime_requests_total{{{MODEL},protocol="kserve_v1",route="/v1/models/{{name}}:predict",status="%s"}}'
REFUSALS = f'runtime_refusals_total{{{MODEL},protocol="kserve_v1",reason="%s"}}'
INFO = f'runtime_model_info{{{MODEL},version="1",task="%s"}}'
PREDICT = f'{MODEL},protocol="kserve_v1",route="/v1/models/{{name}}:predict"'
DEATHS = f'runtime_worker_deaths_total{{{ON},reason="killed"}}'


@dataclass(frozen=True)
class Scenario:
    """Series of one sample a minute in promtool's notation, and the alarms that fire.

    Attributes:
        alarm: the alarm that this is about.
        series: values by series.
        minute: when the alarms are looked at.
        labels: those of the alarm, without its name and severity; None if it does not fire.
        others: further alarms that this must fire too.
    """

    alarm: str
    series: dict[str, str]
    minute: int
    labels: dict[str, str] | None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.alarm} {'fires' if self.labels is not None else 'is quiet'}: {', '.join(self.series.values())}"


def histogram(metric: str, labels: str, le: float, fast: int, slow: int) -> dict[str, str]:
    """A histogram that gets `fast` observations a minute up to `le` and `slow` ones above."""
    total = f"0+{fast + slow}x120"
    return {
        f'{metric}_bucket{{{labels},le="{le}"}}': f"0+{fast}x120",
        f'{metric}_bucket{{{labels},le="{4 * le}"}}': total,
        f'{metric}_bucket{{{labels},le="+Inf"}}': total,
    }


READY = {f"runtime_server_ready{{{ON}}}": "1x120", f"up{{{ON}}}": "1x120"}
JOB, INSTANCE, OF_MODEL = {"job": "r"}, {"job": "r", "instance": "a:1"}, {"job": "r", "model_name": "m"}
OF_BOTH = {**INSTANCE, **OF_MODEL}
WAITING, BATCHES = f"runtime_waiting_texts{{{MODEL}}}", f"runtime_batch_texts_count{{{MODEL}}}"
TEXTS, TRUNCATED = f"runtime_texts_total{{{MODEL}}}", f"runtime_truncated_texts_total{{{MODEL}}}"
NON_FINITE = f"runtime_non_finite_texts_total{{{MODEL}}}"
CANCELLED = f'runtime_cancelled_requests_total{{{MODEL},protocol="kserve_v1"}}'
MODEL_READY = f'runtime_model_ready{{{MODEL},version="1"}}'
SERVER_READY, UP, WORKERS = f"runtime_server_ready{{{ON}}}", f"up{{{ON}}}", f"runtime_workers{{{ON}}}"
GENERATED = f"vllm:generation_tokens_total{{{MODEL}}}"
# vLLM's own metrics have this label too.
WAITING_ON_VLLM = f'vllm:num_requests_waiting{{{MODEL},engine="0"}}'
GENERATED_BY_VLLM = f'vllm:generation_tokens_total{{{MODEL},engine="0"}}'
ENDED_ON_VLLM = f'vllm:request_success_total{{{MODEL},engine="0",finished_reason="%s"}}'
FIRST_TOKEN = "vllm:time_to_first_token_seconds"

SCENARIOS = [
    Scenario("RuntimeAbsent", {UP: "1x120"}, 11, {}),
    Scenario("RuntimeAbsent", {UP: "1x120"}, 9, None),
    Scenario("RuntimeAbsent", READY, 60, None),
    Scenario("RuntimeScrapeFails", {SERVER_READY: "1x10 stale", UP: "1x10 0x120"}, 14, INSTANCE),
    Scenario("RuntimeScrapeFails", {SERVER_READY: "1x10 stale", UP: "1x10 0x120"}, 11, None),
    # A pod that has gone, and a target that never was this server: they are another job's.
    Scenario("RuntimeScrapeFails", READY | {'up{job="r",instance="b:1"}': "0x120"}, 60, None),
    Scenario("RuntimeNotReady", {SERVER_READY: "0x120", UP: "1x120"}, 31, INSTANCE),
    Scenario("RuntimeNotReady", {SERVER_READY: "0x20 1x120", UP: "1x120"}, 31, None),
    Scenario("RuntimeModelNotReady", READY | {MODEL_READY: "0x120"}, 31, {**OF_BOTH, "version": "1"}),
    # The other alarm tells it.
    Scenario("RuntimeModelNotReady", {SERVER_READY: "0x120", MODEL_READY: "0x120"}, 31, None, ("RuntimeNotReady",)),
    Scenario("RuntimeStuck", READY | {WAITING: "5x120", BATCHES: "9x120"}, 9, OF_BOTH),
    Scenario("RuntimeStuck", READY | {WAITING: "5x120"}, 9, OF_BOTH),
    Scenario("RuntimeStuck", READY | {WAITING: "5x120", BATCHES: "0+60x120"}, 60, None),
    Scenario("RuntimeStuck", READY | {WAITING: "5 0 5 0 5 0 5 0 5 0 5 0 5", BATCHES: "9x120"}, 12, None),
    Scenario("RuntimeStuck", READY | {WAITING: "5x120", GENERATED: "0+60x120"}, 60, None),
    Scenario("RuntimeStuck", READY | {WAITING_ON_VLLM: "5x120", GENERATED_BY_VLLM: "9x120"}, 9, {**OF_BOTH, "engine": "0"}),
    Scenario("RuntimeStuck", READY | {WAITING_ON_VLLM: "5x120", GENERATED_BY_VLLM: "0+60x120"}, 60, None),
    Scenario("RuntimeErrors", READY | {REQUESTS % "200": "0+60x120", REQUESTS % "500": "0+6x120"}, 12, OF_MODEL),
    Scenario("RuntimeErrors", READY | {REQUESTS % "OK": "0+60x120", REQUESTS % "INTERNAL": "0+6x120"}, 12, OF_MODEL),
    Scenario(
        "RuntimeErrors", READY | {REQUESTS % "200": "0+60x120", REFUSALS % "generation_failed": "0+6x120"}, 12, OF_MODEL
    ),
    Scenario("RuntimeErrors", READY | {ENDED_ON_VLLM % "stop": "0+60x120", ENDED_ON_VLLM % "error": "0+6x120"}, 12, OF_MODEL),
    Scenario("RuntimeErrors", READY | {ENDED_ON_VLLM % "stop": "0+60x120", ENDED_ON_VLLM % "abort": "0+6x120"}, 60, None),
    Scenario("RuntimeErrors", READY | {REQUESTS % "200": "0+60x120", REQUESTS % "500": "0+1x120"}, 60, None),
    Scenario(
        "RuntimeErrors", READY | {
            REQUESTS % "200": "0+58x120", REQUESTS % "500": "0+2x120", REFUSALS % "internal": "0+2x120"
        }, 60, None,
    ),
    Scenario("RuntimeErrors", READY | {REQUESTS % "200": "0+60x120", REQUESTS % "400": "0+60x120"}, 60, None),
    Scenario("RuntimeWorkerDied", READY | {DEATHS: "0 0 0 1x120"}, 5, {**INSTANCE, "reason": "killed"}),
    Scenario("RuntimeWorkerDied", READY | {DEATHS: "0 0 0 1x120"}, 30, None),
    Scenario("RuntimeWorkersKeepDying", READY | {DEATHS: "0+1x120"}, 10, INSTANCE, ("RuntimeWorkerDied",)),
    Scenario("RuntimeWorkersKeepDying", READY | {DEATHS: "0 0 0 1x120"}, 5, None, ("RuntimeWorkerDied",)),
    Scenario("RuntimeWorkersMissing", READY | {WORKERS: "2x10 1x120"}, 22, INSTANCE),
    Scenario("RuntimeWorkersMissing", READY | {WORKERS: "2x10 1 2x120"}, 22, None),
    Scenario("RuntimeRestarts", READY | {REQUESTS % "200": "5 9 5 9 5 9 5 9"}, 8, INSTANCE),
    Scenario("RuntimeRestarts", READY | {REQUESTS % "200": "5 9 5 9 12 15 20"}, 8, None),
    Scenario("RuntimeSlow", READY | histogram("runtime_request_seconds", PREDICT, 5, 50, 10), 16, OF_MODEL),
    Scenario("RuntimeSlow", READY | histogram("runtime_request_seconds", PREDICT, 5, 5000, 10), 60, None),
    Scenario(
        "RuntimeSlow",
        READY | histogram("runtime_request_seconds", PREDICT, 5, 50, 10) | {INFO % "text_generation": "1x120"}, 60, None,
    ),
    Scenario(
        "RuntimeSlow",
        READY | histogram("runtime_request_seconds", PREDICT, 5, 50, 10) | {INFO % "fill_mask": "1x120", INFO % "text_generation": "0x120"}, 60, OF_MODEL,
    ),
    Scenario("RuntimeFirstTokenSlow", READY | histogram(FIRST_TOKEN, MODEL, 10, 50, 10), 16, OF_MODEL),
    Scenario("RuntimeFirstTokenSlow", READY | histogram(FIRST_TOKEN, MODEL, 10, 5000, 10), 60, None),
    Scenario("RuntimeQueueLong", READY | histogram("runtime_queue_seconds", MODEL, 2, 50, 10), 16, OF_MODEL),
    Scenario("RuntimeQueueLong", READY | histogram("runtime_queue_seconds", MODEL, 2, 50, 4), 60, None),
    Scenario("RuntimeRefuses", READY | {REQUESTS % "429": "0+10x120", REFUSALS % "overloaded": "0+10x120"}, 12, JOB),
    Scenario("RuntimeRefuses", READY | {REQUESTS % "200": "0+500x120", REFUSALS % "overloaded": "0+10x120"}, 60, None),
    Scenario("RuntimeRefuses", READY | {REQUESTS % "400": "0+10x120", REFUSALS % "input": "0+10x120"}, 60, None),
    Scenario("RuntimeCancelled", READY | {REQUESTS % "200": "0+20x120", CANCELLED: "0+10x120"}, 16, OF_MODEL),
    Scenario("RuntimeCancelled", READY | {REQUESTS % "200": "0+200x120", CANCELLED: "0+10x120"}, 60, None),
    Scenario("RuntimeTruncates", READY | {TEXTS: "0+20x120", TRUNCATED: "0+10x120"}, 36, OF_MODEL),
    Scenario("RuntimeTruncates", READY | {TEXTS: "0+200x120", TRUNCATED: "0+10x120"}, 60, None),
    Scenario("RuntimeNonFinite", READY | {NON_FINITE: "0 0 0 1x120"}, 5, OF_MODEL),
    Scenario("RuntimeNonFinite", READY | {NON_FINITE: "0 0 0 1x120"}, 30, None),
]  # fmt: skip


def run_promtool(*words: str | Path) -> str:
    program = find_program("promtool")
    assert program is not None
    found = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def severity(name: str) -> str:
    [found] = [rule["labels"]["severity"] for rule in alarms() if rule["alert"] == name]
    return str(found)


def alerts_of(scenario: Scenario) -> list[dict[str, Any]]:
    """The series ALERTS that are expected; of others only the names are compared."""
    if scenario.labels is None:
        return []
    labels = {"alertname": scenario.alarm, "alertstate": "firing", "severity": severity(scenario.alarm)}
    inside = ",".join(f'{name}="{value}"' for name, value in {**labels, **scenario.labels}.items())
    return [{"labels": f"ALERTS{{{inside}}}", "value": 1}]


@needs_program("promtool")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_alarms(scenario: Scenario, tmp_path: Path) -> None:
    time = f"{scenario.minute}m"
    firing = {*scenario.others} | ({scenario.alarm} if scenario.labels is not None else set())
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in scenario.series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'ALERTS{{alertstate="firing",alertname="{scenario.alarm}"}}',
                        "eval_time": time,
                        "exp_samples": alerts_of(scenario),
                    },
                    {
                        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": time,
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)],
                    },
                ],
            }
        ],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(tests))
    run_promtool("test", "rules", path)


def test_each_alarm_is_shown_to_fire_and_to_be_quiet() -> None:
    names = {rule["alert"] for rule in alarms()}
    assert {each.alarm for each in SCENARIOS if each.labels is not None} == names
    assert {each.alarm for each in SCENARIOS if each.labels is None} == names


@pytest.mark.parametrize("rule", alarms(), ids=lambda rule: rule["alert"])
def test_form(rule: dict[str, Any]) -> None:
    """Each has a severity, texts that name only labels which it has when it fires, and a section of the runbook."""
    name = rule["alert"]
    assert {*rule} <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    texts = rule["annotations"]["summary"] + rule["annotations"]["description"]
    named = {*re.findall(r"\$labels\.(\w+)", texts)}
    for scenario in SCENARIOS:
        if scenario.alarm == name and scenario.labels is not None:
            assert named <= {*scenario.labels}
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert ROOT / path == RUNBOOK
    assert anchor == name.lower()
    assert f"\n### {name}\n" in RUNBOOK.read_text(encoding="utf-8")


@needs_program("promtool")
def test_rules_parse() -> None:
    run_promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


@needs_program("promtool")
def test_the_scrape_configuration_parses(tmp_path: Path) -> None:
    """With the paths of the container, in which the rules stand beside it."""
    for name in ("prometheus.yaml", "rules.yaml"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    assert "1 rule files found" in run_promtool("check", "config", tmp_path / "prometheus.yaml")


@needs_program("promtool")
def test_every_expression_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"expression:{number}", "expr": fill_in(each.text)} for number, each in enumerate(all_expressions())
    ]
    path = tmp_path / "expressions.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "expressions", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run_promtool("check", "rules", path)


@needs_program("promtool")
def test_a_wrong_expression_does_not(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "wrong", "rules": [{"record": "a", "expr": "sum(("}]}]}))
    with pytest.raises(AssertionError, match="could not parse expression"):
        run_promtool("check", "rules", path)
