"""LPIPS, DISTS, ST-LPIPS, FID, KID, P-IDS and U-IDS equal their reference programs."""

import hashlib
import importlib
import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import minimize
from skimage import data
from torch import nn

from models import perceptual
from models.inception import Inception
from models.vgg import VGG16Features
from pipeline.config.compose import compose
from pipeline.evaluation import evaluate, learned, metrics, results, scoring, sets
from pipeline.evaluation.pairs import make_pairs
from pipeline.training import weights
from shards.manifest import open_manifest
from tests.support.pairs import BUCKETS, SIZE, crops, image_set, mask_set
from tests.support.references import with_torchvision


def run_evaluate(*words):
    return evaluate.main(compose("evaluate", list(words)).config)


CPU = torch.device("cpu")
LEARNED = ("lpips_vgg", "lpips_alex", "dists", "stlpips")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A cache with the published weights that wheels hold, and random ones of the networks.

    Returns the state dicts of the random ones.
    """
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(5)
    inception = Inception()
    for module in inception.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.3)
    head = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    states = {
        "vgg16": VGG16Features(blocks=5).state_dict(),
        "alexnet": {f"features.{k}": v for k, v in perceptual.alexnet().state_dict().items()},
        "inception": inception.state_dict() | head,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        learned.loaded.cache_clear()
        for name, state in states.items():
            path = folder / f"{name}.pth"
            torch.save(state, path)
            weights.fetch(name, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        for name in ("lpips_vgg", "lpips_alex", "dists", "stlpips"):
            weights.fetch(name)
        yield folder, states
    learned.loaded.cache_clear()


@pytest.fixture
def references(published, monkeypatch):
    def filled(network, name):
        network.load_state_dict({k.removeprefix("features."): v for k, v in states[name].items()})
        return network

    _, states = published
    with_torchvision(
        monkeypatch,
        lambda: filled(VGG16Features(blocks=5).features, "vgg16"),
        lambda: filled(nn.Sequential(*perceptual.alexnet(), nn.MaxPool2d(3, 2)), "alexnet"),
    )


def reference(name):
    """The reference's distance of images in [0, 1]."""
    if name == "dists":
        network = importlib.import_module("DISTS_pytorch").DISTS(load_weights=False)
        path = importlib.metadata.distribution("DISTS-pytorch").locate_file(
            "DISTS_pytorch/weights.pt"
        )
        state = torch.load(str(path), weights_only=True)
        network.alpha.data, network.beta.data = state["alpha"], state["beta"]
        return network
    if name == "stlpips":
        module = importlib.import_module("stlpips_pytorch.stlpips")
        network = module.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    else:
        network = importlib.import_module("lpips").LPIPS(net=name[6:], verbose=False)
    return lambda a, b: network(a, b, normalize=True).flatten()


def images():
    """Three photographs of 64×72, and the same with errors in a hole and all over."""
    image = np.stack([data.astronaut()[i : i + 64, 200:272] for i in (0, 50, 100)])
    noise = np.random.default_rng(0).integers(-50, 51, image.shape)
    noise[0, :20] = 0
    return np.clip(image + noise, 0, 255).astype(np.uint8), image


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_distance_equals_its_reference(name, published, references):
    result, image = (torch.from_numpy(x) for x in images())
    ours = metrics.record(name).function(result, image, None)
    a, b = (x.permute(0, 3, 1, 2).float() / 255 for x in (result, image))
    with torch.no_grad():
        theirs = reference(name)(a, b)
    assert theirs.min() > 1e-3
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4)
    equal = metrics.record(name).function(image, image, None)
    assert equal.abs().max() < 1e-5


def test_inceptions_features_equal_torch_fidelitys(published, references):
    folder, _ = published
    theirs = importlib.import_module("torch_fidelity").FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(folder / "inception.pth")
    )
    ours = learned.loaded(Inception, ("inception",), CPU)
    image = torch.from_numpy(images()[1][:2])
    wide = torch.from_numpy(np.ascontiguousarray(data.astronaut()[None, :310, :400]))
    for x in (image, wide):
        (expected,) = theirs(x.permute(0, 3, 1, 2))
        found = ours(x)
        assert found.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


def features(n, width, seed):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, width)) @ (rng.normal(size=(width, width)) / width)
    return (mixed + rng.uniform(0, 0.5, width)).astype(np.float32)


@pytest.mark.parametrize("n", [300, 40])  # more images than features, and fewer
def test_fid_equals_torch_fidelitys(n, references, monkeypatch):
    fid = importlib.import_module("torch_fidelity.metric_fid")
    monkeypatch.setattr(sets, "SUBSET", 17)  # rows of a pass
    a, b = features(n, 64, 1), features(n, 64, 2)
    stats = [fid.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    expected = fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert sets.fid(a, b)["fid"] == pytest.approx(expected, rel=1e-4)
    assert sets.fid(a, a)["fid"] == pytest.approx(0, abs=1e-4 * expected)


def test_kid_equals_torch_fidelitys_on_the_same_subsets(references, monkeypatch):
    kid = importlib.import_module("torch_fidelity.metric_kid")
    defaults = importlib.import_module("torch_fidelity.defaults").DEFAULTS
    assert tuple(defaults[k] for k in ("kid_subsets", "kid_subset_size", "rng_seed")) == (
        sets.SUBSETS,
        sets.SUBSET,
        sets.SEED,
    )
    monkeypatch.setattr(sets, "SUBSETS", 6)
    monkeypatch.setattr(sets, "SUBSET", 150)
    a, b = features(200, 64, 1), features(200, 64, 2)
    theirs = kid.kid_features_to_metric(
        *(torch.from_numpy(x).double() for x in (a, b)),
        kid_subsets=6,
        kid_subset_size=150,
        verbose=False,
    )
    ours = sets.kid(a, b)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)


def test_ids_are_those_of_the_svm_that_minimizes_the_squared_hinge_loss():
    """As in CoModGAN's and MAT's scripts: C = 1, the bias regularized; minimized here by L-BFGS."""
    n = 120
    real = features(n, 6, 3)
    fake = real + np.random.default_rng(4).normal(0.1, 0.4, real.shape).astype(np.float32)
    x = np.c_[np.r_[real, fake].astype(np.float64), np.ones(2 * n)]
    y = np.repeat([1.0, -1.0], n)

    def loss(w):
        slack = np.maximum(0, 1 - y * (x @ w))
        return w @ w / 2 + (slack**2).sum(), w - 2 * x.T @ (y * slack)

    score = x @ minimize(loss, np.zeros(7), jac=True, options={"gtol": 1e-9}).x
    ours = sets.ids(fake, real)
    assert ours["p_ids"] == pytest.approx(100 * (score[n:] > score[:n]).mean(), abs=100.1 / n)
    assert ours["u_ids"] == pytest.approx(100 * (score * y < 0).mean(), abs=50.1 / n)
    assert 5 < ours["u_ids"] < 50 and 5 < ours["p_ids"] < 95


@pytest.fixture
def pairs(tmp_path):
    pair_images = open_manifest(image_set(tmp_path / "images", crops(2)))
    masks = open_manifest(mask_set(tmp_path / "masks"))
    return make_pairs(pair_images, "val", masks, BUCKETS, SIZE)


def test_learned_columns_do_not_depend_on_the_batch(published, pairs):
    predict = scoring.predictor(lambda image, mask: torch.full_like(image, 0.5), CPU)
    tables = [
        scoring.score(predict, pairs, range(0, len(pairs), n), n, CPU, chosen=("lpips_alex",))
        for n in (1, 5)
    ]
    one, five = (t["lpips_alex"].to_numpy() for t in tables)
    assert one.min() > 0
    np.testing.assert_allclose(one, five, rtol=1e-5)
    assert tables[0]["dists"].null_count == len(pairs)


def small_limits(monkeypatch):
    """Let six pairs be enough, with a network of 3 features in Inception's place."""

    class Means(nn.Module):
        def forward(self, image):
            return image.float().mean((1, 2)) / 255

    learned.loaded.cache_clear()
    loaded = learned.loaded
    monkeypatch.setattr(
        learned, "loaded", lambda n, needs, d: Means() if n is Inception else loaded(n, needs, d)
    )
    monkeypatch.setattr(sets, "SUBSET", 4)
    smaller = {"fid": 5, "kid": 5, "p_ids": 10, "u_ids": 10}
    rows = [replace(m, least=smaller[m.name], unbiased=20) for m in metrics.SET_METRICS]
    monkeypatch.setattr(metrics, "SET_METRICS", tuple(rows))


def test_set_metrics_are_of_each_bucket_and_of_all_pairs_for_any_world_size(
    published, tmp_path, monkeypatch
):
    small_limits(monkeypatch)
    monkeypatch.setattr(evaluate, "BATCHES_PER_PART", 1)
    urls = image_set(tmp_path / "images", crops()), mask_set(tmp_path / "masks")
    words = [f"data.url={urls[0]}", f"masks.url={urls[1]}", f"protocol.size={SIZE}"]
    words += ["model=mean_colour", "metrics=[fid,kid,p_ids,u_ids,stlpips]", "batch=4"]
    one = run_evaluate(*words, f"out={tmp_path}/one.parquet")

    config = compose("evaluate", [*words, f"out={tmp_path}/two.parquet"]).config
    evaluate.evaluate(config, 1, 2)
    two = evaluate.evaluate(config, 0, 2)
    for key in ("buckets", "all", "mean6", "notes"):
        assert one[key] == two[key], key
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()

    table, facts = results.load(one["parquet"])
    everything = pairs_features(urls)
    for name, row in {**one["buckets"], "all": one["all"]}.items():
        rows = [i for i, b in enumerate(everything["bucket"]) if name in (b, "all")]
        a, b = (np.stack([everything[k][i] for i in rows]) for k in ("result", "image"))
        assert row["fid"] == pytest.approx(sets.fid(a, b)["fid"], rel=1e-4)
        assert ("p_ids" in row) == (name == "all")
        assert row["stlpips"] > 0 and "kid_std" in row
    assert "fid" not in one["mean6"] and one["mean6"]["stlpips"] > 0
    assert facts["metric_weights"].keys() == {"inception", "stlpips"}
    text = results.as_text(one)
    assert f"P-IDS: needs 10 pairs, empty for {', '.join(sorted(BUCKETS))}" in text
    assert f"FID: biased below 20 pairs: {', '.join(sorted(BUCKETS))}" in text
    assert text.splitlines()[0].split()[-1] == "%" and "all pairs" in text


def pairs_features(urls):
    """The mean colors of the originals and of what `mean_colour` makes of them, by hand."""
    all_pairs = make_pairs(open_manifest(urls[0]), "val", open_manifest(urls[1]), BUCKETS, SIZE)
    batch = all_pairs.load(0, len(all_pairs))
    found = {"bucket": [p.bucket for p in batch.pairs], "image": [], "result": []}
    for image, mask in zip(batch.images.numpy(), batch.masks.numpy()):
        filled = image.copy()
        filled[mask == 1] = np.round(image[mask == 0].mean(0))
        found["image"].append(image.mean((0, 1)) / 255)
        found["result"].append(filled.mean((0, 1)) / 255)
    return found


def test_without_weights_or_pairs_a_column_is_empty_and_says_what_fills_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    learned.loaded.cache_clear()
    urls = image_set(tmp_path / "images", crops(1)), mask_set(tmp_path / "masks")
    words = [f"data.url={urls[0]}", f"masks.url={urls[1]}", f"protocol.size={SIZE}"]
    words += ["model=mean_colour", f"out={tmp_path}/t.parquet", "metrics=[dists,fid]"]
    result = run_evaluate(*words)
    text = results.as_text(result).splitlines()
    assert "DISTS" in text[0] and text[1].split()[-2:] == ["-", "-"]
    fix = "run `python -m pipeline fetch vgg16 dists` and evaluate again"
    assert f"DISTS: empty: the weights vgg16 are not in the cache: {fix}" in text
    assert result["metric_weights"] == {} and "dists" not in result["all"]

    small = run_evaluate(*words, "protocol.size=24", "masks.url=null", "protocol.buckets=[center]")
    assert small["notes"]["dists"] == "empty: needs images of at least 32 pixels"

    state = VGG16Features().state_dict()  # as earlier versions kept it: up to the third pool
    fetched = weights.cached("vgg16")
    fetched.parent.mkdir(parents=True)
    save_file(state, fetched)
    save_file({"alpha": torch.ones(1), "beta": torch.ones(1)}, weights.cached("dists"))
    result = run_evaluate(*words)
    assert "the cached weights lack features.17.bias" in result["notes"]["dists"]


def test_an_unknown_metric_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown metrics=lpisp: choose from psnr, .*, u_ids$"):
        run_evaluate("model=telea", "data.url=x", "masks.url=y", "metrics=[lpisp]")


def test_every_metric_has_a_whole_record():
    names = [m.name for m in (*metrics.METRICS, *metrics.SET_METRICS)]
    assert len(names) == len(set(names))
    for m in (*metrics.METRICS, *metrics.SET_METRICS):
        assert m.title and m.how and m.direction in (-1, 1) and m.range[0] < m.range[1], m.name
        assert (m.function is None) != (m.of_sets is None), m.name
        assert set(m.needs) <= set(weights.PUBLISHED) and bool(m.needs) == (m.network is not None)
