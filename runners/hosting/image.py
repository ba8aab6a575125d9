"""The container image of a Bento."""

from __future__ import annotations

from bentoml.images import Image

from runners.hosting.life.signals import STOP_SIGNALS

# bash reads it before the image's entry point, if the environment variable BASH_ENV of the bentofiles names it.
_SCRIPT = "/usr/local/lib/huggingface-runtime-folders.sh"
_SIGNALS = ",".join(number.name for number in STOP_SIGNALS)
# The kernel drops signals to the first process of a container that have no handler. Blocked ones wait for the server's
# handlers; `env` begins the entry point again with them blocked, which bash itself cannot do.
_HOLD_SIGNALS = (
    'if [ $$ = 1 ] && [ -z "$HUGGINGFACE_RUNTIME_HOLDS_SIGNALS" ]; then mapfile -d "" words < /proc/1/cmdline; '
    # Another command, such as a shell, has handlers of its own.
    "case ${words[1]}:${words[2]:-serve} in */entrypoint.sh:serve*|*/entrypoint.sh:-*) "
    f'HUGGINGFACE_RUNTIME_HOLDS_SIGNALS=1 exec env --block-signal={_SIGNALS} "${{words[@]}}";; esac; fi'
)
_CHOOSER = "$BENTO_PATH/src/runners/hosting/writable_folders.py"
# While the image is built, the module is not there yet.
_CHOOSE = f'test ! -f {_CHOOSER} || {{ chosen=$(python {_CHOOSER}) || exit 1; eval "$chosen"; }}'


def create_image() -> Image:
    """The commands of every flavour's image that run before the packages of its bentofile are installed."""
    return (
        Image(python_version="3.11")
        # Kubernetes manifests of KServe run it as the container's `command`.
        .run("ln -s $BENTO_PATH/src/launch.py /usr/local/bin/huggingface-runtime")
        # BentoML's entry point fails where BENTOML_HOME cannot be written.
        .run(f"echo '{_HOLD_SIGNALS}; {_CHOOSE}' > {_SCRIPT}")
        # The packages are locked; pip must not install the packages that a lock omits as dependencies of others.
        .run("mkdir -p /etc/uv && echo 'pip.no-deps = true' > /etc/uv/uv.toml")
    )
