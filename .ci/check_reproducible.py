"""Check that another build, in another folder, gave the same wheel.

python .ci/check_reproducible.py FOLDER          its wheel has, bit for bit, the files of the installed package
python .ci/check_reproducible.py FOLDER OTHER    its wheel is, bit for bit, that of the other folder
"""

import sys
import zipfile
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path


def only(folder: str) -> Path:
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def members(wheel: Path) -> dict[str, tuple[object, ...]]:
    with zipfile.ZipFile(wheel) as packed:
        return {m.filename: (packed.read(m), m.date_time, m.external_attr) for m in packed.infolist()}


def check_installed(wheel: Path) -> None:
    installed = distribution("fastsoftmax")
    # RECORD differs: it lists the wheel's files, and pip adds those that it writes itself.
    files = {n: content for n, (content, *_) in members(wheel).items() if not n.endswith(("/", "/RECORD"))}
    differing = [n for n, content in files.items() if Path(installed.locate_file(n)).read_bytes() != content]
    if differing:
        sys.exit(f"{wheel.name} and what was built in another folder differ in {differing}")
    print(f"{wheel.name}: {len(files)} files are the same, bit for bit, as built in another folder")


def check_wheel(wheel: Path, other: Path) -> None:
    if (wheel.name, wheel.read_bytes()) != (other.name, other.read_bytes()):
        a, b = members(wheel), members(other)
        differing = sorted(n for n in a.keys() | b.keys() if a.get(n) != b.get(n))
        sys.exit(f"{wheel} and {other} differ in {differing or 'their name, order or packing'}")
    print(f"{wheel.name}: both builds have the SHA-256 {sha256(wheel.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    wheel, *others = map(only, sys.argv[1:])
    if others:
        check_wheel(wheel, *others)
    else:
        check_installed(wheel)
