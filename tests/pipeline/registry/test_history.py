"""Changes to promoted files, to the history or to the alias are detected."""

import shutil

import pytest

from pipeline.config.schema import RollbackConfig
from pipeline.evaluation import results
from pipeline.registry import promote
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import model_versions
from tests.support.promotion import (
    NAME,
    candidate,
    champion,
    client,
    do,
    uri,
    verify,
)


def test_a_promoted_model_survives_the_deletion_of_its_run(root):
    run = candidate(root, "first", 20.0, 1)
    do(run)
    version = client(root).get_model_version(NAME, "1")
    client(root).delete_logged_model(version.tags["lacuna.model_id"])
    client(root).delete_run(read_run_json(run)["mlflow_run_id"])
    shutil.rmtree(run)

    assert verify()["faults"] == []
    folder = root / "check"
    model_versions.download(uri(root), champion(root).tags["lacuna.model_id"], "", folder)
    assert (folder / "artifacts" / "inpainter.pt2").read_text() == run
    assert results.load(str(folder / "gate" / "evaluation.parquet"))[0].num_rows == 360


def artifacts(root, version):
    model_id = version.tags["lacuna.model_id"]
    return root / "mlartifacts" / "models" / model_id / "artifacts"


def test_files_that_changed_after_registration_are_not_promoted(root):
    run = candidate(root, "first", 20.0, 1)
    version = client(root).get_model_version(NAME, "1")
    (artifacts(root, version) / "artifacts" / "inpainter.pt2").write_text("something else")
    with pytest.raises(ValueError, match="changed after registration"):
        do(run)


def test_verify_reports_changed_and_missing_files(root):
    do(candidate(root, "first", 20.0, 1))
    file = artifacts(root, champion(root)) / "artifacts" / "inpainter.pt2"
    file.write_text("something else")
    with pytest.raises(ValueError, match="files of version 2 were changed"):
        verify()
    shutil.rmtree(artifacts(root, champion(root)))
    with pytest.raises(ValueError, match="files of version 2 are missing|were changed"):
        verify()


def test_an_alias_moved_by_hand_is_reported_and_corrected(root):
    run = candidate(root, "first", 20.0, 1)
    do(run)
    client(root).set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(ValueError, match="alias champion names 1, the history 2"):
        verify()
    do(run)
    assert champion(root).version in (2, "2")
    assert verify()["faults"] == []


def test_after_a_promotion_is_deleted_only_an_explicit_rollback_continues(root):
    for number, psnr in enumerate((20.0, 21.0, 22.0)):
        do(candidate(root, f"run{number}", psnr, number))
    client(root).delete_model_version(NAME, "4")
    with pytest.raises(ValueError, match="promoted version 4 was deleted"):
        verify()
    for attempt in (
        lambda: do(candidate(root, "later", 23.0, 9)),
        lambda: promote.main(RollbackConfig(model=NAME)),
    ):
        with pytest.raises(
            ValueError, match="promoted version 4 of inpaint-msanet was deleted: .*version=N"
        ):
            attempt()
    assert champion(root).version in (6, "6"), "the alias is not moved silently"

    assert promote.main(RollbackConfig(model=NAME, version=6))["version"] == 8
    assert champion(root).tags["gate.content"] == "6"
    assert verify()["faults"] == []
