"""Converts and checks the values of single arguments, for pydantic."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address

from runners.core.answer_options import split_names

_SHORT_NUMBER = re.compile(r"(\d+)([kKmM])")
_HOST = re.compile(r"([^\s/:@]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
# A segment of a path prefix: neither a host (//host) nor markup can be in it.
PREFIX_SEGMENT = r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)"
LONGEST_PREFIX = 256
_ROOT_PATH = re.compile(f"{PREFIX_SEGMENT}+")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^\s/:@?#*,]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_MULTIPLIERS = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}


def parse_count(value: object) -> object:
    """Parse vLLM's short numbers: 2k is 2000, 2K is 2048."""
    if isinstance(value, str) and (short := _SHORT_NUMBER.fullmatch(value.strip())):
        return int(short[1]) * _MULTIPLIERS[short[2]]
    return value


def check_host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError("it must be host:port, without http:// (predictor_use_ssl is for TLS) and without a path")
    return value


def check_tensor_protocol(value: object) -> object:
    """Refuse KServe's default, v1: no predictor understands the tensors that KServe sends over it."""
    if value == "v1":
        raise ValueError("V1 cannot carry tensors; it must be v2 (REST) or grpc-v2")
    return value


def check_ip_address(value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        raise ValueError("it must be an IP address, such as 0.0.0.0 or 127.0.0.1") from None
    return value


def check_root_path(value: str) -> str:
    """The prefix with a slash before it and none after it."""
    prefix = f"/{value.strip('/')}"
    if not _ROOT_PATH.fullmatch(prefix) or len(prefix) > LONGEST_PREFIX:
        raise ValueError("it must be a path such as /models/ner, of letters, digits, '.', '_', '~' and '-'")
    return prefix


def check_model_name(value: str) -> str:
    """Refuse a name that would break lines of the log, or that no client can send."""
    if not value.isprintable():
        raise ValueError("it must have no control characters")
    return value


def parse_object(value: object) -> object:
    """The object in a text of JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'it must be a JSON object, such as {{"top_k": 3}}: {error}') from None
    if not isinstance(value, dict):
        raise ValueError('it must be a JSON object, such as {"top_k": 3}')
    return value


def split_list(value: object) -> object:
    """A tuple of the items in a list, a JSON list, or a string with commas."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("it must be a list in JSON, or items separated by commas") from None
    return split_names(value)


def check_origin(value: str) -> str:
    """An origin as browsers send it, in lower case."""
    if value not in ("*", "null") and not _ORIGIN.fullmatch(value):
        raise ValueError("an origin is a scheme, a host and perhaps a port, such as https://chat.example.com, or *")
    return value.lower()


def check_token(value: str) -> str:
    """A method or the name of a header (RFC 9110, section 5.6.2), or `*`."""
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is no name of a method or a header")
    return value


def normalize_task(value: object) -> object:
    return value.strip().lower().replace("-", "_") if isinstance(value, str) else value


def lower_case(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value
