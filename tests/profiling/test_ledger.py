import pytest

from quantadvisor.documents import Format, Inventory, LinearShape, Scheme
from quantadvisor.kernels.problem import matrix_bytes
from quantadvisor.profiling.ledger import (
    LEAST_POOL_TOKENS,
    bytes_of_cache,
    bytes_of_weights,
    held_tokens,
    memory_ledger,
    pool_bytes,
    smallest_weights_bytes,
)

W4 = Format(number="int", bits=4, granularity="group", group_size=64, symmetric=True)
W4A = W4.model_copy(update={"symmetric": False})
W8C = Format(number="int", bits=8, granularity="channel")
FP32 = Scheme(name="fp32")


def inventory(tied: bool = True) -> Inventory:
    linears = (
        LinearShape(name="q_proj,o_proj", n=96, k=96, count=6),
        LinearShape(name="down_proj", n=96, k=200, count=3),
        LinearShape(name="lm_head", n=331, k=96, count=1, lm_head=True),
    )
    return Inventory(
        architecture="x", layers=3, hidden=96, vocabulary=331, heads=6, kv_heads=2, head_dim=16,
        max_context_tokens=128, tied_embeddings=tied, linears=linears, embedding_parameters=331 * 96,
        linear_parameters=6 * 96 * 96 + 3 * 96 * 200, other_parameters=700, kv_values_per_token=3 * 2 * 2 * 16,
    )  # fmt: skip


def test_matrix_bytes_count_what_is_stored() -> None:
    assert matrix_bytes(3, 200, None, 4, 4) == 3 * 200 * 4
    assert matrix_bytes(3, 200, W4, 4, 4) == 3 * 4 * 32 + 3 * 4 * 4  # 4 groups of 64, the last one padded
    assert matrix_bytes(3, 200, W4A, 4, 4) == 3 * 4 * 32 + 3 * 4 * 4 + 6  # 12 zero points of 4 bits
    assert matrix_bytes(3, 200, W8C, 2, 2) == 3 * 200 + 3 * 2
    nf4 = Format(number="codebook", bits=4, granularity="block", group_size=1024)
    assert matrix_bytes(3, 576, nf4, 4, 4) == 3 * 288 + 3 * 4  # one short block a row, nothing padded
    proxy = Format(number="codebook", bits=3, granularity="block", group_size=64, kept_percent=2)
    assert matrix_bytes(3, 200, proxy, 4, 4) == 3 * 74 + 3 * 4 * 4 + 3 * 4 * 2  # 196 codes of 3 bits a row, 4 inputs in 16
    centred = Format(number="codebook", bits=4, granularity="block", group_size=64, centred=True)
    assert matrix_bytes(3, 200, centred, 4, 4) == 3 * 100 + 3 * 4 * 4 + 3 * 4 * 2  # 12 means of 16 bits
    assert matrix_bytes(3, 200, Format(number="int", bits=7, granularity="channel"), 4, 4) == 3 * 200 + 3 * 4  # bytes, not bits
    assert matrix_bytes(3, 7, Format(number="int", bits=3, granularity="tensor"), 4, 4) == 3 * 3 + 4


@pytest.mark.parametrize("tied", [True, False])
def test_float_weights_are_parameters_times_bytes(tied: bool) -> None:
    one = inventory(tied)
    assert bytes_of_weights(one, FP32) == 4 * one.parameters
    assert bytes_of_weights(one, Scheme(name="bf16", compute="bf16")) == 2 * one.parameters


def test_a_tied_head_in_another_format_is_stored_twice() -> None:
    one = inventory()
    plain = bytes_of_weights(one, FP32)
    assert bytes_of_weights(one, FP32, tied_once=False) - plain == 331 * 96 * 4
    assert bytes_of_weights(one, Scheme(name="h", lm_head=W8C)) - plain == 331 * 96 + 331 * 4
    both = Scheme(name="b", lm_head=W8C, embeddings=W8C)
    assert bytes_of_weights(one, both) == plain - 331 * 96 * 4 + 331 * 96 + 331 * 4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "inside"), [("q8_0", "q8_0"), ("q5_1", "q5_1"), ("q6_k", "q8_0"), ("q5_k", "q5_1")])
def test_gguf_is_counted_by_its_blocks(name: str, inside: str, tied: bool) -> None:
    """The oracle is the gguf package's own table of block sizes. Rows of 96 and 192 hold no super-block."""
    import gguf

    from quantadvisor.methods.schemes import scheme

    def stored(n: int, k: int, kind: str) -> int:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
        return n * k // block * size

    narrow = tuple(shape.model_copy(update={"k": 192}) if shape.k == 200 else shape for shape in inventory().linears)
    one = inventory(tied).model_copy(update={"linears": narrow})
    want = 6 * stored(96, 96, inside) + 3 * stored(96, 192, inside) + stored(331, 96, "q8_0") + 4 * one.other_parameters
    assert bytes_of_weights(one, scheme(name)) == want + (0 if tied else stored(331, 96, inside))


def test_cache() -> None:
    one = inventory()
    assert bytes_of_cache(one, FP32, 100, 7) == 192 * 100 * 7 * 4
    static = Scheme(name="kv8", keys=W8C, values=W8C)
    assert bytes_of_cache(one, static, 100, 7) == 192 * 100 * 7
    token = Format(number="int", bits=8, granularity="token", symmetric=False, dynamic=True)
    dynamic = Scheme(name="kv8", keys=token, values=token)
    assert bytes_of_cache(one, dynamic, 100, 7) == (192 + 192 // 16 * 8) * 700
    mixed = Scheme(name="k8v4", keys=W8C, values=W8C.model_copy(update={"bits": 4}))
    assert bytes_of_cache(one, mixed, 100, 7) == (96 + 48) * 700
    assert bytes_of_cache(one, FP32, 100, 7, plain_bytes=2) == 192 * 100 * 7 * 2


@pytest.mark.parametrize(
    ("name", "bits", "floats"),
    [("kv4-turbo", 4, 2), ("kv2.5-turbo", 2.5, 4), ("kv3-turbo-prod", 3, 3), ("kv3.5-turbo-prod", 3.5, 6)],
)
def test_a_vector_s_norms_count(name: str, bits: float, floats: int) -> None:
    """192 values a token, in keys and values of 16: `floats` of both. Halves have their own; prod keys that of what is left."""
    codes = Format(number="codebook", bits=bits, granularity="token", dynamic=True)
    made = Scheme(name=f"fp32-{name}", keys=codes, values=codes)
    assert bytes_of_cache(inventory(), made, 100, 7) == (192 * bits / 8 + 192 / 32 * floats * 4) * 700


def test_a_window_counts_only_where_the_runtime_drops() -> None:
    one = Inventory(**{**dict(inventory()), "sliding_window": 10}, sliding_layers=2)
    assert bytes_of_cache(one, FP32, 100, 1) == 192 * 100 * 4
    assert bytes_of_cache(one, FP32, 100, 1, windowed=True) == 64 * 4 * (2 * 10 + 100)


def test_the_ledger_of_a_planted_process_adds_up_to_its_peak() -> None:
    """A process of 1,000 bytes of its own beside the weights, 70 a token of activations, and the cache."""
    one = inventory()
    weights, cache = 4 * one.parameters, 192 * 4

    def peak(rows: int, tokens: int) -> int:
        return weights + 1000 + rows * tokens * (cache + 70)

    made = memory_ledger(
        one, FP32, prompt_tokens=80, context_tokens=100, concurrency=3, prefilled_rows=3,
        one_token_bytes=weights + 1000, shorter=((20, peak(3, 20)), (40, peak(3, 40))),
        measured_peak_bytes=peak(3, 80) + 60 * cache,
    )  # fmt: skip
    parts = {item.tensor: (item.bytes, item.kind) for item in made.items}
    assert parts["weights"] == (weights, "modelled")
    assert parts["kv_cache"] == (cache * 300, "modelled")
    assert parts["activations"] == (70 * 240, "modelled")
    assert parts["overhead"] == (1000, "measured")
    assert made.total_bytes == made.measured_peak_bytes


def test_the_floor() -> None:
    one = inventory()
    assert smallest_weights_bytes(one) == (one.parameters - 700) // 4 + 1400


def test_a_paged_cache_is_held_in_whole_blocks_and_its_pool_follows_the_requests() -> None:
    """192 values a token; blocks of 128 tokens, one ahead for each request and one for vLLM itself."""
    one, half = inventory(), Scheme(name="bf16", compute="bf16")
    assert [held_tokens("vllm", tokens) for tokens in (1, 128, 129)] == [256, 256, 384]
    assert held_tokens("onnxruntime", 129) == 129
    assert pool_bytes(one, half, "vllm", 129, 10) == (10 * 384 + 128) * 192 * 2
    assert pool_bytes(one, half, "vllm", 129, 1) == (LEAST_POOL_TOKENS + 128) * 192 * 2  # a text that is scored has room
    assert pool_bytes(one, half, "onnxruntime", 129, 10) == 0


def test_a_pool_that_is_taken_at_load_is_counted_once() -> None:
    """Of a process that holds weights, pool and 5,000 bytes more, and grows by 7 a token of its prompts."""
    one, half = inventory(), Scheme(name="bf16", compute="bf16")
    pool, weights = 1_000_000, bytes_of_weights(one, half)
    start = weights + pool + 5_000
    found = memory_ledger(
        one, half, prompt_tokens=100, context_tokens=120, concurrency=2, prefilled_rows=2, one_token_bytes=start,
        shorter=((50, start + 350), (75, start + 525)), measured_peak_bytes=start + 700, cache_element_bytes=2, pool=pool,
    )  # fmt: skip
    assert {item.tensor: item.bytes for item in found.items} == {
        "weights": weights, "kv_cache": pool, "activations": 700, "overhead": 5_000,
    }  # fmt: skip
    assert sum(item.bytes for item in found.items) == found.measured_peak_bytes
