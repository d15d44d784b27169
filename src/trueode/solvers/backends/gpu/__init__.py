"""Solves on GPUs in a few launches: by kernels for fields of layers, and by recordings; used on
request.
"""

from trueode.solvers.backends.gpu.library import describe

__all__ = ["describe"]
