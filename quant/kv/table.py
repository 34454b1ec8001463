"""The codec of each KV format."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from quant.kv.codec import KVCodec
from quant.kv.fp8 import Fp8Codec
from quant.kv.int8 import Int8Codec
from quant.kv.model import ModelCodec
from quant.kv_format import FP8, INT8, MODEL

CODECS: Mapping[str, KVCodec] = MappingProxyType(
    {MODEL.name: ModelCodec(), FP8.name: Fp8Codec(), INT8.name: Int8Codec()}
)
