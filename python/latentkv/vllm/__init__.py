"""The KV connector for vLLM: `kv_connector` LatentkvConnector, `kv_connector_module_path` latentkv.vllm."""

from __future__ import annotations

from typing import Any

__all__ = ["LatentkvConnector"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the parts that need no engine import without one.
    if name == "LatentkvConnector":
        from latentkv.vllm.connector import LatentkvConnector

        return LatentkvConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
