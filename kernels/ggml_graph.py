"""llama.cpp's products through ggml's C interface: one MUL_MAT per weight, weights where llama.cpp would put them.

llama.cpp offers a weight first to the CPU backend's extra buffers, which store it in the layout of a fast kernel (AMX tiles,
repacked rows), and takes the first whose kernel supports the product. The option `plain` leaves them out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .problem import Prepared, Problem, float_weights, inputs, product

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OPTIONS = ("", "plain")
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


def packed_weights(shape: Problem, type_name: str, copy: int) -> Array:
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


def placed(shape: Problem, number: int, buffers: list[Any]) -> tuple[list[Any], list[Any], Any, Any, str]:
    """(weights, products, x, graph, name of the buffer): in the first buffer whose kernel supports the product."""
    lib = library()
    device = pointer(lib.ggml_backend_reg_dev_get(pointer(lib.ggml_backend_cpu_reg()), ctypes.c_size_t(0)))
    for kind in buffers:
        held, run = context(shape.copies), context(shape.copies + 1)
        weights = [pointer(lib.ggml_new_tensor_2d(held, number, shape.k, shape.n)) for _ in range(shape.copies)]
        allocated = lib.ggml_backend_alloc_ctx_tensors_from_buft(held, kind)
        x = pointer(lib.ggml_new_tensor_2d(run, F32, shape.k, shape.m))
        products = [pointer(lib.ggml_mul_mat(run, w, x)) for w in weights]
        if allocated and lib.ggml_backend_dev_supports_op(device, products[0]):
            graph = pointer(lib.ggml_new_graph(run))
            for one in products:
                lib.ggml_build_forward_expand(graph, one)
            lib.ggml_backend_alloc_ctx_tensors_from_buft(run, pointer(lib.ggml_backend_cpu_buffer_type()))
            return weights, products, x, graph, lib.ggml_backend_buft_name(kind).decode()
        lib.ggml_backend_buffer_free(pointer(allocated))
        lib.ggml_free(run)
        lib.ggml_free(held)
    raise RuntimeError(f"no buffer of ggml's CPU backend takes type {number}")


def prepare(shape: Problem, type_name: str) -> Prepared:
    """A graph of `shape.copies` products of the same x: float32 [M, K], each with a weight of its own."""
    import gguf
    import numpy as np

    lib = library()
    number = gguf.GGMLQuantizationType[type_name.upper()].value
    weights, products, x, graph, where = placed(shape, number, buffer_types(shape.option))
    for copy, w in enumerate(weights):
        codes = packed_weights(shape, type_name, copy)
        lib.ggml_backend_tensor_set(w, codes.ctypes.data, 0, codes.nbytes)
    data = np.ascontiguousarray(inputs(shape))
    lib.ggml_backend_tensor_set(x, data.ctypes.data, 0, data.nbytes)
    backend = pointer(lib.ggml_backend_cpu_init())
    lib.ggml_backend_cpu_set_n_threads(backend, ctypes.c_int(shape.threads))

    def call() -> object:
        if code := lib.ggml_backend_graph_compute(backend, graph):
            raise RuntimeError(f"ggml_backend_graph_compute gave {code}")
        return None

    def run() -> Array:
        call()
        y = np.empty((shape.m, shape.n), np.float32)
        lib.ggml_backend_tensor_get(products[-1], y.ctypes.data, 0, y.nbytes)
        return y

    return Prepared(run=run, call=call, operator=lambda: f"MUL_MAT {type_name} in {where}")


def reference(shape: Problem, type_name: str) -> Callable[[], Array]:
    """The last copy's product with what its blocks stand for, by the `gguf` package."""
    import gguf

    number = gguf.GGMLQuantizationType[type_name.upper()]
    return product(inputs(shape), gguf.dequantize(packed_weights(shape, type_name, shape.copies - 1), number))


def refuse_rows(shape: Problem, block: int) -> str | None:
    return f"K = {shape.k} is no multiple of its blocks of {block}" if shape.k % block else None
