"""Cut the photographs that the showcase model is trained on: `python .ci/showcase.py OUT`.

Photographs come from installed Python packages and from Debian packages, which are downloaded
(`apt-get download`) and unpacked into OUT/packages, not installed. OUT/photographs/<split> then
holds the crops that `shard` reads.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from pipeline.data import photographs  # noqa: E402

LIST = ROOT / "pipeline/quickstart/showcase/photographs.tsv"
PYTHON = ("matplotlib", "skimage", "sklearn")


def unpack(package: str, out: Path) -> Path:
    """Return the folder of a Debian package's files, downloaded where it is missing."""
    folder = out / "packages" / package
    if not folder.exists():
        downloads = out / "downloads" / package
        downloads.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=downloads, check=True)
        (archive,) = downloads.glob("*.deb")
        folder.parent.mkdir(exist_ok=True)
        subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
    return folder


def main(out: Path) -> None:
    shutil.rmtree(out / "photographs", ignore_errors=True)
    counts: Counter[str] = Counter()
    with LIST.open() as rows:
        for i, row in enumerate(csv.DictReader(rows, delimiter="\t")):
            package = row["package"]
            place = files(package) if package in PYTHON else unpack(package, out)
            with place.joinpath(row["file"]).open("rb") as stream:
                image = Image.open(stream).convert("RGB")
            folder = out / "photographs" / row["split"]
            folder.mkdir(parents=True, exist_ok=True)
            for n, crop in enumerate(photographs.crops(image)):
                crop.save(folder / f"{i:02d}-{n:03d}.jpg", quality=95, subsampling=0)
                counts[row["split"]] += 1
    print(dict(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
