from __future__ import annotations

import socket

import pytest

from launch import bentoml_command
from runners.errors import ArgumentsError
from tests.servers import ROOT


@pytest.mark.parametrize(
    ("words", "port", "arguments"),
    [
        (["--model_name=bert", "--model-id", "x"], 8080, ["--arg=model_name=bert", "--arg=model_id=x"]),
        (["--http_port=3000", "--return_probabilities"], 3000, ["--arg=return_probabilities=true"]),
        (["--http-port", "3001", "--tensor_input_names=a,b"], 3001, ["--arg=tensor_input_names=a,b"]),
        (
            ["-tp", "2", "--lora-modules", "a=/x", "b=/y z"],
            8080,
            ["--arg=tensor_parallel_size=2", "--arg=lora_modules=a=/x 'b=/y z'"],
        ),
    ],
)
def test_kserve_command_line(words: list[str], port: int, arguments: list[str]) -> None:
    _, *rest = bentoml_command(words)
    assert rest == ["-m", "bentoml", "serve", str(ROOT), f"--port={port}", *arguments]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_name", "x", "y"], "the command line has a stray word 'y'; arguments look like --name=value"),
        (["--http_port=x"], "the command line is wrong: argument --http_port/--http-port: invalid int value: 'x'"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str) -> None:
    with pytest.raises(ArgumentsError) as error:
        bentoml_command(words)
    assert str(error.value) == message


def test_a_port_that_is_none() -> None:
    with pytest.raises(ArgumentsError, match="http_port is 99999: a port is 0 to 65535"):
        bentoml_command(["--http_port=99999"])


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ArgumentsError, match=f"port {port} cannot be used: Address already in use"):
            bentoml_command([f"--http_port={port}"])
