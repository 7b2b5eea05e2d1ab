"""llama.cpp's products through ggml's C interface: one MUL_MAT per weight, weights where llama.cpp would put them.

llama.cpp offers a weight first to the CPU backend's extra buffers, which store it in the layout of a fast kernel (AMX tiles,
repacked rows), and takes the first whose kernel supports the product. The option `plain` leaves them out.

A probe's file names its type and takes the rest from here: `refuse = partial(ggml_graph.refuse, TYPE)` and so on.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device

from .problem import Bound, Prepared, Problem, float_weights, inputs, product

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OPTIONS = ("", "plain")
BLOCKS = {"bf16": 1, "q4_0": 32, "q8_0": 32}
"""Weights of a block, which divides K."""
F32 = 0
NODE_BYTES = 1024
"""More than ggml_tensor and the graph's bookkeeping take per tensor."""


class InitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


POINTERS = (
    "ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph", "ggml_backend_alloc_ctx_tensors_from_buft",
    "ggml_backend_cpu_init", "ggml_backend_cpu_reg", "ggml_backend_cpu_buffer_type", "ggml_backend_reg_dev_get",
    "ggml_backend_reg_get_proc_address",
)  # fmt: skip


@lru_cache
def library() -> Any:
    """ggml's functions by name, with the types of what they give back."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    parts = [ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in ("libggml-base.so", "libggml-cpu.so")]

    class Functions:
        def __getattr__(self, name: str) -> Any:
            function = next(getattr(part, name) for part in parts if hasattr(part, name))
            if name in POINTERS:
                function.restype = ctypes.c_void_p
            setattr(self, name, function)
            return function

    found = Functions()
    found.ggml_init.argtypes = [InitParams]
    found.ggml_new_tensor_2d.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    found.ggml_backend_buft_name.restype = ctypes.c_char_p
    found.ggml_backend_dev_supports_op.restype = ctypes.c_bool
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    for name in ("ggml_backend_tensor_set", "ggml_backend_tensor_get"):
        getattr(found, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return found


def pointer(value: int | None) -> Any:
    return ctypes.c_void_p(value)


def packed_weights(type_name: str, shape: Problem, copy: int) -> Array:
    """w as the type's blocks: uint8 [N, bytes of a row], rounded by ggml itself."""
    import gguf
    import numpy as np

    number = gguf.GGMLQuantizationType[type_name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[number]
    source = np.ascontiguousarray(float_weights(shape, copy))
    packed = np.zeros((shape.n, shape.k // block * size), np.uint8)
    library().ggml_quantize_chunk(number.value, source.ctypes.data, packed.ctypes.data, 0, shape.n, shape.k, None)
    return packed


def context(tensors: int) -> Any:
    """A ggml context for the descriptions of that many tensors and a graph; their data lie in backend buffers."""
    lib = library()
    return pointer(lib.ggml_init(InitParams(tensors * NODE_BYTES + lib.ggml_graph_overhead(), None, True)))


def released(held: Any, buffer: Any) -> None:
    library().ggml_backend_buffer_free(buffer)
    library().ggml_free(held)


def buffer_types(option: str) -> list[Any]:
    """The kinds of buffers in llama.cpp's order: the extra ones of the CPU backend, then plain memory."""
    lib = library()
    registry = pointer(lib.ggml_backend_cpu_reg())
    found: list[Any] = []
    if option != "plain":
        address = lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
        listed = extra(pointer(lib.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0))))
        while listed and listed[len(found)]:
            found.append(pointer(listed[len(found)]))
    return [*found, pointer(lib.ggml_backend_cpu_buffer_type())]


@dataclass(frozen=True)
class Placed:
    """Weights in a buffer of the backend, freed with this; `where`: the buffer's name."""

    weights: tuple[Any, ...]
    where: str


def placed(type_name: str, shape: Problem) -> Placed:
    """Empty weights in the first buffer whose kernel supports their product."""
    lib, number = library(), number_of(type_name)
    device = pointer(lib.ggml_backend_reg_dev_get(pointer(lib.ggml_backend_cpu_reg()), ctypes.c_size_t(0)))
    for kind in buffer_types(shape.option):
        held, tried = context(shape.copies), context(2)
        weights = tuple(pointer(lib.ggml_new_tensor_2d(held, number, shape.k, shape.n)) for _ in range(shape.copies))
        buffer = pointer(lib.ggml_backend_alloc_ctx_tensors_from_buft(held, kind))
        product_of_one = lib.ggml_mul_mat(tried, weights[0], pointer(lib.ggml_new_tensor_2d(tried, F32, shape.k, 1)))
        supported = buffer and lib.ggml_backend_dev_supports_op(device, pointer(product_of_one))
        lib.ggml_free(tried)
        if supported:
            found = Placed(weights, lib.ggml_backend_buft_name(kind).decode())
            weakref.finalize(found, released, held, buffer)
            return found
        released(held, buffer)
    raise RuntimeError(f"no buffer of ggml's CPU backend takes {type_name}")


def number_of(type_name: str) -> int:
    import gguf

    return int(gguf.GGMLQuantizationType[type_name.upper()].value)


def prepare(type_name: str, shape: Problem) -> Prepared:
    """Weights in place for a graph of `shape.copies` products of the same x, each with a weight of its own."""
    lib, found = library(), placed(type_name, shape)
    for copy, w in enumerate(found.weights):
        codes = packed_weights(type_name, shape, copy)
        lib.ggml_backend_tensor_set(w, codes.ctypes.data, 0, codes.nbytes)
    return Prepared(bind=partial(bind, found, shape), operator=lambda: f"MUL_MAT {type_name} in {found.where}")


def bind(placed: Placed, shape: Problem, data: Array) -> Bound:
    """The graph at the rows of x: float32 [M, K]; its buffers are freed with the call."""
    import numpy as np

    lib, run = library(), context(shape.copies + 1)
    x = pointer(lib.ggml_new_tensor_2d(run, F32, shape.k, len(data)))
    products = [pointer(lib.ggml_mul_mat(run, w, x)) for w in placed.weights]
    graph = pointer(lib.ggml_new_graph(run))
    for one in products:
        lib.ggml_build_forward_expand(graph, one)
    buffer = pointer(lib.ggml_backend_alloc_ctx_tensors_from_buft(run, pointer(lib.ggml_backend_cpu_buffer_type())))
    data = np.ascontiguousarray(data)
    lib.ggml_backend_tensor_set(x, data.ctypes.data, 0, data.nbytes)
    backend = pointer(lib.ggml_backend_cpu_init())
    lib.ggml_backend_cpu_set_n_threads(backend, ctypes.c_int(shape.threads))

    def call() -> object:
        if code := lib.ggml_backend_graph_compute(backend, graph):
            raise RuntimeError(f"ggml_backend_graph_compute gave {code}")
        return placed  # which the graph reads

    def output() -> Array:
        y = np.empty((len(data), shape.n), np.float32)
        lib.ggml_backend_tensor_get(products[-1], y.ctypes.data, 0, y.nbytes)
        return y

    bound = Bound(call=call, output=output)
    weakref.finalize(bound, lib.ggml_backend_free, backend)
    weakref.finalize(bound, released, run, buffer)
    return bound


def reference(type_name: str, shape: Problem) -> Callable[[], Array]:
    """The last copy's product with what its blocks stand for, by the `gguf` package."""
    import gguf

    number = gguf.GGMLQuantizationType[type_name.upper()]
    return product(inputs(shape.m, shape.k), gguf.dequantize(packed_weights(type_name, shape, shape.copies - 1), number))


def refuse(type_name: str, device: Device, shape: Problem) -> str | None:
    block = BLOCKS[type_name]
    return f"K = {shape.k} is no multiple of its blocks of {block}" if shape.k % block else None


def arithmetic(type_name: str, option: str, isa: Sequence[str]) -> str:
    """Activations of a product with blocks of integers are rounded to Q8_0, in blocks of 32 too."""
    return "bf16" if type_name == "bf16" else "int8"
