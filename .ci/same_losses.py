"""Train 100 steps with another commit's code and with this one's; compare the losses bit for bit.

    python .ci/same_losses.py BASE [key=value ...]

BASE: the commit to compare with. Further words go to both trainings (the last of a key wins), for
example `objective=musical_paper weights=random max_images=40`. One process, one thread, CPU.
Exit status: 0 equal, 1 not.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.data.photographs import write_crops

ROOT = Path(__file__).resolve().parent.parent
RECIPE = (
    "experiment=quickstart model.width=0.1 data.crop=64 batch=2 max_images=200 processes=1 "
    "threads=1 objective.style=25 objective.perceptual=0.001 validate.every_images=0 "
    "validate.pairs=2 validate.size=64 log.every=1 tracking.enabled=false"
)


def pipeline(code: Path, *words: str) -> None:
    """`python -m pipeline words...` with the code in folder `code`."""
    env = {k: v for k, v in os.environ.items() if k != "LACUNA_CONF"}
    env |= {"PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=code, env=env, check=True)


def losses(code: Path, folder: Path, words: list[str]) -> list[str]:
    """Lines of steps.jsonl of a training with the code in `code`."""
    given = {word.partition("=")[0] for word in words}
    given |= {"model.width"} & {f"{name}.width" for name in given}  # another model's options
    recipe = [word for word in RECIPE.split() if word.partition("=")[0] not in given]
    data = f"data.url={folder / 'shards'}"
    run = folder / f"run-{code.name}"
    pipeline(code, "train", *recipe, data, f"run={run}", *words)
    return (run / "steps.jsonl").read_text().splitlines()


def main(base: str, words: list[str]) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_crops(folder / "photographs")
        pipeline(ROOT, "shard", f"source={folder / 'photographs'}", f"out={folder / 'shards'}")
        code = folder / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(code), base], check=True)
        try:
            before = losses(code, folder, words)
        finally:
            subprocess.run([*git, "remove", "--force", str(code)], check=True)
        after = losses(ROOT, folder, words)
    for number, (one, other) in enumerate(zip(before, after), start=1):
        if one != other:
            print(f"line {number} of steps.jsonl differs\n  {base}: {one}\n  here: {other}")
            return 1
    if len(before) != len(after):
        print(f"{len(before)} lines of steps.jsonl with {base}, {len(after)} here")
        return 1
    print(f"{len(after)} lines of steps.jsonl are identical")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
