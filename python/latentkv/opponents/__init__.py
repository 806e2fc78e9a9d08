"""Published methods of KV cache compression, built from their descriptions to be compared with."""

from __future__ import annotations

from collections.abc import Callable

from ..cache import LoadedModel
from .base import Opponent
from .cachegen import CacheGen
from .commonkv import CommonKv
from .kivi import Kivi
from .kvcomp import KvComp
from .kvtc import Kvtc
from .lorc import Lorc
from .recalkv import ReCalKv

OPPONENTS: dict[str, Callable[[LoadedModel], Opponent]] = {
    one.name: one for one in (Kvtc, CommonKv, Lorc, ReCalKv, KvComp, Kivi, CacheGen)
}
