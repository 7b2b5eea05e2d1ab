"""The schemes of the probes, named as the methods name them: what a kernel computes with is said by its probe."""

from __future__ import annotations

from quantadvisor.documents import Format, Scheme

W4 = Format(number="int", bits=4, granularity="group", group_size=64, symmetric=False)
W8 = Format(number="int", bits=8, granularity="group", group_size=64)
W8_CHANNEL = Format(number="int", bits=8, granularity="channel")
W7_CHANNEL = Format(number="int", bits=7, granularity="channel")
A8_TOKEN = Format(number="int", bits=8, granularity="token", dynamic=True)
A8_TENSOR_DYNAMIC = Format(number="int", bits=8, granularity="tensor", symmetric=False, dynamic=True)
A8_TENSOR_STATIC = Format(number="int", bits=8, granularity="tensor")

FP32 = Scheme(name="fp32")
BF16 = Scheme(name="bf16", compute="bf16")
W4_G64 = Scheme(name="w4-g64", weights=W4)
W8_G64 = Scheme(name="w8-g64", weights=W8)
W8A8_TENSOR = Scheme(name="w8a8-tensor", weights=W8_CHANNEL, activations=A8_TENSOR_DYNAMIC)
W7A8_TENSOR = Scheme(name="w7a8-tensor", weights=W7_CHANNEL, activations=A8_TENSOR_DYNAMIC)
W8A8_STATIC = Scheme(name="w8a8-static", weights=W8_CHANNEL, activations=A8_TENSOR_STATIC)
W8_CHANNEL_BF16 = Scheme(name="w8-channel-bf16", compute="bf16", weights=W8_CHANNEL)
W4_G64_BF16 = Scheme(name="w4-g64-bf16", compute="bf16", weights=W4)
W8A8_BF16 = Scheme(
    name="w8a8-bf16",
    compute="bf16",
    weights=W8_CHANNEL,
    activations=A8_TOKEN,
)
W4_BLOCKS = Scheme(name="q4_0", weights=Format(number="int", bits=4, granularity="group", group_size=32))
W8_BLOCKS = Scheme(name="q8_0", weights=Format(number="int", bits=8, granularity="group", group_size=32))
