"""Native CPU kernels behind OneFlow's own ops: environment, build and loading.

Importing this package does not import oneflow, so that `threads` can set the environment first.
"""

from libai_ext.kernels.loader import Status, is_loaded, load

__all__ = ["Status", "is_loaded", "load"]
