import pytest

from quantadvisor.methods.registry import METHODS, method
from quantadvisor.methods.schemes import scheme


@pytest.mark.parametrize(
    ("name", "bits", "granularity", "group", "symmetric"),
    [
        ("w4-g32", 4, "group", 32, False),
        ("w8-g64", 8, "group", 64, True),
        ("w4-g128-sym", 4, "group", 128, True),
        ("w4-g64-sym-kv8", 4, "group", 64, True),
        ("w4w8-g64-kv8", 7, "group", 64, False),
        ("w8a8", 8, "channel", None, True),
        ("w7a8-kv8", 7, "channel", None, True),
    ],
)
def test_weights(name: str, bits: float, granularity: str, group: int | None, symmetric: bool) -> None:
    made = scheme(name)
    assert made.name == name
    assert made.weights is not None
    assert (made.weights.bits, made.weights.granularity, made.weights.group_size) == (bits, granularity, group)
    assert made.weights.symmetric is symmetric
    assert made.lm_head is not None
    assert made.lm_head == made.embeddings
    assert made.lm_head.bits == 8
    assert made.quantizes_cache is name.endswith("-kv8")


def test_symmetric_groups_in_16_bit() -> None:
    even, plain = scheme("w4-g128-sym-bf16"), scheme("w4-g128-bf16")
    assert even.weights is not None and plain.weights is not None
    assert even.weights == plain.weights.model_copy(update={"symmetric": True})
    assert (even.compute, even.lm_head) == ("bf16", None)
    for name in ("w8-g64-sym", "w4w8-g64-sym", "w4-sym", "w8a8-sym", "w4-g64-bf16-sym"):
        with pytest.raises(ValueError, match="is unknown"):
            scheme(name)


def test_floats() -> None:
    assert scheme("fp32").weights is None
    assert scheme("bf16").compute == "bf16"
    cache = scheme("fp32-kv8").keys
    assert cache is not None
    assert (cache.bits, cache.granularity, cache.dynamic) == (8, "channel", False)


@pytest.mark.parametrize(
    ("name", "granularity", "dynamic"),
    [
        ("w8a8", "token", True),
        ("w7a8", "token", True),
        ("w8a8-tensor", "tensor", True),
        ("w8a8-static", "tensor", False),
        ("w8a8-static-npu", "tensor", False),
    ],
)
def test_activations_say_what_they_are(name: str, granularity: str, dynamic: bool) -> None:
    activations = scheme(name).activations
    assert activations is not None
    assert (activations.granularity, activations.dynamic) == (granularity, dynamic)


@pytest.mark.parametrize(
    ("name", "number", "bits", "granularity", "group"),
    [
        ("nf4-b64", "codebook", 4, "block", 64),
        ("e2m1-b128-c", "codebook", 4, "block", 128),
        ("int3-b32-p2", "codebook", 3, "block", 32),
        ("wfp6", "float", 6, "channel", None),
        ("q4_k", "int", 4.5, "block", 256),
        ("q5_1", "int", 5, "group", 32),
    ],
)
def test_other_number_types(name: str, number: str, bits: float, granularity: str, group: int | None) -> None:
    made = scheme(name).weights
    assert made is not None
    assert (made.number, made.bits, made.granularity, made.group_size) == (number, bits, granularity, group)
    assert scheme(f"{name}-kv8").quantizes_cache


def test_a_head_of_a_token_has_a_zero_point_at_4_bits() -> None:
    eight, four = scheme("bf16-kv8-head").keys, scheme("bf16-kv4-head").keys
    assert eight and four
    assert (eight.symmetric, four.symmetric) == (True, False)
    assert eight.dynamic and four.dynamic
    assert (scheme("fp8-bf16").compute, scheme("fp8").compute) == ("bf16", "fp32")


@pytest.mark.parametrize(
    ("name", "number", "w_bits", "granularity", "a_bits"),
    [
        ("fp8", "float", 8, "token", 8),
        ("fp8-bf16", "float", 8, "token", 8),
        ("fp8-tensor", "float", 8, "tensor", 8),
        ("fp8-block", "float", 8, "group", 8),
        ("w8a8-outlier", "int", 8, "token", 8),
        ("w4a8-g64", "int", 4, "token", 8),
        ("w4a4", "int", 4, "token", 4),
        ("w4a4-fp", "float", 4, "channel", 4),
        ("w8a8-static-entropy", "int", 8, "tensor", 8),
    ],
)
def test_rarer_activations(name: str, number: str, w_bits: float, granularity: str, a_bits: float) -> None:
    made = scheme(name)
    assert made.weights is not None
    assert made.activations is not None
    assert (made.name, made.weights.number, made.weights.bits) == (name, number, w_bits)
    assert (made.activations.granularity, made.activations.bits) == (granularity, a_bits)


@pytest.mark.parametrize(
    ("name", "number", "bits", "granularities"),
    [
        ("fp32-kv4", "int", 4, ("channel", "channel")),
        ("fp32-kv4-kivi", "int", 4, ("channel", "token")),
        ("w4-g64-kv2-kivi", "int", 2, ("channel", "token")),
        ("fp32-kvf8-unit", "float", 8, ("tensor", "tensor")),
        ("w4-g64-bf16-kv4-head", "int", 4, ("token", "token")),
        ("fp8-bf16-kv8-head", "int", 8, ("token", "token")),
        ("fp32-kv2.5-turbo", "codebook", 2.5, ("token", "token")),
        ("w8-g64-kv3-turbo-prod", "codebook", 3, ("token", "token")),
    ],
)
def test_rarer_caches(name: str, number: str, bits: float, granularities: tuple[str, str]) -> None:
    made = scheme(name)
    assert made.name == name
    assert made.quantizes_cache
    assert made.keys is not None
    assert made.values is not None
    assert (made.keys.number, made.keys.bits) == (number, bits)
    assert (made.keys.granularity, made.values.granularity) == granularities
    assert made.weights == scheme(name.split("-kv")[0]).weights


@pytest.mark.parametrize(
    "name",
    [
        "nf4",
        "q8_1",
        "q7_k",
        "wfp5",
        "nf9-b64",
        "w9-g32",
        "fp8-row",
        "w4a4-static-entropy",
        "fp32-kv8-turbo",
        "fp32-kv5-kivi",
        "w4",
        "int4",
        "w8a8-row",
        "w7a8-tensor",
        "w4-g32-kv3",
        "",
    ],
)
def test_what_is_no_scheme(name: str) -> None:
    with pytest.raises(ValueError, match="is unknown"):
        scheme(name)


@pytest.mark.parametrize("name", METHODS)
def test_methods_speak_these_names(name: str) -> None:
    module = method(name)
    assert name == module.NAME
    assert module.schemes()
    for offered in module.schemes():
        assert scheme(offered.name) == offered
