"""Bounds the memory in which oneDNN keeps the kernels that it has made for a model's linear layers on a CPU."""

from __future__ import annotations

from collections.abc import MutableMapping

# oneDNN keeps kernels, PyTorch's layer above it their descriptions: by default 1024 each, one for each shape of a layer
# and number of rows. Both take 0.4 MiB a kernel with AVX-512, so that a model of 200 MiB grows to 700 MiB while batches
# of all sizes come. Making a kernel again takes 0.1 ms.
_MOST_KERNELS = 256
# https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html; the first one has an older name, too.
_ONEDNN_CAPACITY, _OLD_ONEDNN_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"
# https://github.com/intel/ideep, include/ideep/lru_cache.hpp
_PYTORCH_CAPACITY = "LRU_CACHE_CAPACITY"


def limit_kernel_caches(environment: MutableMapping[str, str]) -> None:
    """Set the capacities of both caches, unless the operator has set them; call it before PyTorch multiplies."""
    if _OLD_ONEDNN_CAPACITY not in environment:
        environment.setdefault(_ONEDNN_CAPACITY, str(_MOST_KERNELS))
    environment.setdefault(_PYTORCH_CAPACITY, str(_MOST_KERNELS))
