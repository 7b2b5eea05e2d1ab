"""The type that llama.cpp gives a linear of a file: its mix, and what it takes where blocks do not divide the rows. Pure.

A file of q2_k, q4_k (of q4_0 and q5_0 with an importance matrix) has some linears in a larger type; of q3_k, q4_k and q5_k the
small mixes are meant (…_S). Where the 256 weights of a super-block do not divide a row, a type in blocks of 32 takes its place,
and float16 where these do not either. As `llama_tensor_get_type_impl` and `tensor_type_fallback` choose:
https://github.com/ggml-org/llama.cpp, src/llama-quant.cpp
"""

from __future__ import annotations

BLOCK, SUPER_BLOCK = 32, 256
BLOCK_BYTES = {
    "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34,
    "q2_k": 84, "q3_k": 110, "q4_k": 144, "q5_k": 176, "q6_k": 210,
}  # fmt: skip
"""Of BLOCK weights, of the super-blocks (…_k) of SUPER_BLOCK: codes, scales and minima."""
IN_PLACE = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""What takes the place of super-blocks."""
FLOAT = "f16"


def block_of(type_name: str) -> int:
    return SUPER_BLOCK if type_name.endswith("_k") else BLOCK


def fitting(type_name: str, width: int) -> str:
    """The type itself, or what llama.cpp takes in its place in rows of so many weights. Blocks of 32 have no other type in their
    place: llama.cpp writes no such file, and float16 stands for that here."""
    if width % block_of(type_name) == 0:
        return type_name
    return FLOAT if width % BLOCK else IN_PLACE[type_name]


def row_bytes(type_name: str, width: int) -> int:
    """Of a row of so many weights, in the type that fits it."""
    fits = fitting(type_name, width)
    return 2 * width if fits == FLOAT else width // block_of(fits) * BLOCK_BYTES[fits]


def linear_type(file_type: str, linear: str, layer: int, layers: int, repeat: int, weighed: bool = False) -> str:
    """Of a linear, by the last part of its Hugging Face name, before it is made to fit. `repeat`: query heads a key head;
    `weighed`: there is an importance matrix."""
    if linear == "v_proj":
        larger = {"q2_k": "q4_k" if repeat >= 4 else "q3_k"} | ({"q4_k": "q5_k"} if layer < 4 else {})
        found = larger.get(file_type, file_type)
        return "q5_k" if layers == 80 and repeat > 1 and found in ("q3_k", "q4_k") else found  # llama.cpp's LLM_TYPE_70B
    if linear == "o_proj":
        return {"q2_k": "q3_k"}.get(file_type, file_type)
    if linear == "down_proj":
        early = {"q4_k": "q5_k"} | ({"q4_0": "q4_1", "q5_0": "q5_1"} if weighed else {})
        return ({"q2_k": "q3_k"} | (early if layer < layers // 8 else {})).get(file_type, file_type)
    return file_type
