"""Batch normalization over all ranks on CPU; torch's SyncBatchNorm "only works with GPU modules".

Statistics are combined as Chan, Golub and LeVeque (1979) combine variances: each rank's mean and
sum of squared deviations, in one all-gather; the backward needs one all-reduce. A single process
uses it too, because torch's channels-last kernel sums less exactly: gradients of MSA-Net differed
by 8e-4 from those of torch's contiguous kernel, with these sums by 4e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.layers import frozen_statistics


class _SyncNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias with mean and var over ranks, N, H and W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        count = x.numel() // x.shape[1]
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        local = torch.cat((mean, var * count, mean.new_full((1,), count)))
        ranks = [local]
        if _world_size() > 1:
            ranks = [torch.empty_like(local) for _ in range(_world_size())]
            dist.all_gather(ranks, local)
        means, deviations, counts = torch.stack(ranks).split((x.shape[1], x.shape[1], 1), 1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = (deviations + counts * (means - mean) ** 2).sum(0) / total
        y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, mean, var, total = ctx.saved_tensors
        # In evaluation mode torch's kernel returns both sums in one pass, and the gradient for
        # constant statistics; the statistics' own part is one multiply-add per channel.
        invstd = (var + ctx.eps).rsqrt()
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, mean, invstd, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat((dweight, dbias)).float()
        if _world_size() > 1:
            dist.all_reduce(sums)
        sum_xhat, sum_one = sums.chunk(2)
        slope = -weight * invstd * invstd * sum_xhat / total
        offset = -weight * invstd * sum_one / total - slope * mean
        dx = torch.addcmul(dx + offset.view(1, -1, 1, 1), x, slope.view(1, -1, 1, 1))
        return dx.to(x.dtype), dweight, dbias, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all ranks, with the same state-dict keys."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        y, mean, var, total = _SyncNorm.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None and self.running_var is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (total / (total - 1)), momentum)
        return y


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is such a sum again, and so is that one's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        if _world_size() > 1:
            dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(gradients[0])


def _plain(layer: Any, x: Tensor) -> Tensor:
    """Batch norm over ranks in plain operations, which autograd differentiates any number of times.

    The kernels of both synchronized norms are differentiated once. Running statistics are kept.
    """
    mean, var = layer.running_mean, layer.running_var
    if layer.training:
        sums = _Sum.apply(torch.cat((x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]]))))
        mean = sums[:-1] / sums[-1]
        deviations = (x - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3))
        var = _Sum.apply(deviations) / sums[-1]
    scale = layer.weight * (var + layer.eps).rsqrt()
    return (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


@contextmanager
def differentiable_twice(module: nn.Module) -> Iterator[None]:
    """Within the context, batch norms of `module` may be part of a gradient that is differentiated.

    They normalize as before, by this batch while they train, and keep their running statistics.
    """
    norms: list[Any] = [
        layer
        for layer in module.modules()
        if isinstance(layer, (SyncBatchNorm2d, nn.SyncBatchNorm))
    ]
    with frozen_statistics(module) if module.training else nullcontext():
        for layer in norms:
            layer.forward = partial(_plain, layer)
        try:
            yield
        finally:
            for layer in norms:
                del layer.forward


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def synchronize(module: nn.Module, device_type: str) -> nn.Module:
    """Replace every BatchNorm in `module` by a synchronized one that shares its tensors."""
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            norm = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            norm.training = child.training
            setattr(module, name, norm)
        else:
            synchronize(child, device_type)
    return module
