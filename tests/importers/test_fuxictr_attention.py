"""Histories that FuxiCTR's models attend to, compare and pool."""

from pathlib import Path

import pytest

from tamis.importers import fuxictr

_DIN = "    din_target_field: [!!python/tuple [adgroup_id, cate_id]]\n"
_HISTORIES = "    din_sequence_field: [!!python/tuple [click_sequence, cate_sequence]]\n"


def _notes_with(folder: Path, targets: str, histories: str) -> list[str]:
    path = folder / "model_config.yaml"
    text = path.read_text()
    assert _DIN in text
    assert _HISTORIES in text
    path.write_text(text.replace(_DIN, targets).replace(_HISTORIES, histories))
    notes = fuxictr.read(folder, "DIN_test").notes
    return [note for note in notes if "compares" in note or "attends" in note]


def test_histories_of_the_candidate_as_tamis_reads_them_are_not_told_of(folder: Path) -> None:
    assert _notes_with(folder, _DIN, _HISTORIES) == []


def test_history_that_is_not_named_is_attended_to_and_told_of(folder: Path) -> None:
    notes = _notes_with(
        folder,
        "    din_target_field: adgroup_id\n",
        "    din_sequence_field: click_sequence\n",
    )

    assert notes == [
        "cate_sequence: din_sequence_field does not name it, so that FuxiCTR pools it; in tamis "
        "DIN attends to every history."
    ]
    assert not any(field.group for field in fuxictr.read(folder, "DIN_test").schema.fields)


def test_histories_that_are_not_said_are_those_of_fuxictrs_default(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text().replace("click_sequence", "click_history")
    path.write_text(text.replace("cate_sequence", "cate_history"))
    notes = _notes_with(folder, "    din_target_field: [!!python/tuple [adgroup_id, x]]\n", "")

    groups = [field.group for field in fuxictr.read(folder, "DIN_test").schema.fields]
    assert groups[-2:] == ["history", "history"]
    assert notes == [
        "cate_history: FuxiCTR compares it with x, whose table it does not share; tamis compares "
        "it with cate_id."
    ]


@pytest.mark.parametrize(
    ("shared", "other"), [("share_embedding: cate_id", "cate_id"), ("min_categr_count: 2", "")]
)
def test_candidate_whose_table_is_not_shared_is_told_of(
    folder: Path, shared: str, other: str
) -> None:
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace("share_embedding: adgroup_id", shared))

    assert _notes_with(folder, _DIN, _HISTORIES) == [
        "click_sequence: FuxiCTR compares it with adgroup_id, whose table it does not share; "
        f"tamis compares it with {other or 'a vector it learns'}."
    ]


def test_histories_of_negatives_are_no_inputs(folder: Path) -> None:
    (folder / "model_config.yaml").write_text(
        "x: {model: DIEN, dataset_id: tiny_seq, dien_target_field: adgroup_id,\n"
        "  dien_sequence_field: click_sequence, dien_neg_seq_field: cate_sequence}\n"
    )
    imported = fuxictr.read(folder, "x")

    assert "cate_sequence" not in [field.name for field in imported.schema.fields]
    assert "cate_sequence" in [one.column for one in imported.schema.ignored]
    assert not any("attends" in note for note in imported.notes)
    assert "dien_neg_seq_field = 'cate_sequence' has no counterpart in dien." in imported.notes


def test_data_set_without_a_model_is_attended_to_by_nobody(folder: Path) -> None:
    assert not any("attends" in note for note in fuxictr.read(folder, "tiny_seq").notes)
