"""Does a device run the model as it should: checksums, recorded outputs, and what a folder is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.diagnostics.check import check_folder
from runtime.diagnostics.info import describe
from runtime.model.integrity import find_damaged, read_checksums
from tests.support.building import FILES
from tests.support.damaging import link

# Of an fp32 build.
LISTED = sorted(FILES - {"SHA256SUMS", "model_int8_cache.onnx"})
Golden = dict[str, Any]


@pytest.fixture(scope="module")
def whole(demo_fp32_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built folder to damage and to mend."""
    return Path(shutil.copytree(demo_fp32_folder, tmp_path_factory.mktemp("check") / "model"))


@pytest.fixture
def rewrite(whole: Path) -> Any:
    """Change golden.json, and its checksum with it; put back afterwards."""
    paths = [whole / "golden.json", whole / "SHA256SUMS"]
    before = [path.read_bytes() for path in paths]

    def change(edit: Callable[[Golden], None]) -> Path:
        golden = json.loads(before[0])
        edit(golden)
        paths[0].write_text(json.dumps(golden), encoding="utf-8")
        digests = [hashlib.sha256(data).hexdigest() for data in (before[0], paths[0].read_bytes())]
        sums = before[1].decode()
        assert digests[0] in sums
        paths[1].write_text(sums.replace(digests[0], digests[1]), encoding="utf-8")
        return whole

    yield change
    for path, data in zip(paths, before, strict=True):
        path.write_bytes(data)


def second_place(golden: Golden, *, sure: bool) -> None:
    """Record another id than the likeliest at the last place, where no later token depends on it."""
    record = golden["records"][0]
    record["ids"][-1] = 7 if record["ids"][-1] != 7 else 8
    record["margins"][-1] = 100.0 if sure else 0.0


# checksums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo_fp32_folder", "demo_int8_folder"])
def test_a_built_folder_passes_exactly(name: str, request: pytest.FixtureRequest) -> None:
    found = check_folder(request.getfixturevalue(name))
    assert found.passed
    assert found.n_tokens == found.n_exact > 50
    assert str(found).startswith("ok: ")


def test_every_file_is_listed(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {*LISTED, "SHA256SUMS"}
    checksums = read_checksums(whole)
    assert checksums is not None
    assert find_damaged(whole) == []


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", LISTED)
def test_a_flipped_byte_is_found_in_every_file(whole: Path, name: str, place: float) -> None:
    path = whole / name
    at = round(place * (path.stat().st_size - 1))

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    flip()
    try:
        found = check_folder(whole)
    finally:
        flip()
    assert (found.damaged, found.passed) == ([name], False)
    assert str(found).startswith(f"NOT OK: {name}")


def test_a_missing_file_is_damage(whole: Path, tmp_path: Path) -> None:
    moved = (whole / "config.json").rename(tmp_path / "config.json")
    try:
        assert check_folder(whole).damaged == ["config.json"]
    finally:
        shutil.move(moved, whole / "config.json")


def test_a_folder_without_checksums_was_not_built(demo_reference_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"SHA256SUMS is missing.*export/build\.py"):
        check_folder(demo_reference_folder)


def test_a_folder_without_a_record_says_so(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    (folder / "golden.json").unlink()
    sums = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(s for s in sums if "golden" not in s), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"golden\.json is missing"):
        check_folder(folder)


# recorded outputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("difference", "passed"), [(0.0009, True), (0.0011, False), (-0.5, False)])
def test_a_log_probability_may_differ_by_the_tolerance(rewrite: Any, difference: float, passed: bool) -> None:
    def edit(golden: Golden) -> None:
        golden["tolerance"] = 0.001
        golden["records"][1]["logprobs"][3] += difference

    found = check_folder(rewrite(edit))
    assert found.passed == passed
    assert found.largest_difference == pytest.approx(abs(difference), abs=1e-5)
    assert found.n_exact == found.n_tokens - 1
    assert str(found).startswith("ok" if passed else "NOT OK: this device computes something else")


def test_an_id_that_is_not_the_likeliest_fails(rewrite: Any) -> None:
    def edit(golden: Golden) -> None:
        golden["tolerance"] = 50.0  # of the log-probability: only the place counts
        second_place(golden, sure=True)

    found = check_folder(rewrite(edit))
    assert (found.n_unlikely, found.passed) == (1, False)


def test_an_id_whose_margin_was_small_may_be_another(rewrite: Any) -> None:
    def edit(golden: Golden) -> None:
        golden["tolerance"] = 50.0
        second_place(golden, sure=False)

    found = check_folder(rewrite(edit))
    assert (found.n_unlikely, found.passed) == (0, True)


def record_of(**changes: Any) -> Callable[[Golden], object]:
    return lambda golden: golden["records"][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda golden: golden.update(tolerance=None), "tolerance is None; a finite number"),
        (lambda golden: golden.update(tolerance=float("inf")), "tolerance is inf"),
        (lambda golden: golden.update(tolerance=float("nan")), "tolerance is nan"),
        (lambda golden: golden.update(tolerance=-1), "tolerance is -1"),
        (lambda golden: golden.update(tolerance=10**400), "tolerance is 1000.*a finite number"),
        (lambda golden: golden.update(tolerance=True), "tolerance is True"),
        (lambda golden: golden.pop("records"), "records is None; a list"),
        (lambda golden: golden.update(records=[]), r"records is \[\]; a list"),
        (lambda golden: golden.update(records=[3]), r"records\[0\] is 3; an object"),
        (lambda golden: golden.update(openai=3), "openai is 3; a list"),
        (lambda golden: golden.update(openai_scored=[{"prompt_ids": [1], "ids": [1]}]), "logprob is None"),
        (record_of(ids=[10**9]), "ids has 1000000000; token ids from 0 to"),
        (record_of(ids=[-1]), "ids has -1"),
        (record_of(ids=["x"]), "ids has 'x'"),
        (record_of(ids=[True]), "ids has True"),
        (record_of(ids=[], logprobs=[], margins=[]), r"ids is \[\]"),
        (record_of(prompt_ids=[]), r"prompt_ids is \[\]"),
        (record_of(prompt_ids=[1] * 5000), r"prompt_ids is \[1, 1.*a list of 1 to 512"),
        (record_of(prompt_ids=[1] * 500), "has 500 and 24 ids; the model has 512 positions"),
        (record_of(margins=[1.0]), "margins has 1 numbers; 24 are expected"),
        (record_of(logprobs=[float("nan")] * 24), "logprobs is nan"),
    ],
)
def test_a_record_that_is_none_is_refused(rewrite: Any, edit: Callable[[Golden], object], told: str) -> None:
    with pytest.raises(ValueError, match=rf"golden\.json: .*{told}"):
        check_folder(rewrite(edit))


def test_a_check_refuses_what_a_load_refuses(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    outside = (folder / "tokenizer.json").rename(tmp_path / "outside")
    link(folder / "tokenizer.json", outside)
    with pytest.raises(ValueError, match="outside the model folder"):
        check_folder(folder)


# what a folder holds -----------------------------------------------------------------------------------------------


def test_info_of_a_built_folder(demo_int8_folder: Path) -> None:
    facts = describe(demo_int8_folder)
    config = json.loads((demo_int8_folder / "config.json").read_text(encoding="utf-8"))
    expected = {"layers": "n_layer", "heads": "n_head", "width": "n_embd", "context": "n_positions"}
    assert {name: facts[name] for name in expected} == {name: config[key] for name, key in expected.items()}
    assert (facts["precision"], facts["kernel"], facts["vocabulary"]) == ("int8", "dense", config["vocab_size"])
    size = sum((demo_int8_folder / name).stat().st_size for name in ("model.onnx", "model.onnx_data"))
    size += (demo_int8_folder / "model_int8_cache.onnx").stat().st_size
    assert facts["megabytes"] == pytest.approx(size / 1e6, abs=0.06)
    json.dumps(facts)


def test_info_of_a_plain_export(demo_reference_folder: Path) -> None:
    facts = describe(demo_reference_folder)
    assert "not built" in facts["precision"]
    assert "plain ONNX export" in facts["kernel"]


def test_info_gives_the_advice(demo_block_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.diagnostics.info.suitable_kernel", lambda: "dense")
    monkeypatch.setattr("runtime.model.model.suitable_kernel", lambda: None)
    facts = describe(demo_block_folder)
    assert facts["suited_to"] == "dense"
    assert "--kernel dense" in facts["advice"]
