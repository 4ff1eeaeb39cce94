"""Images larger than any that was trained on, within the memory of a laptop."""

import subprocess
import sys
from pathlib import Path

import pytest

# A hole across the whole width makes the widest blocks; how high it is changes the time alone.
FILL = """
import resource, torch
from models import GENERATORS
from models.inpainter import Inpainter

torch.set_num_threads(1)
inpainter = Inpainter(GENERATORS["musical"](order="{order}")).eval()
image, mask = torch.rand(1, 3, {side}, {side}), torch.zeros(1, 1, {side}, {side})
mask[:, :, {side} // 2 : {side} // 2 + 8] = 1
loaded = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
with torch.no_grad():
    inpainter(image, mask)
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024 - loaded)  # getrusage counts what the parent had used, too
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "side", "gib"), [("paper", 512, 1), ("released", 512, 1), ("paper", 1024, 4)]
)
def test_musical_fills_a_large_photograph_within_its_memory(order, side, gib):
    done = subprocess.run(
        [sys.executable, "-c", FILL.format(order=order, side=side)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 16 * side**2 < int(done.stdout) < gib << 30  # above the loaded network
