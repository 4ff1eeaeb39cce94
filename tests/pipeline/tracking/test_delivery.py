"""Names as MLflow takes them."""

from pipeline.tracking.delivery import clean


def test_keys_become_what_mlflow_allows_and_stay_apart():
    keys = ["val/psnr (0.1,0.2]", "val/psnr (0.2,0.3]", "g/l1", "a%b(c)"]
    cleaned = [clean(key) for key in keys]
    assert cleaned == ["val/psnr 0.1_0.2", "val/psnr 0.2_0.3", "g/l1", "a_b_c"]
