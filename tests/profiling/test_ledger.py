import pytest

from quantadvisor.documents import Format, Inventory, LinearShape, Scheme
from quantadvisor.kernels.problem import matrix_bytes
from quantadvisor.profiling.ledger import (
    bytes_of_cache,
    bytes_of_weights,
    max_concurrency,
    memory_ledger,
    peak_activation_bytes,
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


def test_a_window_counts_only_where_the_runtime_drops() -> None:
    one = Inventory(**{**dict(inventory()), "sliding_window": 10}, sliding_layers=2)
    assert bytes_of_cache(one, FP32, 100, 1) == 192 * 100 * 4
    assert bytes_of_cache(one, FP32, 100, 1, windowed=True) == 64 * 4 * (2 * 10 + 100)


def test_activations_follow_the_formula() -> None:
    # widest: 3 * 200 (gate, up, product) against 2 * (6 + 2) * 16
    assert peak_activation_bytes(inventory(), 50, logits_rows=2) == 50 * (2 * 96 + 600) * 4 + 2 * 331 * 4


def test_measured_parts_override() -> None:
    made = memory_ledger(
        inventory(), FP32, context_tokens=100, concurrency=2, tokens_in_pass=50, measured={"activations": 5},
        measured_peak_bytes=99,
    )  # fmt: skip
    parts = {item.tensor: (item.bytes, item.kind) for item in made.items}
    assert parts["activations"] == (5, "measured")
    assert parts["weights"] == (4 * inventory().parameters, "modelled")
    assert made.total_bytes == 4 * inventory().parameters + 192 * 200 * 4 + 5
    with pytest.raises(ValueError, match="wieghts"):
        memory_ledger(
            inventory(), FP32, context_tokens=1, concurrency=1, tokens_in_pass=1, measured={"wieghts": 1}
        )  # fmt: skip


def test_floor_and_capacity() -> None:
    one = inventory()
    assert smallest_weights_bytes(one) == (one.parameters - 700) // 4 + 1400
    assert max_concurrency(1000, 100, 300) == 3
    assert max_concurrency(1000, 1001, 300) == 0
    with pytest.raises(ValueError, match="positive"):
        max_concurrency(1, 1, 0)
