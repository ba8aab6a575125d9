"""Generate the Python of open_inference.proto: `make stubs`, or this module with a FOLDER to write into."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
_PACKAGE = "protocol/open_inference/grpc/stubs"


def generate(folder: Path) -> list[Path]:
    """Write the modules into `folder`/protocol/open_inference/grpc/stubs, and return their paths.

    Raises:
        RuntimeError: the compiler refuses the file; it says why on standard error.
    """
    root = HERE.parents[3]
    proto = f"{_PACKAGE}/open_inference.proto"
    includes = [f"-I{root}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, proto]):
        raise RuntimeError(f"{proto} cannot be compiled")
    written = sorted((folder / _PACKAGE).glob("open_inference_pb2*"))
    for path in written:
        # A pool of its own: Triton's and KServe's clients register the same message names in the default one.
        text = path.read_text().replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
        path.write_text(text)
    return written


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[3])
