"""docs/pytorch.md against the definition of ConvTranspose3d, and against PyTorch if it is there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose

PAGE = Path(__file__).parent.parent / "docs" / "pytorch.md"
KEYS = ("stride", "padding", "output_padding", "dilation")

# kernel, stride, padding, output_padding, dilation; int or one number an axis.
CASES = [
    (2, 2, 0, 0, 1),
    (3, 1, 1, 0, 1),
    (4, 2, 1, 0, 1),
    (3, 2, 1, 1, 1),
    (5, 2, 2, 1, 1),
    (3, 2, 0, 1, 1),
    (1, 3, 0, 2, 1),
    (2, 3, 0, 0, 1),
    (3, 1, 2, 0, 2),
    (3, 1, 2, 1, 2),
    ((3, 4, 5), (2, 1, 3), (1, 0, 2), (1, 0, 0), 1),
    ((1, 3, 2), (1, 2, 2), (0, 1, 0), (0, 1, 1), 1),
]


def blocks(language: str) -> list[str]:
    """The page's code blocks of a language; those marked ``py`` need PyTorch."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def recipe() -> dict[str, Any]:
    """Run the page's python blocks and give what they define."""
    names: dict[str, Any] = {}
    found = blocks("python")
    assert len(found) == 2
    for block in found:
        exec(compile(block, f"{PAGE.name} (python block)", "exec"), names)
    return names


def three(value: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in np.broadcast_to(value, 3))


def torch_definition(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, options: dict[str, Any]
) -> np.ndarray:
    """ConvTranspose3d as PyTorch's documentation defines it, in float64.

    Scatter into a buffer that begins ``padding`` before the output and ends behind it.
    """
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    stride, padding, extra, dilation = (three(options[key]) for key in KEYS)
    sizes, kernel = x.shape[2:], weight.shape[2:]
    out = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(sizes, stride, padding, dilation, kernel, extra, strict=True)
    ]
    room = [p + n + p for p, n in zip(padding, out, strict=True)]
    y = np.zeros((x.shape[0], weight.shape[1], *room))
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for i in itertools.product(*map(range, sizes)):
            for t in itertools.product(*map(range, kernel)):
                at = tuple(a * s + b * d for a, s, b, d in zip(i, stride, t, dilation, strict=True))
                y[n, :, at[0], at[1], at[2]] += (
                    x[n, c, i[0], i[1], i[2]] * weight[c, :, t[0], t[1], t[2]]
                )
    begin = tuple(slice(p, p + n) for p, n in zip(padding, out, strict=True))
    y = y[(slice(None), slice(None), *begin)]
    return y if bias is None else y + bias[:, None, None, None]


def by_reference(layer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The layer's output by definition instead of by compiled code."""
    config = LayerConfig.from_keras(layer.get_config())
    kernel, *bias = layer.get_weights()
    return lambda x: conv3d_transpose(config, x, kernel, bias[0] if bias else None)


def arrays(case: tuple[Any, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((3, 2, *three(case[0]))).astype(np.float32)
    bias = rng.standard_normal(2).astype(np.float32)
    return rng.standard_normal((2, 3, 3, 4, 2)).astype(np.float32), weight, bias


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The page's functions, with layers that run the definition: no case needs a compilation."""
    names = recipe()
    monkeypatch.setattr(
        "tvmconv.runtime.layer.Conv3DTranspose.__call__", lambda self, x: by_reference(self)(x)
    )
    return names


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_slice(case: tuple[Any, ...], with_bias: bool, defined: dict[str, Any]) -> None:
    x, weight, b = arrays(case, 1)
    bias = b if with_bias else None
    options = dict(zip(KEYS, case[1:], strict=True))
    _, run = defined["from_torch"](weight, bias, **options)
    expected = torch_definition(x, weight, bias, options)
    assert run(x).shape == expected.shape
    np.testing.assert_allclose(run(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [(3, 2, 1, 1, 1), (5, 2, 2, 1, 1), (4, 2, 1, 0, 1)], ids=str)
def test_mirror(case: tuple[Any, ...], defined: dict[str, Any]) -> None:
    x, weight, bias = arrays(case, 2)
    options = dict(zip(KEYS, case[1:], strict=True))
    y = defined["from_torch_mirrored"](weight, bias, case[1])(x)
    np.testing.assert_allclose(
        y, torch_definition(x, weight, bias, options), rtol=1e-12, atol=1e-12
    )


def test_same_is_shifted(defined: dict[str, Any]) -> None:
    # What the page warns of: the right size, the wrong values.
    x, weight, bias = arrays((3, 2, 1, 1, 1), 3)
    options = dict(zip(KEYS, (2, 1, 1, 1), strict=True))
    expected = torch_definition(x, weight, bias, options)
    kernel = np.transpose(weight, (2, 3, 4, 1, 0))
    config = LayerConfig(2, 3, strides=2, padding="same", data_format="channels_first")
    y = conv3d_transpose(config, x, kernel, bias)
    assert y.shape == expected.shape
    assert not np.allclose(y, expected)
    np.testing.assert_allclose(y[..., 1:, 1:, 1:], expected[..., :-1, :-1, :-1], rtol=1e-12)


def test_what_does_not_go_over(defined: dict[str, Any]) -> None:
    _, weight, bias = arrays((3,), 4)
    with pytest.raises(ValueError, match="no groups"):
        defined["from_torch"](weight, bias, groups=3)
    with pytest.raises(ValueError, match="dilation_rate > 1"):
        defined["from_torch"](weight, bias, stride=2, dilation=2)
    with pytest.raises(ValueError, match="strictly less than `strides`"):
        defined["from_torch"](weight, bias, output_padding=1, dilation=2)


def test_compiled() -> None:
    case = (3, 2, 1, 1, 1)
    x, weight, bias = arrays(case, 5)
    options = dict(zip(KEYS, case[1:], strict=True))
    _, run = recipe()["from_torch"](weight, bias, **options)
    expected = torch_definition(x, weight, bias, options)
    np.testing.assert_allclose(run(x), expected, rtol=1e-4, atol=2e-5)


def test_pytorch_itself() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
    for case in CASES:
        x, weight, bias = arrays(case, 6)
        options = dict(zip(KEYS, case[1:], strict=True))
        y = torch.nn.functional.conv_transpose3d(
            *(torch.from_numpy(a.astype(np.float64)) for a in (x, weight, bias)),
            **{key: three(value) for key, value in options.items()},
        )
        np.testing.assert_allclose(
            y.numpy(), torch_definition(x, weight, bias, options), rtol=1e-10, atol=1e-10
        )
    (block,) = blocks("py")
    exec(compile(block, str(PAGE), "exec"), recipe())  # ends with a comparison of its own
