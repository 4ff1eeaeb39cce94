"""`import`: files with the published names, written by networks built here as published."""

import hashlib
import http.server
import json
import sys
import threading
import types
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from models.canny import canny, grayscale
from pipeline.common.errors import ConfigError
from pipeline.config.commands import COMMANDS, positional
from pipeline.config.compose import compose
from pipeline.config.schema import IMPORTED
from pipeline.runs import checkpoints
from pipeline.runs.run_json import read_run_json
from pipeline.training import imports

SEED = 5


def imported(*words):
    config = compose("import", positional(COMMANDS["import"], list(words))).config
    return imports.main(config)


# --- EdgeConnect: src/networks.py of knazeri/edge-connect ----------------------------------------


class Block(nn.Module):
    def __init__(self, norm):
        super().__init__()
        bias = norm is not spectral_norm
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(2), norm(nn.Conv2d(256, 256, 3, dilation=2, bias=bias)),
            nn.InstanceNorm2d(256), nn.ReLU(),
            nn.ReflectionPad2d(1), norm(nn.Conv2d(256, 256, 3, bias=bias)), nn.InstanceNorm2d(256),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv_block(x)


class Published(nn.Module):
    def __init__(self, inputs, outputs, norm):
        super().__init__()
        act = lambda n: (nn.InstanceNorm2d(n), nn.ReLU())  # noqa: E731
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(3), norm(nn.Conv2d(inputs, 64, 7)), *act(64),
            norm(nn.Conv2d(64, 128, 4, 2, 1)), *act(128),
            norm(nn.Conv2d(128, 256, 4, 2, 1)), *act(256),
        )  # fmt: skip
        self.middle = nn.Sequential(*(Block(norm) for _ in range(8)))
        self.decoder = nn.Sequential(
            norm(nn.ConvTranspose2d(256, 128, 4, 2, 1)), *act(128),
            norm(nn.ConvTranspose2d(128, 64, 4, 2, 1)), *act(64),
            nn.ReflectionPad2d(3), nn.Conv2d(64, outputs, 7),
        )  # fmt: skip

    def forward(self, x):
        return self.decoder(self.middle(self.encoder(x)))


def write_edgeconnect(folder):
    """Both files; returns image and mask -> the image that `test()` of the authors makes."""
    torch.manual_seed(SEED)
    edges, image = Published(3, 1, spectral_norm), Published(4, 3, lambda layer: layer)
    edges(torch.rand(1, 3, 16, 16))  # one step of the power iteration
    folder.mkdir()
    torch.save({"iteration": 7, "generator": edges.state_dict()}, folder / "EdgeModel_gen.pth")
    torch.save({"iteration": 7, "generator": image.state_dict()},
               folder / "InpaintingModel_gen.pth")  # fmt: skip
    edges.eval(), image.eval()

    def fill(x, mask):
        white = x * (1 - mask) + mask
        gray = grayscale(x * (1 - mask)) * (1 - mask) + mask
        known = canny(grayscale((x * (1 - mask)).double()), 1 - mask).float()
        found = torch.sigmoid(edges(torch.cat((gray, known, mask), 1)))
        return (torch.tanh(image(torch.cat((white, found), 1))) + 1) / 2

    return fill


# --- MMagic's PConv: mmagic/models/editors/pconv --------------------------------------------------


class Unit(nn.Module):
    """A masked convolution, with a mask for every channel, norm and activation."""

    def __init__(self, inputs, outputs, kernel, stride, norm, leak):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm)
        self.conv.register_buffer(
            "weight_mask_updater", torch.ones(outputs, inputs, kernel, kernel)
        )
        if norm:
            self.bn = nn.BatchNorm2d(outputs)
        self.leak = leak

    def forward(self, x, mask):
        ones = self.conv.weight_mask_updater
        seen = F.conv2d(mask, ones, None, self.conv.stride, self.conv.padding)
        ratio = ones[0].numel() / (seen + 1e-8) * seen.clamp(0, 1)
        y = F.conv2d(x * mask, self.conv.weight, None, self.conv.stride, self.conv.padding) * ratio
        if self.conv.bias is not None:
            y = (y + self.conv.bias.view(1, -1, 1, 1)) * seen.clamp(0, 1)
        y = self.bn(y) if hasattr(self, "bn") else y
        return y if self.leak is None else F.leaky_relu(y, self.leak), seen.clamp(0, 1)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [3, 64, 128, 256, 512, 512, 512, 512]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        for i in range(7):
            kernel = (7, 5, 5, 3)[min(i, 3)]
            unit = Unit(widths[i], widths[i + 1], kernel, 2, i > 0, 0.0)
            self.encoder.add_module(f"enc{i + 1}", unit)
            outputs = widths[i]
            unit = Unit(widths[i + 1] + outputs, outputs, 3, 1, i > 0, 0.2 if i else None)
            self.decoder.add_module(f"dec{i + 1}", unit)

    def forward(self, x, mask):
        maps = [(x, mask)]
        for i in range(7):
            maps.append(self.encoder.get_submodule(f"enc{i + 1}")(*maps[-1]))
        here = maps.pop()
        for i in reversed(range(7)):
            up = (F.interpolate(t, scale_factor=2) for t in here)
            both = (torch.cat(pair, 1) for pair in zip(up, maps.pop()))
            here = self.decoder.get_submodule(f"dec{i + 1}")(*both)
        return here[0]


def write_pconv(path):
    torch.manual_seed(SEED)
    model = nn.Module()
    model.generator, model.loss_percep = Generator(), nn.Linear(2, 2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean), nn.init.uniform_(layer.weight)
    torch.save({"meta": {"iter": 500_000}, "state_dict": model.state_dict()}, path)
    model.eval()

    def fill(x, mask):
        """On BGR in [-1, 1]; the holes' mask is 0 there."""
        known = (1 - mask).expand(-1, 3, -1, -1)
        return (model.generator(x.flip(1) * 2 - 1, known).flip(1) + 1) / 2

    return fill


# --- GMCNN: pytorch/model/net.py of shepnerd/inpainting_gmcnn -------------------------------------


class Columns(nn.Module):
    def __init__(self):
        super().__init__()
        shared = [(4, 32, 1, 1), (32, 64, 2, 1), (64, 64, 1, 1), (64, 128, 2, 1)]
        shared += [(128, 128, 1, d) for d in (1, 1, 2, 4, 8, 16, 1, 1)]
        narrow = ["x2", (128, 64, 1, 1), (64, 64, 1, 1)]
        ends = {7: [4], 5: [*narrow, 2], 3: [*narrow, "x2", (64, 32, 1, 1), (32, 32, 1, 1)]}
        for number, (kernel, end) in enumerate(ends.items(), 1):
            layers = nn.ModuleList(self.layer(row, kernel) for row in [*shared, *end])
            self.add_module(f"EB{number}", layers)
        self.decoding_layers = nn.ModuleList((nn.Conv2d(224, 16, 3), nn.Conv2d(16, 3, 3)))

    def layer(self, row, kernel):
        if row == "x2":
            return nn.Upsample(scale_factor=2)
        if isinstance(row, int):
            return nn.Upsample(scale_factor=row, mode="bilinear", align_corners=True)
        return nn.Conv2d(*row[:2], kernel, row[2], dilation=row[3])

    def padded(self, layer, x):
        side = layer.dilation[0] * (layer.kernel_size[0] // 2)
        return layer(F.pad(x, (side, side, side, side), mode="reflect"))

    def forward(self, x):
        ends = []
        for layers in (self.EB1, self.EB2, self.EB3):
            y = x
            for layer in layers:
                conv = isinstance(layer, nn.Conv2d)
                y = F.elu(self.padded(layer, y)) if conv else layer(y)
            ends.append(y)
        first, last = self.decoding_layers
        return self.padded(last, F.elu(self.padded(first, torch.cat(ends, 1)))).clamp(-1, 1)


def write_gmcnn(path):
    torch.manual_seed(SEED)
    model = Columns()
    torch.save(model.state_dict(), path)

    def fill(x, mask):
        return (model(torch.cat(((x * 2 - 1) * (1 - mask), mask), 1)) + 1) / 2

    return fill


def write_showcase(path):
    from safetensors.torch import save_file

    from models.pconv import PConv

    torch.manual_seed(SEED)
    network = PConv(levels=6, width=0.25, fill=True).eval()
    torch.nn.init.normal_(network.out.weight, std=0.1)  # untrained, it only fills smoothly
    save_file(network.state_dict(), path)
    return lambda x, mask: network(x, mask).image


# --- LaMa: saicinpainting/training/modules/ffc.py of advimman/lama --------------------------------


def named(**modules):
    made = nn.Module()
    for name, module in modules.items():
        made.add_module(name, module)
    return made


class Fourier(nn.Module):
    """An FFC_BN_ACT: two streams of widths (local, global)."""

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        (i, gi), (o, go), side = inputs, outputs, kernel // 2
        conv = lambda a, b, k=kernel, s=stride, p=side: nn.Conv2d(  # noqa: E731
            a, b, k, s, p, bias=False, padding_mode="reflect"
        )
        self.ffc = named(convl2l=conv(i, o))
        self.bn_l, self.go = nn.BatchNorm2d(o), go
        if go:
            self.ffc.convl2g, self.bn_g = conv(i, go), nn.BatchNorm2d(go)
        if gi:
            half = go // 2
            first = nn.Sequential(conv(gi, half, 1, 1, 0), nn.BatchNorm2d(half), nn.ReLU())
            mixed = named(conv_layer=conv(go, go, 1, 1, 0), bn=nn.BatchNorm2d(go))
            self.ffc.convg2l = conv(gi, o)
            self.ffc.convg2g = named(conv1=first, fu=mixed, conv2=conv(half, go, 1, 1, 0))

    def spectral(self, x):
        spectral = self.ffc.convg2g
        x = spectral.conv1(x)
        f = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        f = torch.stack((f.real, f.imag), 2).flatten(1, 2)
        f = F.relu(spectral.fu.bn(spectral.fu.conv_layer(f)))
        f = torch.complex(f[:, 0::2], f[:, 1::2])
        return spectral.conv2(x + torch.fft.irfftn(f, x.shape[-2:], dim=(-2, -1), norm="ortho"))

    def forward(self, pair):
        x, g = pair
        here, there = self.ffc.convl2l(x), self.ffc.convl2g(x) if self.go else None
        if g is not None:
            here, there = here + self.ffc.convg2l(g), there + self.spectral(g)
        return F.relu(self.bn_l(here)), F.relu(self.bn_g(there)) if self.go else None


class Residual(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.conv1, self.conv2 = Fourier(widths, widths, 3), Fourier(widths, widths, 3)

    def forward(self, pair):
        return tuple(a + b for a, b in zip(pair, self.conv2(self.conv1(pair))))


class Joined(nn.Module):
    def forward(self, pair):
        return torch.cat(pair, 1) if isinstance(pair, tuple) else (pair, None)


def write_lama(path, blocks=2):
    torch.manual_seed(SEED)
    middle = (128, 384)
    ups = [
        layer
        for n in (512, 256, 128)
        for layer in (nn.ConvTranspose2d(n, n // 2, 3, 2, 1, 1), nn.BatchNorm2d(n // 2), nn.ReLU())
    ]
    layers = nn.Sequential(
        Joined(), Fourier((4, 0), (64, 0), 7), Fourier((64, 0), (128, 0), 3, 2),
        Fourier((128, 0), (256, 0), 3, 2), Fourier((256, 0), middle, 3, 2),
        *(Residual(middle) for _ in range(blocks)), Joined(), *ups,
        nn.ReflectionPad2d(3), nn.Conv2d(64, 3, 7),
    )  # fmt: skip
    for layer in layers.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1), nn.init.uniform_(layer.weight)
    network = named(
        generator=named(model=layers), discriminator=nn.Linear(2, 2), val_evaluator=nn.Linear(2, 2)
    )
    module = types.ModuleType("omegaconf_of_theirs")
    module.Config = type("Config", (), {"__module__": module.__name__})
    config = module.Config()
    config.generator = {"kind": "ffc_resnet"}
    sys.modules[module.__name__] = module
    state = {"state_dict": network.state_dict(), "callbacks": {module.Config: {"best": 1.0}}}
    torch.save({**state, "epoch": 3, "hyper_parameters": config}, path)
    del sys.modules[module.__name__]
    layers.eval()
    return lambda x, mask: torch.sigmoid(layers(torch.cat((x * (1 - mask), mask), 1)))


def test_big_lama_has_the_tensors_of_its_released_checkpoint():
    """Counted in the authors' code: 989 tensors, 50,975,875 weights, 51,057,179 with statistics."""
    source = imports.SOURCES["lama"]
    with torch.device("meta"):
        network = checkpoints.build_generator(source.model)
    names = {imports.theirs(n, source.rules): t.numel() for n, t in network.state_dict().items()}
    assert len(names) == 989 and sum(names.values()) == 51_057_179
    assert sum(p.numel() for p in network.parameters()) == 50_975_875
    last = ("22.conv2.ffc.convg2g.fu.bn.running_var", "24.bias", "31.weight", "34.weight")
    assert names.keys() >= {f"generator.model.{name}" for name in last}


PUBLISHED = {
    "showcase": (write_showcase, 128, "Apache-2.0", 63),
    "gmcnn": (write_gmcnn, 224, "MIT", 88),
    "edgeconnect": (write_edgeconnect, 64, "CC-BY-NC-4.0", 114),
    "lama": (write_lama, 64, "Apache-2.0", 157),
    "mmagic/pconv": (write_pconv, 256, "Apache-2.0", 76),
}


def test_every_source_is_tested_and_a_choice():
    assert set(IMPORTED) == set(imports.SOURCES) == set(PUBLISHED)


@pytest.mark.parametrize("method", PUBLISHED)
def test_an_imported_network_fills_as_the_published_one(tmp_path, method, monkeypatch):
    monkeypatch.setitem(imports.SOURCES, "lama", imports.lama(2))  # small enough
    write, side, license, count = PUBLISHED[method]
    fill = write(tmp_path / "theirs")
    result = imported(method, f"file={tmp_path}/theirs", f"out={tmp_path}/run")
    assert result == {"run": f"{tmp_path}/run", "tensors": count, "license": license}
    generator, info = checkpoints.load_generator(str(tmp_path / "run"))
    x, mask = torch.rand(2, 3, side, side), torch.zeros(2, 1, side, side)
    mask[0, :, 8:40, 12:50] = mask[1, :, 20:33] = 1
    with torch.no_grad():
        ours, theirs = generator(x * (1 - mask), mask).image, fill(x, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ours.std() > 1e-3
    facts = read_run_json(str(tmp_path / "run"))["imported"]
    files = [p for p in sorted(tmp_path.rglob("*")) if p.suffix == ".pth" or p.name == "theirs"]
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}
    assert facts == {"from": method, "files": hashes, "license": license}
    assert info["imported"] == facts
    # It trains on from there.
    words = [f"model={info['model']['name']}", *(
        f"model.{k}={json.dumps(v)}" for k, v in info["model"].items() if k != "name")]  # fmt: skip
    words.append(f"objective={info['model']['name']}")
    model = asdict(compose("train", words).config.model)
    assert checkpoints.build_generator(model).state_dict().keys() == generator.state_dict().keys()


def changed(path, key, change):
    held = torch.load(path, weights_only=True)
    change(held[key])
    torch.save(held, path)


def left_over(state):
    state["encoder.9.weight"] = torch.zeros(1)


def other_shape(state):
    state["decoder.7.weight"] = torch.zeros(3, 32, 7, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (left_over, "holds 1 tensors that edgeconnect has not, first encoder.9.weight"),
        (other_shape, "decoder.7.weight, [3, 32, 7, 7] there"),
        (lambda s: s.pop("middle.3.conv_block.5.bias"), "middle.3.conv_block.5.bias, no such ten"),
    ],
)
def test_a_file_of_another_network_is_refused_and_nothing_is_written(tmp_path, change, message):
    write_edgeconnect(tmp_path / "theirs")
    changed(tmp_path / "theirs" / "InpaintingModel_gen.pth", "generator", change)
    with pytest.raises(ValueError) as refused:
        imported("edgeconnect", f"file={tmp_path}/theirs", f"out={tmp_path}/run")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_file_is_read_without_running_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, "theirs.pth")
    with pytest.raises(ValueError, match=r"theirs\.pth cannot be read as weights"):
        imported("mmagic/pconv", "file=theirs.pth", "out=run")
    assert not Path("ran").exists()


def test_a_file_named_by_its_hash_must_have_it(tmp_path):
    write_pconv(tmp_path / "theirs")
    digest = hashlib.sha256((tmp_path / "theirs").read_bytes()).hexdigest()
    for name, good in ((digest[:8], True), ("0" * 8, False)):
        path = (tmp_path / "theirs").rename(tmp_path / f"pconv_places-{name}.pth")
        if good:
            assert imported("mmagic/pconv", f"file={path}", f"out={tmp_path}/run")["tensors"] == 76
        else:
            with pytest.raises(ValueError, match=f"sha256 {digest[:8]}…: it is damaged"):
                imported("mmagic/pconv", f"file={path}", f"out={tmp_path}/other")
        path.rename(tmp_path / "theirs")


def test_a_published_file_is_read_from_its_address(tmp_path):
    write_pconv(tmp_path / "theirs.pth")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        words = (f"file={address}/theirs.pth", f"out={tmp_path}/run")
        assert imported("mmagic/pconv", *words)["tensors"] == 76
        with pytest.raises(ValueError, match=r"none\.pth cannot be read \(no such object\)"):
            imported("mmagic/pconv", f"file={address}/none.pth", f"out={tmp_path}/other")
        server.shutdown()


def test_a_run_is_not_overwritten(tmp_path):
    write_pconv(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"EdgeModel_gen\.pth cannot be read"):
        imported("edgeconnect", f"file={tmp_path}", f"out={tmp_path}/run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run already"):
        imported("mmagic/pconv", f"file={tmp_path}/theirs", f"out={tmp_path}/run")
    with pytest.raises(ConfigError, match="invalid value method=deepfill"):
        imported("deepfill", "file=x", "out=y")
