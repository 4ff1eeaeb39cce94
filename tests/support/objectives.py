"""The loss of a method on a given output of its generator."""

from importlib import import_module
from types import SimpleNamespace

import torch
from torch import nn

from models import Prediction
from pipeline.config.compose import compose
from pipeline.training.method import Batch
from pipeline.training.network import TrainableNetwork


class Given(nn.Module):
    """A generator that returns `raw`, and other features for an image without a hole."""

    def __init__(self, raw, features=(), targets=()):
        super().__init__()
        self.given = raw, features, targets

    def forward(self, erased, mask):
        raw, features, targets = self.given
        maps = features if mask.any() else targets
        return Prediction(raw, {str(i): tensor for i, tensor in enumerate(maps)})


def objective(*words):
    return compose("train", words).config.objective


def method_of(given, generator, vgg=None, judge=None):
    """A method of objective `given` over these networks, outside any engine."""
    made = import_module(f"pipeline.training.methods.{given.method}").METHOD
    method = object.__new__(made)
    method.objective, method.features, method.generator = given, vgg, generator
    method.pretrained, method.fixed = {}, []
    method.config = SimpleNamespace(objective=given)
    named = {"generator": generator, "discriminator": judge}
    method.players = [TrainableNetwork(n, m, m, None) for n, m in named.items() if m is not None]
    return method


def losses_of(given, image, mask, generator, vgg=None, judge=None):
    """The total of the generator's loss, and the values that are logged."""
    loss = next(method_of(given, generator, vgg, judge).losses(Batch(image, mask)))
    return loss.total() if loss.values else torch.zeros(()), loss.values
