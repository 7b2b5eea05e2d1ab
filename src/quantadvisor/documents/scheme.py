"""Formats and schemes: how each tensor class is stored, in the vocabulary of compressed-tensors."""

from __future__ import annotations

from typing import Literal

from .base import Document


class Format(Document):
    """The number format of one tensor class."""

    number: Literal["int", "float", "codebook"]
    bits: float
    granularity: Literal["tensor", "channel", "group", "token", "block"]
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False
    centred: bool = False
    """Of weights: a block's mean is taken off first, and stored in 16 bits."""
    kept_percent: float = 0.0
    """Of a weight's inputs: those that stay in 16 bits."""


class Scheme(Document):
    """W4A16 g128, W8A8, W8 with an INT8 cache, as data. None: left in 16 or 32 bit (`compute` says which)."""

    name: str
    compute: Literal["fp32", "bf16", "fp16"] = "fp32"
    weights: Format | None = None
    activations: Format | None = None
    keys: Format | None = None
    values: Format | None = None
    embeddings: Format | None = None
    lm_head: Format | None = None

    @property
    def unbiased_keys(self) -> bool:
        """TurboQuant's prod form: products with queries are right on average."""
        return self.name.endswith("-prod")

    @property
    def quantizes_cache(self) -> bool:
        return self.keys is not None or self.values is not None
