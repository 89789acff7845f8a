"""Manifests: text and back, and what a stranger may put into one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sample_library as sample

from tvmconv import artifact
from tvmconv.artifact import Manifest
from tvmconv.errors import ArtifactError


def test_a_manifest_survives_json() -> None:
    made = sample.manifest("up1", [(2, 3, 4, 5, 6), (-1, 3, 4, 5, 6)], baked=True)
    again = Manifest.from_json(made.to_json())
    assert again == made
    assert again.to_json() == made.to_json()
    assert again.input_shapes[1] == (None, 3, 4, 5, 6)


def changed(**values: Any) -> str:
    made = json.loads(sample.manifest("up1", [(2, 3, 4, 5, 6)], baked=True).to_json())
    for key, value in values.items():
        if value is ...:
            del made[key]
        else:
            made[key] = value
    return json.dumps(made)


DAMAGED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not JSON"),
    "truncated": (changed()[:-20], "not JSON"),
    "not-utf8": (b"\xff\xfe{}", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "huge-number": (changed().replace('"threads": 0', '"threads": ' + "9" * 10_000), "not JSON"),
    "nan": (changed(threads=float("nan")), "not JSON"),
    "too-large": (" " * (5 << 20), "bytes large"),
    "a-list": ("[]", "not the manifest"),
    "foreign": ('{"name": "x"}', "not the manifest"),
    "other-version": (changed(abi_version=2), "interface version 2, this is version 1"),
    "version-true": (changed(abi_version=True), "interface version True"),
    "lacks": (changed(flops=...), "lacks 'flops'"),
    "unknown": (changed(surprise=1), "unknown entry 'surprise'"),
    "name-path": (changed(name="../../etc/x"), "'name' has an impossible value"),
    "name-empty": (changed(name=""), "'name' has an impossible value"),
    "name-newline": (changed(name="up1\n"), "'name' has an impossible value"),
    "shape-text": (changed(input_shapes=[["a", 1, 1, 1, 1]]), "'input_shapes'"),
    "shape-negative": (changed(input_shapes=[[1, -1, 1, 1, 1]]), "'input_shapes'"),
    "shape-four": (changed(input_shapes=[[1, 1, 1, 1]]), "'input_shapes'"),
    "no-shapes": (changed(input_shapes=[]), "'input_shapes'"),
    "counts-differ": (changed(flops=[1, 2]), "numbers of shapes differ"),
    "dtype": (changed(input_dtype="int8"), "'input_dtype'"),
    "dtype-list": (changed(input_dtype=[]), "'input_dtype'"),
    "spread": (
        changed(weights={"mode": "external", "packed_bytes": 1, "nonfinite": "far"}),
        "'weights'",
    ),
    "mode": (changed(weights={"mode": "none", "packed_bytes": 1, "sha256": None}), "'weights'"),
    "file-path": (changed(files={"../x": "0" * 64}), "'files'"),
    "digest": (changed(code_sha256="zz"), "'code_sha256'"),
    "threads": (changed(threads=-1), "'threads'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_manifests_are_refused_in_one_line(case: str) -> None:
    text, message = DAMAGED[case]
    with pytest.raises(ArtifactError) as error:
        Manifest.from_json(text, "up1.json")
    line = str(error.value)
    assert "\n" not in line
    assert message in line
    assert "up1.json" in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("path", "name"),
    [("up1", "up1"), ("inner/up1", "inner_up1"), ("3d-conv", "layer_3d_conv"), ("", "layer_"),
     ("ünï", "_n_"), ("a.b c", "a_b_c")],
)  # fmt: skip
def test_names_are_c_identifiers(path: str, name: str) -> None:
    assert artifact.symbol_name(path) == name


def test_names_in_one_folder_differ() -> None:
    assert artifact.symbol_name("a/b", {"a_b"}) == "a_b_2"
    assert artifact.symbol_name("a/b", {"a_b", "a_b_2"}) == "a_b_3"
