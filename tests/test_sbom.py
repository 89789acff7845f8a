"""The bill of materials: every file with its hash, every part with its licence."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_library as sample

from tvmconv.artifact import Artifact
from tvmconv.codegen import link, sbom, toolchain
from tvmconv.codegen.toolchain import Toolchain

IDENTIFIER = re.compile(r"SPDXRef-[A-Za-z0-9.-]+\Z")


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("baked")
    return link(sample.parts(folder), folder / "out", with_runner=True)


def read(found: Artifact) -> dict[str, Any]:
    return json.loads((found.path / "up1.spdx.json").read_text())


def test_every_file_is_listed_with_its_hash(baked: Artifact) -> None:
    found = read(baked)
    present = {path.name for path in baked.path.iterdir()} - {"up1.json", "up1.spdx.json"}
    assert {one["fileName"] for one in found["files"]} == {f"./{name}" for name in present}
    for one in found["files"]:
        content = (baked.path / one["fileName"]).read_bytes()
        digests = {c["algorithm"]: c["checksumValue"] for c in one["checksums"]}
        assert digests["SHA1"] == hashlib.sha1(content).hexdigest()
        assert digests["SHA256"] == hashlib.sha256(content).hexdigest()
        assert digests["SHA256"] == (baked.manifest.files or {})[one["fileName"][2:]]
    assert "up1.spdx.json" in (baked.manifest.files or {})
    code = found["packages"][0]["packageVerificationCode"]
    ones = sorted(one["checksums"][0]["checksumValue"] for one in found["files"])
    expected = hashlib.sha1("".join(ones).encode()).hexdigest()
    assert code["packageVerificationCodeValue"] == expected


def test_identifiers_and_relationships(baked: Artifact) -> None:
    found = read(baked)
    identifiers = [one["SPDXID"] for one in found["packages"] + found["files"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(map(IDENTIFIER.match, identifiers))
    for one in found["relationships"]:
        assert {one["spdxElementId"], one["relatedSpdxElement"]} <= {
            *identifiers, "SPDXRef-DOCUMENT",
        }  # fmt: skip
    # Nothing without a file that it is in, and no file without a part.
    contained = {
        (one["spdxElementId"], one["relatedSpdxElement"]) for one in found["relationships"]
    }
    for package in found["packages"][1:]:
        assert any(part == package["SPDXID"] for _, part in contained), package["name"]
    for file in found["files"]:
        assert any(whole == file["SPDXID"] for whole, _ in contained), file["fileName"]


def test_the_weights_are_named_by_their_hash(baked: Artifact) -> None:
    packages = {one["SPDXID"]: one for one in read(baked)["packages"]}
    assert packages["SPDXRef-weights"]["checksums"] == [
        {"algorithm": "SHA256", "checksumValue": baked.manifest.weights["sha256"]}
    ]


def test_the_c_library_of_the_runner_is_named(baked: Artifact) -> None:
    packages = {one["SPDXID"]: one for one in read(baked)["packages"]}
    if platform.libc_ver()[0] == "glibc" and not toolchain.find().is_zig:
        assert packages["SPDXRef-libc"]["licenseConcluded"] == "LGPL-2.1-or-later"


def test_a_library_without_weights_has_a_licence(tmp_path: Path) -> None:
    found = link(sample.parts(tmp_path, baked=False), tmp_path / "out")
    text = read(found)
    assert "SPDXRef-weights" not in {one["SPDXID"] for one in text["packages"]}
    assert "SPDXRef-libc" not in {one["SPDXID"] for one in text["packages"]}
    licences = {one["fileName"]: one["licenseConcluded"] for one in text["files"]}
    ours = "Apache-2.0 OR LicenseRef-tvmconv-compiled-layers"
    assert licences["./up1.h"] == licences["./up1.hpp"] == ours
    # The sample has a section by the name of TVM's conversions.
    assert licences["./libup1.a"] == f"({ours}) AND MIT"
    if not toolchain.find().is_zig:
        gcc = "GPL-3.0-or-later WITH GCC-exception-3.1"
        assert licences["./libup1.so"] == f"({ours}) AND MIT AND {gcc}"


def test_functions_from_llvm_are_listed_where_they_are() -> None:
    cc = Toolchain(("cc",), "cc 1")
    manifest = sample.manifest("up1", [(1, 2, 3, 4, 5)], baked=False)
    names = []
    for content in (b"", b"..cpu.fp16.conv.."):
        text = json.loads(sbom.document(manifest, {"libup1.a": content}, cc))
        names.append([one["name"] for one in text["packages"]])
    assert "compiler-rt: builtin_fp16" not in names[0]
    assert "compiler-rt: builtin_fp16" in names[1]


def test_the_same_files_give_the_same_text_and_others_another(baked: Artifact) -> None:
    names = set(baked.manifest.files or {}) - {"up1.spdx.json"}
    files = {name: (baked.path / name).read_bytes() for name in names}
    manifest = replace(baked.manifest, files=None)
    text = sbom.document(manifest, files, toolchain.find())
    assert text == (baked.path / "up1.spdx.json").read_bytes()
    other = sbom.document(manifest, {**files, "up1.h": b""}, toolchain.find())
    assert json.loads(other)["documentNamespace"] != json.loads(text)["documentNamespace"]


def test_the_permission_is_the_one_of_the_licence(checkout: Path) -> None:
    words = " ".join((checkout / "LICENSE").read_text(encoding="utf-8").split())
    assert " ".join(sbom.PERMISSION.split()) in words


@pytest.mark.skipif(
    importlib.util.find_spec("spdx_tools") is None, reason="spdx-tools is not installed"
)
def test_the_validator_of_spdx_agrees(baked: Artifact) -> None:
    from spdx_tools.spdx.parser.parse_anything import parse_file  # type: ignore[import-not-found]
    from spdx_tools.spdx.validation.document_validator import (  # type: ignore[import-not-found]
        validate_full_spdx_document,
    )

    document = parse_file(str(baked.path / "up1.spdx.json"))
    assert validate_full_spdx_document(document) == []
