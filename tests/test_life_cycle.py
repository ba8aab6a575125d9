"""Started servers whose workers die or stand still, and that are told to end."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runners.core.probe_paths import LIVE_PATHS, READY_PATHS
from runners.hosting.life.supervisor import FROZEN_SECONDS
from tests.callers import Callers, GrpcCallers, HttpCallers
from tests.conftest import ModelFolder
from tests.containers import as_first_process, find_first_process
from tests.families import MINILM
from tests.faults import DEVICE_FAULT, break_device
from tests.generators import save_generator
from tests.servers import BENTOML, ROOT, ServerProcess
from tests.waiting import wait_until
from tests.wire import infer_request

pytestmark = pytest.mark.slow

LAUNCH = [sys.executable, str(ROOT / "launch.py"), "--http_port={port}"]
PREDICT = "/v1/models/model:predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
# All of 127.0.0.0/8 is this machine: an address of its own tells which worker a caller is connected to.
CALLER_HOST = "127.0.1.{caller}"
# A worker is replaced in seconds; BentoML alone took 52 s.
REPLACED_SECONDS = 30
# What a client may see of a worker that is killed while it answers, or of a server that has none.
CLEAN = {503, "ReadError", "RemoteProtocolError", "WriteError"}
# Seconds of texts in one batch.
MANY_TOKENS = "--max_batch_tokens=65536"

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A server of a command line, or of words for launch.py: `start("--workers=2")`."""
    servers: list[ServerProcess] = []

    def begin(*words: str, command: list[str] = LAUNCH, **environment: str) -> ServerProcess:
        server = ServerProcess([*command, *words], tmp_path, environment)
        servers.append(server)
        return server

    yield begin
    for server in servers:
        pids = [each.pid for each in workers_of(server)]
        server.terminate()
        for pid in pids:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def tiny(model_folder: ModelFolder) -> str:
    return f"--model_dir={model_folder('bert', 'fill_mask')}"


def workers_of(server: ServerProcess) -> list[psutil.Process]:
    try:
        children = psutil.Process(server.pid).children(recursive=True)
        return [child for child in children if "worker.service" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def masks(server: ServerProcess) -> HttpCallers:
    return HttpCallers(f"http://{CALLER_HOST}:{server.port}{PREDICT}", {"instances": ["a [MASK]"]}, 16)


def grpc_masks(server: ServerProcess) -> GrpcCallers:
    return GrpcCallers(f"{CALLER_HOST}:{server.grpc_port}", INFER, infer_request("a [MASK]").SerializeToString(), 8)


def callers_of(worker: psutil.Process, port: int) -> set[int]:
    """The callers whose connections to a port a worker has."""
    hosts = [each.laddr.ip for each in worker.connections("tcp") if each.laddr.port == port and each.raddr]
    return {int(host.rpartition(".")[2]) for host in hosts if "127.0.1." in host}


@contextlib.contextmanager
def callers_of_all_workers(server: ServerProcess) -> Iterator[tuple[HttpCallers, GrpcCallers]]:
    """Callers over HTTP and gRPC; each worker has some of both, although the kernel chooses it for each connection."""
    while True:
        with masks(server) as callers, grpc_masks(server) as grpc_callers:
            wait_until(lambda: callers.answered > 100 and grpc_callers.answered > 100)
            ports = server.port, server.grpc_port
            if all(callers_of(worker, port) for worker in workers_of(server) for port in ports):
                yield callers, grpc_callers
                return


def deaths(server: ServerProcess, reason: str) -> float:
    found = re.search(rf'^runtime_worker_deaths_total{{reason="{reason}"}} (\S+)$', get(server, "/metrics").text, re.M)
    assert found is not None
    return float(found[1])


def get(server: ServerProcess, path: str) -> httpx.Response:
    """GET over a connection of its own."""
    return httpx.get(server.url + path, timeout=10)


def statuses(server: ServerProcess) -> tuple[set[int], set[int]]:
    """What all paths of liveness answer, and all of readiness."""
    return {get(server, path).status_code for path in LIVE_PATHS}, {
        get(server, path).status_code for path in READY_PATHS
    }


def grpc_health(server: ServerProcess) -> tuple[bool, bool, int]:
    """ServerLive, ServerReady, and the health check of the server, over a connection of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        live = stub.ServerLive(messages.ServerLiveRequest(), timeout=10).live
        ready = stub.ServerReady(messages.ServerReadyRequest(), timeout=10).ready
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return live, ready, check.status


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("count", "command", "number"),
    [
        (1, LAUNCH, signal.SIGKILL),
        (2, LAUNCH, signal.SIGSEGV),
        (2, [*BENTOML, "serve", ".", "--port={port}"], signal.SIGKILL),
    ],
)
def test_a_killed_worker_is_replaced(
    start: Start, model_folder: ModelFolder, count: int, command: list[str], number: signal.Signals
) -> None:
    """In a container too, where BentoML replaces none; only what the worker was answering is lost."""
    folder = str(model_folder("bert", "fill_mask"))
    environment = {"RUNTIME_MODEL_DIR": folder, "RUNTIME_WORKERS": str(count), "BENTOML_CONTAINERIZED": "true"}
    server = start(command=command, **environment)
    server.wait_until("/readyz", 200)
    wait_until(lambda: server.output.count("is ready") == count, 60)
    with callers_of_all_workers(server) as (callers, grpc_callers):
        killed = workers_of(server)[0]
        lost = callers_of(killed, server.port), callers_of(killed, server.grpc_port)
        at = time.monotonic()
        killed.send_signal(number)
        wait_until(lambda: server.output.count("is ready") == count + 1, REPLACED_SECONDS)
        wait_until(lambda: get(server, "/readyz").status_code == 200)
        seconds = time.monotonic() - at
        before = callers.answered, grpc_callers.answered
        wait_until(lambda: callers.answered > before[0] + 100 and grpc_callers.answered > before[1] + 100)
    print(f"{count} workers: another one is ready after {seconds:.1f} s")  # noqa: T201
    assert seconds < REPLACED_SECONDS
    assert {failure.status for failure in callers.failures} <= CLEAN
    assert {failure.status for failure in grpc_callers.failures} == {"UNAVAILABLE"}
    for each, connected in zip((callers, grpc_callers), lost, strict=True):
        assert each.failures
        assert max(failure.at - failure.began for failure in each.failures) < 5
        if count > 1:
            check_only_connected_failed(each, connected, at + 5)
        else:
            assert max(failure.at for failure in each.failures) < at + seconds + 1
    refused = sum(failure.status == 503 for failure in callers.failures)
    assert not (refused and count > 1)
    # One line for what the stand-in has answered; the workers that load say 503 too.
    lines = re.findall(r"no worker took requests for \d+\.\d s, and (\d+) were answered with 503", server.output)
    assert len(lines) == (count == 1)
    assert sum(map(int, lines)) <= refused
    line = f"the worker with process id {killed.pid} was ended by {number.name}"
    assert server.output.count(line) == 1
    assert "; another one replaces it" in server.output
    assert "Traceback" not in server.output
    assert deaths(server, "killed") == 1
    assert f"\nruntime_workers {count}.0\n" in get(server, "/metrics").text
    assert server.terminate() == 0


def check_only_connected_failed(callers: Callers, connected: set[int], until: float) -> None:
    """Each caller that was connected to a dead worker fails once at most, until then; no other caller does."""
    failures = callers.failures
    assert {failure.caller for failure in failures} <= connected
    assert len(failures) <= len(connected)
    assert max(failure.at for failure in failures) < until


def test_a_dead_worker_ends_the_server_if_the_operator_says_so(start: Start, tiny: str) -> None:
    server = start(tiny, "--on_worker_death=exit")
    server.wait_until("/readyz", 200)
    os.kill(workers_of(server)[0].pid, signal.SIGSEGV)
    assert server.wait_for_exit(20) == 1
    [line] = [line for line in server.output.splitlines() if "the worker with process id" in line]
    assert line.endswith("was ended by SIGSEGV; the server ends (--on_worker_death=exit)")
    assert "Traceback" not in server.output


@pytest.mark.parametrize("generates", [False, True])
def test_a_failed_device_ends_the_server(start: Start, tmp_path: Path, generates: bool) -> None:
    """As after a device assert on a GPU: every request under way gets an error, and the server is not ready again."""
    folder = save_generator(tmp_path / "llama", "llama") if generates else MINILM
    mark = tmp_path / "fault"
    environment = break_device(tmp_path, mark, generates)
    server = start(f"--model_dir={folder}", "--backend=huggingface", **environment)
    server.wait_until("/readyz", 200)
    parameters = {"parameters": {"max_tokens": 2}} if generates else {}
    bodies = [{"instances": [f"text {number}"], **parameters} for number in range(16)]
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(len(bodies)) as threads:

        def ask(body: dict[str, Any]) -> tuple[int, str]:
            answer = client.post(server.url + PREDICT, json=body)
            return answer.status_code, answer.text

        # All connections are open when the device fails.
        assert {status for status, _ in threads.map(ask, bodies)} == {200}
        mark.touch()
        answers = {*threads.map(ask, bodies)}
    dead, new = '{"error":"the engine has died: the server stops"}', '{"error":"Model with name model is not ready."}'
    assert {(503, dead)} <= answers <= {(503, dead), (503, new)}
    seen: set[int] = set()
    with contextlib.suppress(httpx.TransportError):
        while True:
            seen.add(get(server, "/readyz").status_code)
    assert seen <= {503}
    assert server.wait_for_exit(30) == 1
    assert f"error: the thread that runs all models has died: {DEVICE_FAULT}\n" in server.output
    assert server.output.count(" ready: ") == 1, "it has not begun again"


def test_workers_that_are_never_ready_end_the_server(start: Start, tiny: str) -> None:
    server = start(tiny)
    for _ in range(3):
        wait_until(lambda: workers_of(server), 30)
        killed = workers_of(server)[0]
        killed.kill()
        wait_until(lambda: killed.pid not in [each.pid for each in workers_of(server)], 30)  # noqa: B023
    assert server.wait_for_exit(20) == 1
    assert "the server ends, because 3 workers in a row have never been ready" in server.output


def test_a_killed_parent_leaves_nothing(start: Start, tiny: str) -> None:
    server = start(tiny, "--workers=2")
    server.wait_until("/readyz", 200)
    processes = workers_of(server)
    os.kill(server.pid, signal.SIGKILL)
    server.wait_for_exit()
    wait_until(lambda: not any(process.is_running() for process in processes), 5)
    with pytest.raises(httpx.ConnectError):
        get(server, "/livez")


def test_a_frozen_worker_is_replaced(start: Start, tiny: str) -> None:
    server = start(tiny)
    server.wait_until("/readyz", 200)
    frozen = workers_of(server)[0]
    # A worker that loads may stand still for longer: the parent has to hear that this one does not load any more.
    time.sleep(1)
    frozen.suspend()
    at = time.monotonic()
    with masks(server) as callers:
        wait_until(lambda: deaths_in(server) == 1, FROZEN_SECONDS + 20)
        # The stand-in answers long before.
        assert min(outcome.at for outcome in callers.outcomes) < at + 6
        server.wait_until("/readyz", 200)
        wait_until(lambda: callers.answered > 10)
    assert {failure.status for failure in callers.failures} <= CLEAN | {"ReadTimeout"}
    assert "was killed because its event loop had stopped; another one replaces it" in server.output
    assert deaths(server, "frozen") == 1


def test_a_frozen_worker_keeps_no_more_than_its_own_callers(start: Start, tiny: str) -> None:
    """Over both wires; connections that are new meanwhile are the subject of docs/explanation/life-cycle.md."""
    server = start(tiny, "--workers=2")
    wait_until(lambda: server.output.count("is ready") == 2, 60)
    with callers_of_all_workers(server) as (callers, grpc_callers):
        frozen = workers_of(server)[0]
        lost = callers_of(frozen, server.port), callers_of(frozen, server.grpc_port)
        at = time.monotonic()
        frozen.suspend()
        wait_until(lambda: deaths_in(server) == 1, FROZEN_SECONDS + 5)
        dead = time.monotonic()
        wait_until(lambda: server.output.count("is ready") == 3, REPLACED_SECONDS)
        before = callers.answered, grpc_callers.answered
        wait_until(lambda: callers.answered > before[0] + 100 and grpc_callers.answered > before[1] + 100)
    assert dead - at > FROZEN_SECONDS - 2
    assert {failure.status for failure in callers.failures} <= CLEAN | {"ReadTimeout"}
    assert {failure.status for failure in grpc_callers.failures} == {"UNAVAILABLE"}
    check_only_connected_failed(callers, lost[0], dead + 5)
    check_only_connected_failed(grpc_callers, lost[1], dead + 5)
    assert deaths(server, "frozen") == 1


def deaths_in(server: ServerProcess) -> int:
    return server.output.count("the worker with process id")


@pytest.mark.parametrize("generates", [False, True])
def test_a_stuck_model_makes_the_server_not_live(start: Start, tmp_path: Path, generates: bool) -> None:
    """A batch of an encoder, or a step of a generator with a long prompt."""
    folder = save_generator(tmp_path / "llama", "llama", max_position_embeddings=20_000) if generates else MINILM
    # An encoder's first batch has few texts, and takes less than 3 s on a busy machine, too.
    seconds = 1 if generates else 3
    server = start(f"--model_dir={folder}", "--backend=huggingface", f"--watchdog_seconds={seconds}", MANY_TOKENS)
    server.wait_until("/readyz", 200)
    texts = {"instances": ["word " * 16_000], "parameters": {"max_tokens": 1}}
    body = texts if generates else {"instances": ["word " * 500] * 128}
    asking = threading.Thread(target=lambda: httpx.post(server.url + PREDICT, json=body, timeout=300))
    asking.start()
    server.wait_until("/livez", 503, 30)
    assert statuses(server) == ({503}, {503})
    assert grpc_health(server) == (False, False, NOT_SERVING)
    assert get(server, "/v2/models/model/ready").status_code == 503
    assert get(server, "/").status_code == 503
    asking.join()
    server.wait_until("/livez", 200, 30)
    assert statuses(server) == ({200}, {200})
    assert grpc_health(server) == (True, True, SERVING)
    # On a busy machine several turns may take too long.
    lines = [line for line in server.output.splitlines() if "--watchdog_seconds" in line]
    stack = r"its thread stands in \S+ \(\S+\.py:\d+\) < .*_run_turn \(\S+device_thread\.py:\d+\)"
    assert [line for line in lines if re.search(stack, line)] == lines != []
    assert "word" not in "".join(lines)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_requests_under_way_end_before_the_server_does(start: Start, signal_number: int) -> None:
    server = start(f"--model_dir={MINILM}", MANY_TOKENS, "--drain_seconds=100")
    server.wait_until("/readyz", 200)
    answers: list[int] = []
    texts = ["word " * 500] * 16
    states: list[grpc.ChannelConnectivity] = []
    sent: queue.SimpleQueue[messages.ModelInferRequest | None] = queue.SimpleQueue()

    def ask() -> None:
        answers.append(httpx.post(server.url + PREDICT, json={"instances": texts}, timeout=300).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        channel.subscribe(states.append)
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.ModelInfer.future(infer_request(*texts), timeout=300)
        stream = stub.ModelStreamInfer(iter(sent.get, None), timeout=300)
        sent.put(infer_request(*texts))
        wait_until(lambda: re.search(r"^runtime_running_texts{.*} [1-9]", get(server, "/metrics").text, re.M))
        time.sleep(0.2)
        os.kill(server.pid, signal_number)
        wait_until(lambda: get(server, "/readyz").status_code == 503)
        # The stand-in answers new connections.
        wait_until(lambda: post(server).status_code == 503)
        assert get(server, "/livez").status_code == 200
        assert post(server).headers["connection"] == "close"
        # GOAWAY: the channel leaves the connection for new calls, and those under way go on.
        wait_until(lambda: grpc.ChannelConnectivity.IDLE in states[states.index(grpc.ChannelConnectivity.READY) :])
        assert not call.done()
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(infer_request("word"), timeout=300)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        sent.put(infer_request("word"))
        sent.put(None)
        call.result()
        assert [response.error_message for response in stream] == ["", ""]
    asking.join()
    assert answers == [200]
    assert server.wait_for_exit(20) == 0
    assert re.search(r"no worker took requests for \d+\.\d s, and \d+ were answered with 503", server.output)
    assert "Traceback" not in server.output


def post(server: ServerProcess) -> httpx.Response:
    return httpx.post(server.url + PREDICT, json={"instances": ["a [MASK]"]}, timeout=10)


def test_the_server_answers_while_the_load_balancer_looks_away(start: Start, tiny: str) -> None:
    server = start(tiny, "--shutdown_delay_seconds=3")
    server.wait_until("/readyz", 200)
    wait_until(lambda: statuses(server) == ({200}, {200}))
    with httpx.Client() as kept:
        assert "connection" not in kept.post(server.url + PREDICT, json={"instances": ["a [MASK]"]}).headers
        at = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: get(server, "/readyz").status_code == 503, 2)
        assert statuses(server) == ({200}, {503})
        assert grpc_health(server) == (True, False, NOT_SERVING)
        assert get(server, "/v2/models/model/ready").status_code == 503
        assert post(server).status_code == 200
        last = kept.post(server.url + PREDICT, json={"instances": ["a [MASK]"]})
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert time.monotonic() - at < 3, "this machine is too slow for the test"
    assert server.wait_for_exit(20) == 0
    assert time.monotonic() - at > 3


def test_a_stream_that_outlives_the_drain_ends(start: Start, smollm: Path) -> None:
    words = [f"--model_dir={smollm}", "--backend=huggingface", "--drain_seconds=1", "--max_length=2048"]
    server = start(*words)
    server.wait_until("/readyz", 200)
    body = {"model": "model", "prompt": "Once upon a time", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(server.pid, signal.SIGTERM)
        rest = [line for line in lines if line]
    assert "the server is shutting down" in "".join(rest)
    assert server.wait_for_exit(30) == 0
    assert "has died" not in server.output
    assert "requests still run after 1 s (--drain_seconds): they end now" in server.output
    assert "Traceback" not in server.output


def test_a_worker_ignores_hangups_from_its_first_moment_on(start: Start, tiny: str) -> None:
    server = start(tiny)
    wait_until(lambda: workers_of(server), 30)
    [worker] = workers_of(server)

    def is_ready() -> bool:
        worker.send_signal(signal.SIGHUP)
        return get(server, "/readyz").status_code == 200

    wait_until(is_ready, 60)
    assert workers_of(server) == [worker]


@pytest.mark.parametrize("signal_number", [signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_is_no_death_of_a_worker(start: Start, tiny: str, signal_number: int) -> None:
    server = start(tiny, "--on_worker_death=exit")
    server.wait_until("/readyz", 200)
    processes = workers_of(server)
    for process in processes:
        process.send_signal(signal_number)
    os.killpg(server.pid, signal_number)
    if signal_number == signal.SIGHUP:
        wait_until(lambda: "SIGHUP is ignored" in server.output, 5)
        assert get(server, "/readyz").status_code == 200
        assert workers_of(server) == processes
        assert server.terminate() == 0
    else:
        assert server.wait_for_exit(20) == 0
    assert deaths_in(server) == 0


def test_a_second_signal_ends_the_server_at_once(start: Start, smollm: Path) -> None:
    server = start(f"--model_dir={smollm}", "--backend=huggingface", "--drain_seconds=100", "--max_length=2048")
    server.wait_until("/readyz", 200)
    processes = workers_of(server)
    body = {"model": "model", "prompt": "Once upon a time", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(1)
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait_for_exit(2) == 128 + signal.SIGTERM
    wait_until(lambda: not any(process.is_running() for process in processes), 2)


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 2.0])
def test_a_signal_right_after_the_start_is_heeded(tiny: str, tmp_path: Path, seconds: float) -> None:
    """As PID 1 of a container, which ignores signals without a handler."""
    server = ServerProcess(as_first_process([*LAUNCH, tiny]), tmp_path)
    try:
        first = find_first_process(server.pid)
        time.sleep(seconds)
        first.terminate()
        assert server.wait_for_exit(15) == 0
    finally:
        server.terminate()


def test_the_stand_in_speaks_tls(start: Start, tiny: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "authority.pem"
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    server = start(tiny, f"--ssl_certfile={files[0]}", f"--ssl_keyfile={files[1]}")
    url = f"https://127.0.0.1:{server.port}"

    def ask(path: str) -> Any:
        try:
            return httpx.get(url + path, verify=str(files[2]), timeout=10).status_code
        except httpx.TransportError as error:
            return type(error).__name__

    wait_until(lambda: ask("/readyz") == 200, 60)
    killed = workers_of(server)[0]
    # As while a tool replaces it: the stand-in keeps the one that it has.
    files[0].write_text("not a certificate")
    killed.suspend()
    wait_until(lambda: ask("/readyz") == 503, 15)
    assert ask("/livez") == 200
    certificate.cert_chain_pems[0].write_to_path(files[0])
    killed.kill()
    wait_until(lambda: ask("/readyz") == 200, 60)
