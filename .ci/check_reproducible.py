"""Check that the package in this environment, built from the tree, is bit for bit the wheel that was built elsewhere.

python .ci/check_reproducible.py FOLDER    (of one wheel)
"""

import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path


def main(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    installed = distribution("fastsoftmax")
    with zipfile.ZipFile(wheel) as packed:
        # RECORD names what is in the wheel, and pip adds what it writes beside it.
        names = [name for name in packed.namelist() if not name.endswith(("/", "/RECORD"))]
        differing = [n for n in names if Path(installed.locate_file(n)).read_bytes() != packed.read(n)]
    if differing:
        sys.exit(f"{wheel.name} and what was built in another folder differ in {differing}")
    print(f"{wheel.name}: {len(names)} files are the same, bit for bit, as built in another folder")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
