"""Reading of the golden data: cases, lists of configs and errors, and the tolerance they share.

The format is described in ``tests/golden/README.md``.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tvmconv.config import LayerConfig

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One golden case: a layer, an input, its weights and what must come out."""

    id: str
    entry: dict[str, Any]

    @functools.cached_property
    def config(self) -> LayerConfig:
        """The layer."""
        return LayerConfig.from_keras(self.entry["config"])

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays ``x``, ``kernel``, ``y``, ``y_ref`` and, with a bias, ``bias``."""
        return unpack(GOLDEN / "cases" / f"{self.id}.npz", self.entry["arrays"])

    @property
    def weights(self) -> list[np.ndarray]:
        """``[kernel, bias]`` or ``[kernel]``."""
        return [self.arrays[name] for name in ("kernel", "bias") if name in self.arrays]

    @property
    def x(self) -> np.ndarray:
        """The input."""
        return self.arrays["x"]

    @property
    def bias(self) -> np.ndarray | None:
        """The bias, or None."""
        return self.arrays.get("bias")

    @property
    def stratum(self) -> str:
        """The kind of the case: geometry, dilation, activation, special, ..."""
        return str(self.entry["stratum"])

    def __str__(self) -> str:
        return self.id


def entries(name: str) -> list[dict[str, Any]]:
    """The entries of one JSON list, for example ``errors.json``."""
    loaded = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    assert isinstance(loaded, list) and loaded
    return loaded


def ids(items: list[dict[str, Any]]) -> list[str]:
    """Test ids of such entries."""
    return [str(item["id"]) for item in items]


@functools.cache
def cases() -> tuple[Case, ...]:
    """All golden cases; for ``pytest.mark.parametrize("case", cases(), ids=str)``."""
    paths = sorted((GOLDEN / "cases").glob("*.json"))
    assert paths, "the golden cases are missing"
    loaded = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    return tuple(Case(entry["id"], entry) for entry in loaded)


def unpack(path: Path, arrays: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """The members of an npz, each in the dtype that its entry in ``arrays`` names."""
    unpacked = {}
    with np.load(path, allow_pickle=False) as members:
        for name, about in arrays.items():
            values = members[prefix + name]
            if about["dtype"] == "bfloat16":
                values = values.view(ml_dtypes.bfloat16)
            assert list(values.shape) == about["shape"]
            assert values.dtype.name == about["dtype"]
            unpacked[name] = values
    return unpacked


def mismatch(
    out: np.ndarray, expected: np.ndarray, atol: float, rtol: float, *, extra_nan: bool = False
) -> np.ndarray:
    """Where ``out`` is outside ``atol + rtol * abs(expected)``; as an array of booleans.

    Equal infinities and two NaN are equal, and an infinity equals a number that is too large for
    the narrower of the two dtypes. With ``extra_nan`` a NaN of ``out`` passes anywhere.
    """
    narrow = min(out.dtype, expected.dtype, key=lambda dtype: dtype.itemsize)
    with np.errstate(all="ignore"):
        a, b = (_overflow(values, narrow) for values in (out, expected))
        passes = (a == b) | (np.abs(a - b) <= atol + rtol * np.abs(b)) | (np.isnan(a) & np.isnan(b))
        passes &= ~np.isinf(b) | (a == b)
    if extra_nan:
        passes |= np.isnan(a)
    return ~passes


def _overflow(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Widen to float64, but what overflows in ``dtype`` becomes infinite."""
    wide, rounded = values.astype(np.float64), values.astype(dtype).astype(np.float64)
    return np.where(np.isinf(rounded), rounded, wide)


def assert_close(out: np.ndarray, case: Case, *, dtype: bool = True) -> None:
    """Shape, dtype (unless ``dtype`` is False) and every value of ``out`` are those of the case."""
    entry = case.entry
    assert list(out.shape) == entry["output_shape"]
    if dtype:
        assert out.dtype.name == entry["output_dtype"]
    extra_nan = entry["compare"] == "nan_superset"
    expected = case.arrays["y_ref"]
    wrong = mismatch(out, expected, entry["atol"], entry["rtol"], extra_nan=extra_nan)
    if wrong.any():
        at = tuple(int(i[0]) for i in np.nonzero(wrong))
        raise AssertionError(
            f"{case.id} ({entry['note']}): {wrong.sum()} of {wrong.size} values differ, first at "
            f"{at}: {out[at]!r} instead of {expected[at]!r}"
        )
