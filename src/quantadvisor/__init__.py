"""QuantAdvisor: which quantization, on which runtime, pays for a declared serving workload.

Documents (`quantadvisor.documents`) flow through pure functions; `profiling`, `kernels`, `methods` and `reports`
measure, time operators, apply and draw; only `advisor` knows them all. See docs/architecture.md.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("quantadvisor")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0.0.0+source"
