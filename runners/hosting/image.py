"""The container image of a Bento."""

from __future__ import annotations

from bentoml.images import Image


def create_image() -> Image:
    """The commands of every flavour's image that run before the packages of its bentofile are installed."""
    return (
        Image(python_version="3.11")
        # Kubernetes manifests of KServe run it as the container's `command`.
        .run("ln -s $BENTO_PATH/src/launch.py /usr/local/bin/huggingface-runtime")
        # The packages are locked; pip must not install the packages that a lock omits as dependencies of others.
        .run("mkdir -p /etc/uv && echo 'pip.no-deps = true' > /etc/uv/uv.toml")
    )
