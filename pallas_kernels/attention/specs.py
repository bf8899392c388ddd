# SPDX-License-Identifier: Apache-2.0
"""Named cases of attention, shared by tests and bench: every feature, at sizes chosen to hurt.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H width of q and k
        V width of v
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Shapes and options of one call; has_ids: packed documents."""

    B: int = 1
    T: int = 1000
    S: int | None = None  # None: as T
    N: int = 2
    K: int = 1
    H: int = 128
    V: int | None = None  # None: as H
    dtype: str = "bfloat16"
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    has_ids: bool = False
    has_sinks: bool = False
    has_offsets: bool = False  # known at run time only

    @property
    def num_keys(self) -> int:
        return self.T if self.S is None else self.S

    @property
    def value_width(self) -> int:
        return self.H if self.V is None else self.V


FEATURES = {  # each must compile for every chip
    "plain": Spec(T=4096),
    "float32": Spec(T=2048, dtype="float32"),
    "ragged": Spec(T=1000),
    "one_position": Spec(T=1),
    "one_less": Spec(T=127),
    "one_more": Spec(T=129, N=8, K=8),
    "more_keys": Spec(T=300, S=1000, has_offsets=True),
    "full": Spec(T=1024, S=640, causal=False),
    "full_window": Spec(T=1024, causal=False, window=100),
    "window": Spec(T=4096, window=1024),
    "window_ragged": Spec(T=1000, window=129),
    "wide_window": Spec(T=8192, window=4096),
    "documents": Spec(T=2048, B=2, has_ids=True),
    "documents_ragged": Spec(T=1000, B=2, has_ids=True, window=300, softcap=30.0, has_sinks=True),
    "softcap": Spec(T=2048, softcap=50.0),
    "sinks": Spec(T=2048, window=128, has_sinks=True, N=8, K=1),
    "narrow_heads": Spec(T=2048, H=64, N=4, K=2),
    "unequal_heads": Spec(T=2048, H=192, V=128),
    "wide_heads": Spec(T=2048, H=256),
    "long": Spec(T=32768),
    "long_window": Spec(T=32768, window=1024),
    "long_documents": Spec(T=32768, has_ids=True, has_offsets=True),
}

MODELS = {  # of the bench
    "causal_4k": Spec(B=4, T=4096, N=16, K=16),
    "grouped_8k": Spec(T=8192, N=32, K=8),
    "window_8k": Spec(T=8192, N=16, K=16, window=1024),
    "documents_8k": Spec(T=8192, N=16, K=16, has_ids=True),
    "causal_32k": Spec(T=32768, N=16, K=16),
}
