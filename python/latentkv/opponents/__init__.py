"""Published methods of KV cache compression, built from their descriptions to be compared with."""

from __future__ import annotations

from collections.abc import Callable

from ..cache import LoadedModel
from .base import Opponent
from .kvtc import Kvtc

OPPONENTS: dict[str, Callable[[LoadedModel], Opponent]] = {"KVTC": Kvtc}
