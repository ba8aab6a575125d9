"""Everything under deploy/, against the schemas of what reads it and against this server.

KServe's schema is made of the models in its Python package, and Kubernetes' of those in the `kubernetes` package, which
are generated from the same Go types as their CRDs; both packages are a part of what the tests install.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import botocore.session
import cattrs
import cloudcoil.models.keda.v1alpha1 as keda
import cloudcoil.models.prometheus_operator.v1 as prometheus_operator
import jsonschema
import kserve.models
import kubernetes.client.models
import kubernetes_validate
import pytest
import yaml
from _bentoml_sdk.service.config import GpuLiteralType, ResourceSchema, TrafficSchema
from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema
from botocore.validate import ParamValidator
from compose_spec import PyCompose
from pydantic import BaseModel
from starlette.testclient import TestClient

from launch import plan_launch
from protocol.application import create_application
from runners.core.argument_sources import (
    ENVIRONMENT_COMMAND_LINE,
    ENVIRONMENT_PREFIX,
    read_arguments,
    read_configuration,
)
from runners.core.arguments import Arguments
from runners.core.command_line import parse_command_line
from runners.core.errors import ArgumentsError
from runners.core.metric_families import list_families
from runners.core.models_file import read_models_file
from runners.core.task import Task
from runners.encoder.runner import EncoderRunner
from runners.generator.vllm.command_line import parse_arguments
from runners.generator.vllm.installation import name_distribution
from runners.hosting.life.arbiter import CLOSING_SECONDS
from tests.conftest import ModelFolder
from tests.docs.pages import find_blocks, read_page
from tests.served import models_of
from tests.servers import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES_VERSION = "1.37"
SERVICE = re.search(r'^NAME = "(\w+)"$', (ROOT / "service.py").read_text(), re.MULTILINE)
# KServe's command line serves there; the images' own entry point on BentoML's port.
HTTP_PORT, BENTOML_PORT, RAY_PORT = 8080, 3000, 6379
GRPC_PORT = Arguments.model_fields["grpc_port"].default
BENTOS = {"huggingface-runtime-cpu:latest", "huggingface-runtime-cuda:latest"}
# deploy/ray/Containerfile makes this one of the one for CUDA.
RAY_IMAGE = "huggingface-runtime-cuda-ray:latest"
# Changes the owner of compose's volume.
HELPER_IMAGE = "busybox:stable"
# What watches the servers of compose, and the port of each.
MONITOR_PORTS = {"prom/prometheus:v3.5.0": 9090, "grafana/grafana:12.1.0": 3000}
# Kinds of operators, by the models in packages that are generated from their CRDs.
OPERATORS = {
    "ServiceMonitor": prometheus_operator.ServiceMonitor,
    "PrometheusRule": prometheus_operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
}
# The calls that take the documents of SageMaker.
SAGEMAKER_CALLS = {
    "sagemaker/model.yaml": "CreateModel",
    "sagemaker/endpoint-config.yaml": "CreateEndpointConfig",
    "sagemaker/endpoint.yaml": "CreateEndpoint",
}
# What starts the server in a cloud, and how each names the image.
CLOUD_STARTS = ("sagemaker/model.yaml", "vertex/model.yaml", "azure/deployment.yaml")
CLOUD_IMAGES = {
    "111122223333.dkr.ecr.eu-west-1.amazonaws.com/huggingface-runtime-cpu-sagemaker:latest",
    "europe-west4-docker.pkg.dev/project/repository/huggingface-runtime-cpu:latest",
    "registry.azurecr.io/huggingface-runtime-cpu:latest",
}
# As https://learn.microsoft.com/azure/machine-learning/reference-yaml-deployment-managed-online has them.
AZURE_ROUTE = {
    "type": "object",
    "properties": {"port": {"const": 3000}, "path": {"type": "string", "pattern": "^/"}},
    "required": ["port", "path"],
    "additionalProperties": False,
}
AZURE_PROBE = {
    "type": "object",
    "properties": {
        name: {"type": "integer"}
        for name in ("initial_delay", "period", "timeout", "success_threshold", "failure_threshold")
    },
    "additionalProperties": False,
}
AZURE_DEPLOYMENT: dict[str, Any] = {
    "$schema": {}, "name": {"type": "string"}, "endpoint_name": {"const": "bert-ner"},
    "model": {"type": "string", "pattern": r"^azureml:[\w-]+:\d+$"},
    "environment": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "image": {"type": "string"},
            "inference_config": {
                "type": "object",
                "properties": {
                    "liveness_route": AZURE_ROUTE, "readiness_route": AZURE_ROUTE,
                    "scoring_route": AZURE_ROUTE,
                },
                "required": ["liveness_route", "readiness_route", "scoring_route"],
                "additionalProperties": False,
            },
        },
        "required": ["image", "inference_config"],
        "additionalProperties": False,
    },
    "environment_variables": {"type": "object", "additionalProperties": {"type": "string"}},
    "instance_type": {"type": "string", "pattern": "^Standard_"}, "instance_count": {"type": "integer"},
    "request_settings": {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in ("max_concurrent_requests_per_instance", "request_timeout_ms", "max_queue_wait_ms")},
        "additionalProperties": False,
    },
    "liveness_probe": AZURE_PROBE, "readiness_probe": AZURE_PROBE,
}  # fmt: skip
AZURE_ENDPOINT = {
    "$schema": {},
    "name": {"const": "bert-ner"},
    "auth_mode": {"enum": ["key", "aml_token", "aad_token"]},
}
AZURE_SCHEMAS = {
    f"https://azuremlschemas.azureedge.net/latest/managedOnline{kind}.schema.json": {
        "type": "object", "properties": fields, "required": [*fields], "additionalProperties": False,
    }
    for kind, fields in (("Deployment", AZURE_DEPLOYMENT), ("Endpoint", AZURE_ENDPOINT))
}  # fmt: skip
USER = 1034
# Kubernetes' default.
POD_GRACE_PERIOD = 30
PROBES = {
    "startupProbe": "/v2/health/live",
    "livenessProbe": "/v2/health/live",
    "readinessProbe": "/v2/health/ready",
}
QUANTITY = {"anyOf": [{"type": "string", "pattern": r"^[0-9.]+([eE][0-9]+|[numkKMGTPE]i?)?$"}, {"type": "number"}]}

# What the models have as any text.
QUANTITIES = {
    ("V1ResourceRequirements", "limits"): "dict(str, ResourceQuantity)",
    ("V1ResourceRequirements", "requests"): "dict(str, ResourceQuantity)",
    ("V1EmptyDirVolumeSource", "size_limit"): "ResourceQuantity",
}


@dataclass(frozen=True)
class Document:
    """One YAML document of a file."""

    path: str
    index: int
    content: Any

    def __str__(self) -> str:
        return f"{self.path}[{self.index}]"

    @property
    def kind(self) -> str:
        return str(self.content.get("kind", ""))

    @property
    def of_kserve(self) -> bool:
        return str(self.content.get("apiVersion", "")).startswith("serving.kserve.io/")

    @property
    def generates(self) -> bool:
        """Whether vLLM's arguments have a meaning."""
        return re.search("generat|multi-node|gpu", self.path) is not None


Check = Callable[[Document], Iterator[str]]


def read(path: Path, text: str | None = None) -> list[Document]:
    contents = yaml.safe_load_all(text if text is not None else path.read_text())
    return [Document(str(path.relative_to(DEPLOY)), index, content) for index, content in enumerate(contents)]


# What bento/ holds is tests/test_bento.py's.
FILES = sorted(
    path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc" and "bento" not in path.parts
)
DOCUMENTS = [document for path in FILES if path.suffix in (".yaml", ".yml") for document in read(path)]


def walk(content: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a document."""
    if isinstance(content, Mapping):
        yield content
        for value in content.values():
            yield from walk(value)
    elif isinstance(content, list):
        for value in content:
            yield from walk(value)


def containers(document: Document) -> list[Mapping[str, Any]]:
    """What runs this server or Ray: containers, an InferenceService's model, a service of compose."""
    if document.path == "compose.yaml":
        return list(document.content["services"].values())
    return [each for each in walk(document.content) if "image" in each or "modelFormat" in each]


def by_name(kind: str) -> dict[str, Document]:
    return {document.content["metadata"]["name"]: document for document in DOCUMENTS if document.kind == kind}


# Schemas


@cache
def generated_class(name: str) -> Any:
    """A generated model by the name that another one's field has for its type; None if there is none."""
    short = re.sub(r"^K8sIoApi(Apps|Autoscaling)(?=V)", "", name)
    for package in (kserve.models, kubernetes.client.models):
        if hasattr(package, short):
            return getattr(package, short)
    return None


def type_schema(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a type as generated models write it: `list[V1EnvVar]`, `dict(str, str)`, `Dict[str, str]`."""
    simple: dict[str, dict[str, Any]] = {
        "str": {"type": "string"}, "int": {"type": "integer"}, "bool": {"type": "boolean"}, "float": {"type": "number"},
        "datetime": {"type": "string"}, "object": {}, "ResourceQuantity": QUANTITY, "V1beta1MetricQuantity": QUANTITY,
    }  # fmt: skip
    if name in simple:
        return simple[name]
    if items := re.fullmatch(r"[lL]ist\[(.+)\]", name):
        return {"type": "array", "items": type_schema(items[1], definitions)}
    if values := re.fullmatch(r"[dD]ict[(\[]str, (.+)[)\]]", name):
        return {"type": "object", "additionalProperties": type_schema(values[1], definitions)}
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = class_schema(name, definitions)
    return {"$ref": f"#/$defs/{name}"}


def class_schema(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    if name == "V1alpha1WorkerSpec":
        # KServe's package has no model of it: in Go it is a runtime's pod and the two sizes.
        schema = copy.deepcopy(class_schema("V1alpha1ServingRuntimePodSpec", definitions))
        sizes = class_schema("V1beta1WorkerSpec", definitions)["properties"]
        for size in ("pipelineParallelSize", "tensorParallelSize"):
            schema["properties"][size] = sizes[size]
        return schema
    generated = generated_class(name)
    assert generated is not None, f"there is no model of {name}: what it describes would go unchecked"
    json_names: dict[str, str] = generated.attribute_map
    if issubclass(generated, BaseModel):
        required = [field for field, info in generated.model_fields.items() if info.is_required()]
    else:
        # Older generators write it into setters only.
        required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", inspect.getsource(generated))
    return {
        "type": "object",
        "properties": {
            json_names[field]: type_schema(QUANTITIES.get((name, field), field_type), definitions)
            for field, field_type in generated.openapi_types.items()
            # Knative's and others' types without a model are those of what KServe itself writes.
            if field != "status"
        },
        "required": sorted({json_names[field] for field in required}),
        "additionalProperties": False,
    }


@cache
def kserve_validator(api_version: str, kind: str) -> Any:
    name = api_version.removeprefix("serving.kserve.io/").capitalize() + kind
    definitions: dict[str, Any] = {}
    return jsonschema.Draft202012Validator({**class_schema(name, definitions), "$defs": definitions})


def check_schema(document: Document) -> Iterator[str]:
    content = document.content
    if document.kind in OPERATORS:
        yield from check_operator(document)
    elif document.of_kserve:
        for error in kserve_validator(content["apiVersion"], document.kind).iter_errors(content):
            yield f"{error.json_path}: {error.message}"
    elif "kind" in content:
        try:
            kubernetes_validate.validate(content, KUBERNETES_VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield str(error)
    elif document.path.startswith("bentocloud/"):
        yield from check_bentocloud(content)
    elif document.path.startswith("sagemaker/"):
        yield from check_sagemaker(document)
    elif document.path.startswith("vertex/"):
        yield from check_vertex(content)
    elif document.path.startswith("azure/"):
        yield from list_errors(AZURE_SCHEMAS[content["$schema"]], content)
    elif document.path == "compose.yaml":
        try:
            PyCompose.from_yaml(yaml.safe_dump(content))
        except ValueError as error:
            yield str(error)
    elif document.path == "models.yaml":
        yield from check_models_file(content)
    elif document.path == "kubernetes/prometheus-adapter.yaml":
        yield from check_adapter_values(content)
    elif document.path.startswith("observability/grafana/"):
        yield from check_provisioning(document)
    elif document.path in ("observability/prometheus.yaml", "observability/rules.yaml"):
        # promtool reads them in tests/observability.
        return
    else:
        yield "nothing here knows what this is"


def check_operator(document: Document) -> Iterator[str]:
    """The models drop what they do not know: what is left must be what was written."""
    try:
        read = OPERATORS[document.kind].model_validate(document.content)
    except ValueError as error:
        yield str(error)
        return
    if (left := read.model_dump(mode="json", by_alias=True, exclude_unset=True)) != document.content:
        yield f"{document.kind} understands {left}"


def check_provisioning(document: Document) -> Iterator[str]:
    """Grafana finds the data source at compose's Prometheus, and the dashboards where compose mounts them."""
    services = compose()["services"]
    if "datasources" in document.path:
        [source] = document.content["datasources"]
        if source["type"] != "prometheus" or source["url"] not in {f"http://{name}:9090" for name in services}:
            yield f"there is no {source['type']} at {source['url']}"
    else:
        [provider] = document.content["providers"]
        mounts = [volume.split(":") for volume in services["grafana"]["volumes"]]
        if provider["options"]["path"] not in {inside for _, inside, *_ in mounts}:
            yield f"nothing is mounted at {provider['options']['path']}"


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def check_bentocloud(content: dict[str, Any]) -> Iterator[str]:
    """BentoML drops what it does not know: what is left must be what was written."""
    converter = cattrs.Converter(omit_if_default=True)
    try:
        deployment = converter.structure(content, CreateDeploymentSchema)
    except cattrs.BaseValidationError as error:
        yield "; ".join(cattrs.transform_error(error))
        return
    if (left := converter.unstructure(deployment)) != content:
        yield f"BentoML understands {left}"
    assert SERVICE is not None
    for name, service in content["services"].items():
        if name != SERVICE[1]:
            yield f"there is no service {name}"
        overrides = service.get("config_overrides", {})
        for section, known in (("resources", ResourceSchema), ("traffic", TrafficSchema)):
            for key in {*overrides.pop(section, {})} - {*get_type_hints(known)}:
                yield f"{section} has no {key}"
        if overrides:
            yield f"nothing here knows config_overrides {[*overrides]}"


def check_sagemaker(document: Document) -> Iterator[str]:
    """AWS' own model of its calls, which its SDK has."""
    call = botocore.session.get_session().get_service_model("sagemaker").operation_model(SAGEMAKER_CALLS[document.path])
    report = ParamValidator().validate(document.content, call.input_shape)
    if report.has_errors():
        yield report.generate_report()


def list_errors(schema: Any, content: Any) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(content):
        yield f"{error.json_path}: {error.message}"


def check_vertex(content: dict[str, Any]) -> Iterator[str]:
    """Google's own description of containers, and the paths and the port of this server."""
    model = content["model"]
    if {*content} != {"model"} or {*model} != {"displayName", "artifactUri", "containerSpec"}:
        yield f"unknown fields: {[*content]}, {[*model]}"
    spec = model["containerSpec"]
    schema = json.loads((ROOT / "tests/documents/vertex_container_spec.json").read_text())
    if errors := [*list_errors(schema, spec)]:
        yield from errors
        return
    variables = {"AIP_HTTP_PORT": str(spec["ports"][0]["containerPort"])}
    if (
        plan_launch(spec["command"][1:], variables=variables).server.http_port
        != spec["startupProbe"]["httpGet"]["port"]
    ):
        yield "the startup probe asks another port"
    for path, probe in (
        (spec["healthRoute"], "readinessProbe"),
        (spec["startupProbe"]["httpGet"]["path"], "startupProbe"),
    ):
        if path != PROBES[probe]:
            yield f"{path} is asked, not {PROBES[probe]}"


def check_models_file(content: dict[str, Any]) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        try:
            read_models_file(Path(file.name), "models.yaml", {}, {}, {})
        except ArgumentsError as error:
            yield str(error)


def check_adapter_values(content: dict[str, Any]) -> Iterator[str]:
    rules = content["rules"]
    if {*content} != {"rules"} or {*rules} != {"default", "custom"}:
        yield f"unknown values: {[*content]}, {[*rules]}"
    for rule in rules.get("custom", []):
        if {*rule} != {"seriesQuery", "resources", "name", "metricsQuery"}:
            yield f"a rule has {[*rule]}"


# What fits this server


def variables(content: Any) -> dict[str, str]:
    """All variables that are set in there, those of secrets as `secret`."""
    found: dict[str, str] = {}
    for each in walk(content):
        for variable in [*(each.get("env") or []), *(each.get("envs") or [])]:
            found[variable["name"]] = variable.get("value", "secret")
        for name in ("environment", "Environment", "environment_variables"):
            values = each.get(name)
            # Azure's environment is the image.
            if isinstance(values, Mapping) and "image" not in values:
                found |= {name: re.sub(r"\$\{\w+:-\}", "secret", value) for name, value in values.items()}
    return {name: value for name, value in found.items() if name.startswith("RUNTIME_")}


def starts(document: Document) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The words after the program's name, and the variables, of whatever starts this server."""
    if document.path == "compose.yaml":
        yield from (([], variables(service)) for service in containers(document))
    elif document.path.startswith("bentocloud/") or document.path in CLOUD_STARTS:
        yield [], variables(document.content)
    for container in containers(document) if "kind" in document.content else ():
        command = [str(word) for word in container.get("command", [])]
        arguments = [str(word) for word in container.get("args", [])]
        if "modelFormat" in container or command == ["huggingface-runtime"]:
            yield arguments, variables(container)
        elif command[:1] == ["bash"]:
            if started := re.search(r"exec huggingface-runtime (.*)$", command[2].replace("\\\n", " "), re.MULTILINE):
                yield [*shlex.split(started[1].replace('"$@"', "")), *arguments], variables(container)
        elif command or arguments:
            raise AssertionError(f"{document} starts {command} {arguments}, and nothing here knows what that is")


def read_start(line: list[str], given: dict[str, str]) -> Arguments:
    """What this server reads of a start; a container's variables are 1 there."""
    words = [re.sub(r"\$\{\w+\}", "1", word.replace("{{.Name}}", "name")) for word in line]
    return read_arguments(parse_command_line(words), given, bento_arguments={})


def check_arguments(document: Document) -> Iterator[str]:
    """This server's own parser takes every argument, and vLLM's those that are for it."""
    for line, given in starts(document):
        try:
            arguments = read_start(line, given)
            if not document.generates:
                yield from (f"{name} is vLLM's, and this is not for generation" for name in arguments.engine)
            elif arguments.engine:
                name_distribution()
                parse_arguments(arguments, [arguments.model_name])
        except ArgumentsError as error:
            yield str(error)


def check_grace_period(document: Document) -> Iterator[str]:
    """A server has the time to end that its arguments ask for."""
    if document.path == "compose.yaml":
        servers = [service for service in containers(document) if service["image"] in BENTOS]
        periods = [float(server.get("stop_grace_period", "10s").rstrip("s")) for server in servers]
    else:
        pods = [each for each in walk(document.content) if "containers" in each]
        periods = [pod.get("terminationGracePeriodSeconds", POD_GRACE_PERIOD) for pod in pods]
    period = min(periods, default=POD_GRACE_PERIOD)
    for line, given in starts(document):
        arguments = read_start(line, given)
        needed = arguments.shutdown_delay_seconds + arguments.drain_seconds + CLOSING_SECONDS
        if needed > period:
            yield f"the server ends within {needed} s, and is killed after {period} s"
    if any("preStop" in each for each in walk(document.content)):
        yield "--shutdown_delay_seconds does what preStop would, and closes connections that clients keep alive"


def check_environment(document: Document) -> Iterator[str]:
    """Every RUNTIME_ variable is an argument's: the server only warns of others."""
    for variable in {*variables(document.content)} - {ENVIRONMENT_COMMAND_LINE}:
        try:
            parse_command_line([f"--{variable.removeprefix(ENVIRONMENT_PREFIX).lower()}=1"], variable)
        except ArgumentsError as error:
            yield str(error)


def check_ports(document: Document) -> Iterator[str]:
    for container in containers(document):
        for port in container.get("ports", []):
            inside = int(port.rpartition(":")[2]) if isinstance(port, str) else port["containerPort"]
            own = {BENTOML_PORT, GRPC_PORT} if isinstance(port, str) else {HTTP_PORT, GRPC_PORT}
            if (monitor := MONITOR_PORTS.get(container["image"])) is not None:
                own = {monitor}
            if inside not in own | ({RAY_PORT} if container["image"] == RAY_IMAGE else set()):
                yield f"port {inside} is none of {own}"
        names = {
            port["name"]: port["containerPort"] for port in container.get("ports", []) if isinstance(port, Mapping)
        }
        for probe in PROBES:
            for handler in ("httpGet", "tcpSocket", "grpc"):
                port = container.get(probe, {}).get(handler, {}).get("port")
                if port is not None and names.get(port, port) != (HTTP_PORT if handler == "httpGet" else GRPC_PORT):
                    yield f"{probe} asks port {port}"
    if document.kind == "Service":
        folder = Path(document.path).parent
        ports = {
            port["name"]
            for other in DOCUMENTS
            if other.kind == "Deployment" and Path(other.path).parent == folder
            for container in containers(other)
            for port in container.get("ports", [])
        }
        for port in document.content["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"targetPort {port['targetPort']} is no port of the pods"
    if document.kind == "ServiceMonitor":
        yield from check_monitored_services(document)
    for each in walk(document.content):
        for name in ("prometheus.kserve.io/port", "prometheus.io/port"):
            if each.get(name, str(HTTP_PORT)) != str(HTTP_PORT):
                yield f"{name} is {each[name]}"


def check_monitored_services(document: Document) -> Iterator[str]:
    """The Services that are selected are those of this folder, and have the port."""
    services = by_name("Service")
    [selected] = document.content["spec"]["selector"]["matchExpressions"]
    with_label = {
        name
        for name, service in services.items()
        if service.content["metadata"].get("labels", {}).get(selected["key"]) in selected["values"]
    }
    if with_label != {*selected["values"]}:
        yield f"{selected['values']} are not the Services {[*services]}"
    for endpoint in document.content["spec"]["endpoints"]:
        for name in with_label:
            if endpoint["port"] not in [port["name"] for port in services[name].content["spec"]["ports"]]:
                yield f"{name} has no port {endpoint['port']}"


@cache
def is_route(path: str) -> bool:
    application = create_application(models_of(EncoderRunner(Arguments())), Arguments())
    return bool(TestClient(application).get(path).status_code != 404)


def check_paths(document: Document) -> Iterator[str]:
    """What probes and scrapers ask is a route, and each probe asks the one that tells it what it wants to know."""
    for container in containers(document):
        for probe, path in PROBES.items():
            asked = container.get(probe, {}).get("httpGet", {}).get("path", path)
            if asked != path or not is_route(asked):
                yield f"{probe} asks {asked}, not {path}"
        serves = document.path != "compose.yaml" and "ports" in container
        if serves and not {*PROBES} <= {*container}:
            yield f"it serves without { ({*PROBES} - {*container}) }"
        for url in re.findall(
            r"http://localhost:\d+(/[\w/]*)", " ".join(container.get("healthcheck", {}).get("test", ()))
        ):
            if url != PROBES["readinessProbe"]:
                yield f"the health check asks {url}"
    for each in walk(document.content):
        for name in ("prometheus.kserve.io/path", "prometheus.io/path"):
            if not is_route(each.get(name, "/metrics")):
                yield f"{name} is {each[name]}"
    if document.kind == "ServiceMonitor":
        paths = [endpoint["path"] for endpoint in document.content["spec"]["endpoints"]]
    else:
        paths = [each["metrics_path"] for each in walk(document.content) if "metrics_path" in each]
    yield from (f"nothing is scraped at {path}" for path in paths if not is_route(path))


def check_images(document: Document) -> Iterator[str]:
    if document.path.startswith("bentocloud/") and document.content["bento"] not in BENTOS:
        yield f"there is no Bento {document.content['bento']}"
    for container in containers(document) if document.path not in CLOUD_STARTS else ():
        if "image" in container and container["image"] not in BENTOS | {RAY_IMAGE, HELPER_IMAGE, *MONITOR_PORTS}:
            yield f"there is no image {container['image']}"


def check_cloud_images(document: Document) -> Iterator[str]:
    """A cloud's image is one of this server's, pushed to a registry."""
    if document.path not in CLOUD_STARTS:
        return
    for each in walk(document.content):
        for name in ("Image", "imageUri", "image"):
            if each.get(name, next(iter(CLOUD_IMAGES))) not in CLOUD_IMAGES:
                yield f"there is no image {each[name]}"


def check_user(document: Document) -> Iterator[str]:
    """Nobody is root, and a user is a number: the kubelet cannot tell whether a name is root."""
    for pod in walk(document.content):
        if document.path == "compose.yaml" or not isinstance(pod.get("containers"), list):
            continue
        for container in pod["containers"]:
            if "image" not in container:
                continue
            context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
            if context.get("runAsNonRoot") is not True or context.get("runAsUser") != USER:
                yield f"{container['name']} runs as {context.get('runAsUser')}"
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{container['name']} may become root"


def check_gpu_type(document: Document) -> Iterator[str]:
    for each in walk(document.content):
        if "gpu_type" in each and each["gpu_type"] not in get_args(GpuLiteralType):
            yield f"BentoML knows no {each['gpu_type']}"


@cache
def exposed_metrics() -> frozenset[str]:
    """The metrics of this server, and vLLM's by its source, since a model would have to be loaded for them."""
    own = {family.name for family in list_families()}
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "v1/metrics/loggers.py"
    return frozenset(own | {*re.findall(r'name="(vllm:\w+)"', source.read_text())})


def check_metrics(document: Document) -> Iterator[str]:
    """What autoscalers ask for is what the server says, by way of the adapter where the name is another."""
    asked = []
    for each in walk(document.content):
        for query in (each.get("seriesQuery"), each.get("query")):
            asked += re.findall(r"([a-z_:]+)\{", query) if isinstance(query, str) else []
    if document.kind == "HorizontalPodAutoscaler":
        [adapter] = [each for each in DOCUMENTS if each.path == "kubernetes/prometheus-adapter.yaml"]
        names = {
            rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in adapter.content["rules"]["custom"]
        }
        asked += [
            names.get(name, name)
            for name in (each["pods"]["metric"]["name"] for each in document.content["spec"]["metrics"])
        ]
    for name in asked:
        if name not in exposed_metrics():
            yield f"the server exposes no {name}"


# What KServe asks for beyond its schema


def check_runtime(document: Document) -> Iterator[str]:
    """A runtime stands where KServe's stood, beside it if need be."""
    if document.kind not in ("ServingRuntime", "ClusterServingRuntime"):
        return
    spec = document.content["spec"]
    if [(each["name"], each["version"]) for each in spec["supportedModelFormats"]] != [("huggingface", "1")]:
        yield "other model formats than KServe's"
    if any("priority" in each for each in spec["supportedModelFormats"]):
        yield "KServe refuses a priority that another runtime has"
    [container] = spec["containers"]
    if container["image"] == "huggingface-runtime-cuda:latest" and spec["supportedModelFormats"][0]["autoSelect"]:
        yield "a model without a GPU may be given one"
    if container["name"] != "kserve-container" or "--model_name={{.Name}}" not in container["args"]:
        yield "the model is not named after the InferenceService"
    ports = [port["name"] for port in container["ports"]]
    serverless = document.path == "kserve/serverless.yaml"
    if ports != (["h2c"] if spec["protocolVersions"] == ["grpc-v2"] else ["http1"] if serverless else ["http1", "h2c"]):
        yield f"ports {ports} are not those of {spec['protocolVersions']}"
    if serverless and "lifecycle" in container:
        yield "Knative allows no lifecycle"


def check_inference_service(document: Document) -> Iterator[str]:
    """It names a runtime of this folder that speaks its protocol, in a mode that this runtime is for."""
    if document.kind != "InferenceService":
        return
    predictor = document.content["spec"]["predictor"]
    model = predictor["model"]
    runtimes = by_name("ServingRuntime") | by_name("ClusterServingRuntime")
    runtime = runtimes.get(model["runtime"])
    if runtime is None:
        yield f"there is no runtime {model['runtime']}"
        return
    spec = runtime.content["spec"]
    if model.get("protocolVersion", "v1") not in spec["protocolVersions"]:
        yield f"{model['runtime']} does not speak {model['protocolVersion']}"
    annotations = document.content["metadata"]["annotations"]
    if annotations["serving.kserve.io/deploymentMode"] == "Knative" and len(spec["containers"][0]["ports"]) > 1:
        yield f"Knative takes one port, and {model['runtime']} has two"
    if ("workerSpec" in spec) is not ("workerSpec" in predictor):
        yield "a workerSpec is in both or in none"
    if "workerSpec" in predictor:
        if not model.get("storageUri", "").startswith(("pvc://", "oci://")):
            yield "several machines read the model from a volume"
        if annotations.get("serving.kserve.io/autoscalerClass") != "none":
            yield "KServe refuses to scale several machines"


CHECKS: tuple[Check, ...] = (
    check_schema, check_arguments, check_grace_period, check_environment, check_ports, check_paths, check_images, check_user, check_gpu_type,
    check_metrics, check_runtime, check_inference_service, check_cloud_images,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_documents(document: Document, check: Check) -> None:
    assert [*check(Document(document.path, document.index, copy.deepcopy(document.content)))] == []


# (check, file, what is written there, what is written instead, what the check says)
BROKEN = [
    (check_schema, "kserve/cluster-serving-runtime-cpu.yaml", "supportedModelFormats:", "supportedModelFormat:", "supportedModelFormat"),
    (check_schema, "kserve/cluster-serving-runtime-cpu.yaml", "containerPort: 8080", 'containerPort: "8080"', "is not of type 'integer'"),
    (check_schema, "kserve/cluster-serving-runtime-cpu.yaml", "    - name: kserve-container\n      image", "    - image", "'name' is a required property"),
    (check_schema, "kserve/serving-runtime-cuda.yaml", "failureThreshold: 360", "failureTreshold: 360", "failureTreshold"),
    (check_schema, "kserve/serving-runtime-multi-node.yaml", "pipelineParallelSize: 2", "pipelineParalelSize: 2", "pipelineParalelSize"),
    (check_schema, "kserve/inference-services/fill-mask.yaml", "protocolVersion:", "protocol:", "protocol"),
    (check_schema, "kserve/inference-services/fill-mask.yaml", "memory: 2Gi", "memory: 2 Gi", "2 Gi"),
    (check_schema, "kserve/inference-services/text-embedding.yaml", "serverAddress:", "serverAdress:", "serverAdress"),
    (check_schema, "kubernetes/encoder/deployment.yaml", "readinessProbe:", "readynessProbe:", "readynessProbe"),
    (check_schema, "kubernetes/generator/hpa.yaml", "maxReplicas: 4", "maxReplicas: four", "four"),
    (check_schema, "ray/multi-node.yaml", "podSelector:", "podSelectors:", "podSelectors"),
    (check_schema, "bentocloud/gpu.yaml", "cold_start_timeout:", "cold_start_time:", "BentoML understands"),
    (check_schema, "bentocloud/gpu.yaml", "max_replicas: 4", "max_replicas: four", "max_replicas"),
    (check_schema, "bentocloud/gpu.yaml", "bento:", "bentos:", "bento"),
    (check_schema, "bentocloud/cpu.yaml", "concurrency: 32", "concurency: 32", "traffic has no concurency"),
    (check_schema, "bentocloud/cpu.yaml", "huggingface_runtime:", "runtime:", "no service runtime"),
    (check_schema, "compose.yaml", "stop_grace_period:", "stop_grace:", "stop_grace"),
    (check_schema, "observability/service-monitor.yaml", "scrapeTimeout:", "scrapeTimeOut:", "ServiceMonitor understands"),
    (check_schema, "observability/service-monitor.yaml", "operator: In", "operators: In", "operator"),
    (check_schema, "observability/scaled-object.yaml", "maxReplicaCount: 8", "maxReplicas: 8", "ScaledObject understands"),
    (check_schema, "observability/scaled-object.yaml", "pollingInterval: 15", "pollingInterval: often", "pollingInterval"),
    (check_schema, "observability/grafana/provisioning/datasources/prometheus.yaml", "//prometheus:", "//prom:", "there is no prometheus at"),
    (check_schema, "observability/grafana/provisioning/dashboards/files.yaml", "grafana/dashboards", "dashboards", "nothing is mounted at"),
    (check_schema, "models.yaml", "aggregation_strategy:", "aggregation:", "unknown argument 'aggregation' of model 'ner'"),
    (check_schema, "kubernetes/prometheus-adapter.yaml", "  custom:", "  customs:", "customs"),
    (check_arguments, "kserve/inference-services/sequence-classification.yaml", "--return_probabilities", "--return_probs", "return_probs"),
    (check_arguments, "kserve/inference-services/fill-mask.yaml", "--model_name=bert", "--max_num_seqs=4", "max_num_seqs"),
    (check_arguments, "kserve/inference-services/text-generation.yaml", "--gpu_memory_utilization", "--gpu_memory_utilisation", "gpu_memory_utilisation"),
    (check_arguments, "kserve/serving-runtime-multi-node.yaml", "--pipeline-parallel-size=", "--pipeline-paralel-size=", "pipeline_paralel_size"),
    (check_arguments, "ray/multi-node.yaml", "--tensor-parallel-size=8", "--tensor-parallel-size=eight", "eight"),
    (check_arguments, "bentocloud/gpu.yaml", 'value: "8192"', "value: many", "max_length"),
    (check_grace_period, "kserve/serving-runtime-cpu.yaml", "--drain_seconds=15", "--drain_seconds=16", "within 31.0 s, and is killed after 30 s"),
    (check_grace_period, "kubernetes/encoder/deployment.yaml", "PeriodSeconds: 40", "PeriodSeconds: 30", "within 35.0 s, and is killed after 30 s"),
    (check_grace_period, "compose.yaml", "stop_grace_period: 40s", "stop_grace_period: 20s", "within 30.0 s, and is killed after 20.0 s"),
    (check_grace_period, "kserve/serving-runtime-cuda.yaml", "      securityContext:", "      lifecycle: {preStop: {sleep: {seconds: 5}}}\n      securityContext:", "what preStop would"),
    (check_environment, "compose.yaml", "RUNTIME_MODEL_NAME", "RUNTIME_MODEL_NAMES", "RUNTIME_MODEL_NAMES"),
    (check_environment, "kubernetes/encoder/deployment.yaml", "RUNTIME_API_KEY", "RUNTIME_APIKEY", "RUNTIME_APIKEY"),
    (check_ports, "kserve/serverless.yaml", "containerPort: 8081", "containerPort: 8082", "8082"),
    (check_ports, "kserve/serverless.yaml", "        grpc:\n          port: 8081", "        grpc:\n          port: 8080", "readinessProbe asks port 8080"),
    (check_ports, "kubernetes/encoder/service.yaml", "targetPort: grpc", "targetPort: rpc", "rpc"),
    (check_ports, "compose.yaml", "3000:3000", "3000:8080", "8080"),
    (check_ports, "kubernetes/encoder/deployment.yaml", 'io/port: "8080"', 'io/port: "8081"', "prometheus.io/port"),
    (check_ports, "observability/service-monitor.yaml", "- huggingface-encoder", "- huggingface-encoders", "are not the Services"),
    (check_ports, "observability/service-monitor.yaml", "port: http", "port: https", "has no port https"),
    (check_paths, "observability/service-monitor.yaml", "path: /metrics", "path: /metric", "nothing is scraped at /metric"),
    (check_paths, "observability/prometheus.yaml", "path: /metrics", "path: /metric", "nothing is scraped at /metric"),
    (check_paths, "kubernetes/encoder/deployment.yaml", "/v2/health/ready", "/v2/health/live", "readinessProbe"),
    (check_paths, "kubernetes/encoder/deployment.yaml", "startupProbe:", "startProbe:", "startupProbe"),
    (check_paths, "kserve/serving-runtime-cpu.yaml", "path: /metrics", "path: /metric", "/metric"),
    (check_paths, "compose.yaml", "/v2/health/ready", "/ready", "/ready"),
    (check_images, "ray/multi-node.yaml", "-cuda-ray:latest", "-ray:latest", "huggingface-runtime-ray"),
    (check_images, "bentocloud/cpu.yaml", "-cpu:latest", ":latest", "huggingface-runtime:latest"),
    (check_schema, "sagemaker/model.yaml", "S3Uri:", "S3Url:", "S3Url"),
    (check_schema, "sagemaker/endpoint-config.yaml", "Count: 1", "Count: one", "InitialInstanceCount"),
    (check_schema, "sagemaker/endpoint.yaml", "EndpointName:", "Name:", "EndpointName"),
    (check_environment, "sagemaker/model.yaml", "RUNTIME_LOG_FORMAT", "RUNTIME_LOGFORMAT", "RUNTIME_LOGFORMAT"),
    (check_arguments, "sagemaker/model.yaml", "STRATEGY: simple", "STRATEGY: simpel", "aggregation_strategy"),
    (check_cloud_images, "sagemaker/model.yaml", "-cpu-sagemaker:", "-cpu:", "there is no image"),
    (check_schema, "vertex/model.yaml", "healthRoute:", "healthPath:", "healthPath"),
    (check_schema, "vertex/model.yaml", "healthRoute: /v2/health/ready", "healthRoute: /v2/health/live", "/v2/health/live is asked"),
    (check_schema, "vertex/model.yaml", "containerPort: 8080", "containerPort: 8090", "another port"),
    (check_schema, "vertex/model.yaml", "displayName:", "name:", "unknown fields"),
    (check_arguments, "vertex/model.yaml", "value: json", "value: xml", "log_format"),
    (check_cloud_images, "vertex/model.yaml", "-cpu:", ":", "there is no image"),
    (check_schema, "azure/deployment.yaml", "liveness_route:", "live_route:", "live_route"),
    (check_schema, "azure/deployment.yaml", "    scoring_route:\n      port: 3000", "    scoring_route:\n      port: 8080", "3000 was expected"),
    (check_schema, "azure/endpoint.yaml", "auth_mode: key", "auth_mode: none", "'none' is not one of"),
    (check_environment, "azure/deployment.yaml", "RUNTIME_LOG_FORMAT", "RUNTIME_LOGFORMAT", "RUNTIME_LOGFORMAT"),
    (check_cloud_images, "azure/deployment.yaml", "-cpu:", ":", "there is no image"),
    (check_user, "ray/multi-node.yaml", "runAsUser: 1034", "runAsUser: 0", "runs as 0"),
    (check_user, "kserve/serving-runtime-cpu.yaml", "        runAsUser: 1034\n", "", "runs as None"),
    (check_user, "kserve/serving-runtime-cpu.yaml", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "may become root"),
    (check_gpu_type, "bentocloud/gpu.yaml", "nvidia-l4", "l4", "knows no l4"),
    (check_metrics, "kubernetes/encoder/hpa.yaml", "runtime_waiting_tokens", "runtime_queued_tokens", "runtime_queued_tokens"),
    (check_metrics, "kubernetes/prometheus-adapter.yaml", "vllm:num_requests_waiting{", "vllm:num_requests_queued{", "vllm:num_requests_queued"),
    (check_metrics, "observability/scaled-object.yaml", "(runtime_waiting_tokens", "(runtime_queued_tokens", "runtime_queued_tokens"),
    (check_metrics, "kserve/inference-services/text-embedding.yaml", "sum(runtime_running_texts", "sum(runtime_run_texts", "runtime_run_texts"),
    (check_runtime, "kserve/cluster-serving-runtime-cpu.yaml", "{{.Name}}", "model", "not named after"),
    (check_runtime, "kserve/cluster-serving-runtime-cpu.yaml", "autoSelect: true", "autoSelect: true\n      priority: 1", "priority"),
    (check_runtime, "kserve/cluster-serving-runtime-cuda.yaml", "autoSelect: false", "autoSelect: true", "without a GPU"),
    (check_runtime, "kserve/serving-runtime-cpu.yaml", "- name: huggingface", "- name: hugging-face", "model formats"),
    (check_runtime, "kserve/serverless.yaml", "name: h2c", "name: http1", "ports"),
    (check_runtime, "kserve/serverless.yaml", "      env:", "      lifecycle: {}\n      env:", "lifecycle"),
    (check_inference_service, "kserve/inference-services/fill-mask.yaml", "runtime: huggingface-runtime-cpu", "runtime: huggingface-runtime", "no runtime"),
    (check_inference_service, "kserve/inference-services/text-embedding-grpc.yaml", "runtime-cpu-grpc", "runtime-cpu-rest", "does not speak"),
    (check_inference_service, "kserve/inference-services/fill-mask.yaml", "Mode: Standard", "Mode: Knative", "one port"),
    (check_inference_service, "kserve/inference-services/text-generation.yaml", "runtime: huggingface-runtime-cuda", "runtime: huggingface-runtime-multi-node", "in both or in none"),
    (check_inference_service, "kserve/inference-services/text-generation-multi-node.yaml", "pvc://", "hf://", "from a volume"),
    (check_inference_service, "kserve/inference-services/text-generation-multi-node.yaml", "Class: none", "Class: hpa", "refuses to scale"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "path", "right", "wrong", "said"), BROKEN)
def test_each_check_finds_what_is_wrong(check: Check, path: str, right: str, wrong: str, said: str) -> None:
    text = (DEPLOY / path).read_text()
    assert right in text
    broken = read(DEPLOY / path, text.replace(right, wrong))
    assert said in " ".join(problem for document in broken for problem in check(document))


def test_every_check_is_shown_to_find_something() -> None:
    assert {check for check, *_ in BROKEN} == {*CHECKS}


def test_no_file_escapes() -> None:
    others = {str(path.relative_to(DEPLOY)) for path in FILES if path.suffix != ".yaml"}
    dashboard = "observability/grafana/dashboards/huggingface-runtime.json"
    assert others == {
        "README.md",
        "__init__.py",
        "kserve/Dockerfile",
        "ray/Containerfile",
        "sagemaker/Containerfile",
        dashboard,
    }
    unknown = Document("kubernetes/other.yaml", 0, {"some": "values"})
    assert [*check_schema(unknown)] == ["nothing here knows what this is"]
    readme = (DEPLOY / "README.md").read_text()
    assert {name for path in FILES if (name := path.relative_to(DEPLOY).parts[0]) not in readme} == {
        "README.md",
        "__init__.py",
    }


def test_there_is_an_example_for_every_task() -> None:
    examples = {path.stem for path in (DEPLOY / "kserve/inference-services").iterdir()}
    assert {str(task).replace("_", "-") for task in Task} <= examples


def test_several_models_of_kserve(tmp_path: Path, model_folder: ModelFolder) -> None:
    """The runtime's arguments and the example's start a server of what KServe has put into /mnt/models."""
    for name in ("embed", "ner"):
        (tmp_path / name).symlink_to(model_folder("bert", "token_classification"))
    model = by_name("InferenceService")["several-models"].content["spec"]["predictor"]["model"]
    [container] = by_name("ClusterServingRuntime")[model["runtime"]].content["spec"]["containers"]
    words = parse_command_line([*container["args"], *model["args"]])

    def localize(path: str) -> Path:
        assert path == "/mnt/models"
        return tmp_path

    configuration = read_configuration(words, variables(container), {}, localize)
    assert [each.name for each in configuration.models] == ["embed", "ner"]


def test_compose_mounts_the_models_file() -> None:
    service = compose()["services"]["models"]
    assert f"./models.yaml:{service['environment']['RUNTIME_MODELS_FILE']}:ro" in service["volumes"]
    assert (DEPLOY / "models.yaml").is_file()


def test_what_compose_mounts_exists() -> None:
    for service in compose()["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose()["volumes"] or (DEPLOY / source).exists(), volume


def test_compose_watches_every_server() -> None:
    """Prometheus asks each by its name, and the profile starts what watches but nothing that needs a GPU."""
    services = compose()["services"]
    servers = [name for name, service in services.items() if service["image"] in BENTOS]
    scraped = yaml.safe_load((DEPLOY / "observability/prometheus.yaml").read_text())["scrape_configs"]
    [[found]] = [each["dns_sd_configs"] for each in scraped]
    assert (found["names"], found["port"]) == (servers, BENTOML_PORT)
    started = {
        name for name, service in services.items() if "observability" in service.get("profiles", ["observability"])
    }
    assert started == {"cache", "encoder", "prometheus", "grafana"}
    environment = services["grafana"]["environment"]
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    mounts = {inside: source for source, inside, *_ in (volume.split(":") for volume in services["grafana"]["volumes"])}
    assert (DEPLOY / mounts[str(Path(home).parent)] / Path(home).name).is_file()


def test_autoscalers_of_one_deployment_agree() -> None:
    """KEDA's queries ask for the same as the HorizontalPodAutoscalers in the place of which they stand."""
    for name, scaled in by_name("ScaledObject").items():
        spec, autoscaler = scaled.content["spec"], by_name("HorizontalPodAutoscaler")[name].content["spec"]
        assert spec["scaleTargetRef"]["name"] == autoscaler["scaleTargetRef"]["name"]
        assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (
            autoscaler["minReplicas"],
            autoscaler["maxReplicas"],
        )
        assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler["behavior"]
        asked = {
            re.sub(r"sum\((\S+?)\{.*", r"\1", each["metadata"]["query"]).replace(":", "_"): each["metadata"][
                "threshold"
            ]
            for each in spec["triggers"]
        }
        assert asked == {
            each["pods"]["metric"]["name"]: each["pods"]["target"]["averageValue"] for each in autoscaler["metrics"]
        }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_runtimes_of_a_namespace_and_of_the_cluster_are_the_same(device: str) -> None:
    name = f"huggingface-runtime-{device}"
    assert by_name("ServingRuntime")[name].content["spec"] == by_name("ClusterServingRuntime")[name].content["spec"]


def test_the_image_for_ray_is_made_of_the_one_for_cuda_and_ends_as_its_user() -> None:
    lines = (DEPLOY / "ray/Containerfile").read_text().splitlines()
    assert "FROM huggingface-runtime-cuda:latest" in lines
    assert lines[-1] == "USER bentoml"


def test_the_documents_of_sagemaker_name_each_other() -> None:
    model, configuration, endpoint = (yaml.safe_load((DEPLOY / path).read_text()) for path in SAGEMAKER_CALLS)
    assert [each["ModelName"] for each in configuration["ProductionVariants"]] == [model["ModelName"]]
    assert endpoint["EndpointConfigName"] == configuration["EndpointConfigName"]


def test_the_image_for_sagemaker_runs_the_command_with_the_word_serve() -> None:
    lines = (DEPLOY / "sagemaker/Containerfile").read_text().splitlines()
    assert "ARG IMAGE=huggingface-runtime-cpu:latest" in lines
    assert lines[-2:] == ["USER root", 'ENTRYPOINT ["huggingface-runtime"]']
    assert plan_launch(["serve"]).server.http_port == HTTP_PORT


SCRIPTS = [
    (document, container)
    for document in DOCUMENTS
    for container in containers(document)
    if container.get("command", [""])[0] == "bash"
]


@pytest.mark.parametrize(
    ("document", "container"), SCRIPTS, ids=lambda value: value.get("name") if isinstance(value, dict) else str(value)
)
def test_scripts_start_ray_and_the_server(document: Document, container: Mapping[str, Any], tmp_path: Path) -> None:
    """Run by bash, with programs that only say what they were called with."""
    for program in ("ray", "huggingface-runtime"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)
    given = {"TENSOR_PARALLEL_SIZE": "8", "PIPELINE_PARALLEL_SIZE": "2", "REQUEST_GPU_COUNT": "8", "HEAD_SVC": "head"}
    given |= {"VLLM_HOST_IP": "10.0.0.1", "POD_NAMESPACE": "models", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    arguments = [*container.get("args", []), "--a flag"]
    run = subprocess.run([*container["command"], *arguments], env=given, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    lines = run.stdout.splitlines()
    if "worker" in container["name"]:
        head = "head.models.svc:6379" if document.of_kserve else "huggingface-multi-node-ray:6379"
        assert lines[0] == f"ray health-check --address {head}"
        assert lines[1].startswith(f"ray start --address={head} --node-ip-address=10.0.0.1")
        assert "--block" in lines[1]
        return
    assert lines[0].startswith("ray start --head --port=6379 --node-ip-address=10.0.0.1")
    assert lines[1].startswith("huggingface-runtime ")
    for argument in (
        "--distributed-executor-backend=ray",
        "--tensor-parallel-size=8",
        "--pipeline-parallel-size=2",
        "--gpu=8",
    ):
        assert argument in lines[1]
    assert lines[1].endswith(" ".join(arguments))


def test_the_runbook_makes_a_prometheus_rule_of_the_alarms() -> None:
    [command] = [
        block.text
        for block in find_blocks("docs/how-to/operations.md", read_page("docs/how-to/operations.md"))
        if "PrometheusRule" in block.text
    ]
    commands = command.partition("\n")[2].replace("kubectl apply -f -", "cat")
    environment = {"RUNBOOKS": "https://runbooks.example", "PATH": os.environ["PATH"]}
    shown = subprocess.run(
        ["bash", "-ec", commands], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    rule = Document("rule.yaml", 0, yaml.safe_load(shown.stdout))
    assert [*check_operator(rule)] == []
    [first, *_] = rule.content["spec"]["groups"][0]["rules"]
    assert first["annotations"]["runbook_url"] == "https://runbooks.example/how-to/operations.html#runtimeabsent"
