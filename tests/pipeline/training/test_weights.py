import hashlib
import io
import random

import fsspec
import pytest
import torch

from models.densenet import DenseNetDiscriminator
from models.vgg import VGG16Features
from pipeline.config import checks
from pipeline.config.schema import CACHE, FetchConfig
from pipeline.training import pretrained, weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(name, network):
    return weights.load(pretrained.read(CACHE, name), network, name)


def old_names(state):
    """As the published DenseNet file spells them, without what it lacks."""
    for key in list(state):
        if key.endswith("num_batches_tracked"):
            del state[key]
    return {
        key.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): value
        for key, value in state.items()
    }


def save(path, state):
    torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def published_vgg(path, seed=1):
    torch.manual_seed(seed)
    state = VGG16Features(blocks=5).state_dict()
    return state, save(path, {**state, "classifier.6.bias": torch.zeros(1000)})


def test_loading_fills_the_backbone_but_not_the_head(tmp_path):
    torch.manual_seed(1)
    state = DenseNetDiscriminator().state_dict()
    theirs = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
    theirs = {k: v for k, v in theirs.items() if k.startswith("features.")}
    digest = save(tmp_path / "d.pth", old_names(dict(theirs)) | {"classifier.bias": torch.ones(9)})
    assert weights.fetch("densenet121", str(tmp_path / "d.pth"), digest)["sha256"] == digest

    torch.manual_seed(2)
    discriminator = DenseNetDiscriminator()
    head = discriminator.head.weight.clone()
    assert load("densenet121", discriminator) == digest
    found = discriminator.state_dict()
    floats = [k for k in theirs if theirs[k].is_floating_point()]
    assert len(floats) == 604  # 120 convolutions and 121 norms of four tensors
    assert all(torch.equal(found[k], theirs[k]) for k in floats)
    assert torch.equal(found["head.weight"], head)


def test_a_folder_is_searched_for_the_publishers_file_name(tmp_path):
    state, digest = published_vgg(tmp_path / "vgg16-397923af.pth")
    weights.main(FetchConfig(names=["vgg16"], source=tmp_path.as_uri(), sha256=digest[:8]))
    vgg = VGG16Features()
    assert load("vgg16", vgg) == digest
    assert all(torch.equal(v, state[k]) for k, v in vgg.state_dict().items())
    # only what is used was kept, not the whole classifier
    assert weights.cached("vgg16").stat().st_size < 4 * 14_714_688 + 8192


def test_a_bucket_is_read_through_fsspec(tmp_path):
    _, digest = published_vgg(tmp_path / "v.pth")
    bucket = fsspec.filesystem("memory")
    bucket.pipe_file("/bucket/vgg16-397923af.pth", (tmp_path / "v.pth").read_bytes())
    try:
        assert weights.fetch("vgg16", "memory://bucket", digest)["sha256"] == digest
    finally:
        bucket.rm("/bucket", recursive=True)


def test_a_file_with_another_hash_is_refused_and_not_cached(tmp_path):
    published_vgg(tmp_path / "v.pth")
    with pytest.raises(ValueError, match="expected 397923af"):
        weights.fetch("vgg16", str(tmp_path / "v.pth"))
    assert not weights.cached("vgg16").exists()


def test_a_missing_source_is_refused_with_what_it_must_hold(tmp_path):
    for source in (tmp_path, tmp_path / "no.pth"):
        with pytest.raises(ValueError, match=r"cannot be read .* holds vgg16-397923af\.pth"):
            weights.fetch("vgg16", str(source))


@pytest.mark.parametrize("digits", ["3", "397923a", "no hash!", "sha256:397923af"])
def test_a_hash_that_is_too_short_or_invalid_is_refused(digits):
    with pytest.raises(ValueError, match="give its first 8 to 64 hexadecimal digits"):
        checks.fetch(FetchConfig(names=["vgg16"], sha256=digits))


def test_a_truncated_file_is_refused(tmp_path):
    published_vgg(tmp_path / "v.pth")
    short = (tmp_path / "v.pth").read_bytes()[:-5000]
    (tmp_path / "v.pth").write_bytes(short)
    with pytest.raises(ValueError, match="truncated"):
        weights.fetch("vgg16", str(tmp_path / "v.pth"), hashlib.sha256(short).hexdigest())


def test_weights_of_another_network_are_refused(tmp_path):
    _, digest = published_vgg(tmp_path / "v.pth")
    weights.fetch("vgg16", str(tmp_path / "v.pth"), digest)
    with pytest.raises(ValueError, match="weights of another network"):
        load("vgg16", DenseNetDiscriminator())
    with pytest.raises(ValueError, match="weights of another network"):
        weights.fetch("densenet121", str(tmp_path / "v.pth"), digest)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    digest = save(tmp_path / "v.pth", {"features.0.weight": Evil()})
    with pytest.raises(ValueError, match="cannot be read as weights"):
        weights.fetch("vgg16", str(tmp_path / "v.pth"), digest)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_cache_is_refused_with_what_to_do(tmp_path):
    _, digest = published_vgg(tmp_path / "v.pth")
    weights.fetch("vgg16", str(tmp_path / "v.pth"), digest)
    path = weights.cached("vgg16")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged .* fetch vgg16`"):
        load("vgg16", VGG16Features())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_or_with_any_byte_changed_is_one_line_or_still_tensors(legacy):
    stored = io.BytesIO()
    state = {"features.0.weight": torch.rand(4, 3, 3, 3), "features.0.bias": torch.rand(4)}
    torch.save(state, stored, _use_new_zipfile_serialization=not legacy)
    whole, draw, refused = stored.getvalue(), random.Random(0), 0
    for i in range(300):
        if i % 2:
            data = whole[: draw.randrange(len(whole))]
        else:
            data = bytearray(whole)
            data[draw.randrange(len(whole))] = draw.randrange(256)
        try:
            weights.unpickled(bytes(data), "v.pth")
        except ValueError as error:
            refused += 1
            assert str(error).startswith("v.pth ") and "\n" not in str(error)
    assert refused >= 150


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * float("nan"), "expected finite floats"),
        (lambda x: x.int(), "expected finite floats"),
        (lambda x: x.to_sparse(), "does not hold a state dict"),
    ],
)
def test_weights_that_are_not_finite_floats_are_refused(tmp_path, spoil, message):
    state = {k: spoil(v) for k, v in VGG16Features(blocks=5).state_dict().items()}
    digest = save(tmp_path / "v.pth", state)
    with pytest.raises(ValueError, match=message):
        weights.fetch("vgg16", str(tmp_path / "v.pth"), digest)
    assert not weights.cached("vgg16").exists()


@pytest.mark.parametrize("name", ["lpips_vgg", "dists", "stlpips"])
def test_weights_of_a_package_that_is_not_installed_are_refused_with_its_name(name, monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda package: None)
    package = {"lpips_vgg": "lpips", "dists": "DISTS-pytorch", "stlpips": "stlpips-pytorch"}[name]
    with pytest.raises(ValueError, match=f"run `pip install --no-deps {package}` and fetch"):
        weights.fetch(name)
