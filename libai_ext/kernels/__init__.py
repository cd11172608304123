"""Native CPU kernels for OneFlow's own ops: environment, build and loading.

Importing this package does not import oneflow, so that `threads` can set the environment first.
"""

from libai_ext.kernels.loader import (
    Status,
    bfloat16_instructions,
    is_loaded,
    load,
    sleep_in_waits,
    use_bfloat16_products,
)

__all__ = [
    "Status",
    "bfloat16_instructions",
    "is_loaded",
    "load",
    "sleep_in_waits",
    "use_bfloat16_products",
]
