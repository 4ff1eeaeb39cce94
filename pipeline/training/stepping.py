"""One step of all optimizers, or of none, and what happens on a GPU meanwhile.

If a gradient of any network is not finite, weights, moments and averages stay and running
statistics are restored. On a GPU the device decides that, for fused optimizers, so that the host
launches the next step without waiting. Adadelta and ZeRO's vote have no such form: they wait.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.training.network import TrainableNetwork
from pipeline.training.progress import TrainState


def step(
    players: Sequence[TrainableNetwork], decay: float, clip: float | None, on_device: bool
) -> tuple[Tensor, list[Tensor]]:
    """Step every optimizer unless a gradient is not finite.

    Returns whether they stepped, a scalar bool on the device, and each network's gradient norm
    before clipping. on_device: the host does not read that, if all optimizers are fused.
    """
    norms = []
    for player in players:
        if player.scaler is not None:
            player.scaler.unscale_(player.optimizer)
        grads = [p.grad for p in player.module.parameters() if p.grad is not None]
        norms.append(nn.utils.get_total_norm(grads))
    finite = torch.isfinite(torch.stack(norms)).all()
    on_device = on_device and all(p.optimizer.defaults.get("fused") for p in players)
    for player, norm in zip(players, norms, strict=True):
        if on_device or finite:
            if clip is not None:
                nn.utils.clip_grads_with_norm_(list(player.module.parameters()), clip, norm)
            if on_device:
                player.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            player.optimizer.step()
            if on_device:
                player.restore_buffers(~finite)
            player.average(decay, finite if on_device else None)
        else:
            player.restore_buffers()
        if player.scaler is not None:
            player.scaler.update()
        player.optimizer.zero_grad(set_to_none=True)
    return finite, norms


def lowers_scale(players: Sequence[TrainableNetwork], device: torch.device) -> Tensor:
    """Whether a skipped step only lowers fp16's loss scale (scalar bool): each is above 1."""
    one = torch.ones((), device=device)
    scales = [t.scaler.scale(one) for t in players if t.scaler is not None]
    if len(scales) < len(players):
        return torch.zeros((), dtype=torch.bool, device=device)
    return (torch.stack(scales) >= 1).all()


class Skips:
    """Which steps were skipped: known at once on a CPU, on a GPU after the next step's launch."""

    def __init__(self, state: TrainState, late: int) -> None:
        """late: steps that need not be known yet."""
        self.state, self.late, self.in_a_row = state, late, 0
        self._stepped = True
        self._unread: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def add(self, stepped: Tensor, lowers_scale: Tensor) -> None:
        """Add a step: scalar bools on the device, of `Engine.step` and `lowers_scale`."""
        flags, event = torch.stack((stepped, lowers_scale)), None
        if flags.is_cuda:
            flags, event = flags.to("cpu", non_blocking=True), torch.cuda.Event()
            event.record()
        self._unread.append((flags, event))

    def read(self, now: bool) -> bool:
        """Count the steps that are known by now, or all; True if the last one was taken."""
        while len(self._unread) > (0 if now else self.late):
            flags, event = self._unread.popleft()
            if event is not None:
                event.synchronize()
            self._stepped, lowers_scale = flags.tolist()
            self.state.skipped += not self._stepped
            if self._stepped:
                self.in_a_row = 0
                self.state.metrics = {}  # they belong to the weights before this step
            elif not lowers_scale:  # with fp16 normal while the scale falls: not counted
                self.in_a_row += 1
        return self._stepped


class Upload:
    """Copy batches to a GPU on a stream of their own, while the step before runs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors on the GPU; on another device they stay where they are."""
        if self.stream is None:
            return tensors
        with torch.cuda.stream(self.stream):
            copies = tuple(t.pin_memory().to(self.device, non_blocking=True) for t in tensors)
        running = torch.cuda.current_stream(self.device)
        running.wait_stream(self.stream)
        for copy in copies:
            copy.record_stream(running)
        return copies


def choose_algorithms(deterministic: bool) -> None:
    """Choose CUDA's algorithms: those that repeat their bits, or the fastest, with TF32.

    Where an operation has no deterministic form, torch warns.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not deterministic
