"""Check that an sdist and a wheel contain all that they must and nothing else, that the wheel is small, and that
the changelog has the version.

python .ci/check_dist.py FOLDER
"""

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

WHEEL_BYTES = 3_000_000

SDIST = (
    *(r"PKG-INFO", r"pyproject\.toml", r"CMakeLists\.txt", r"CMakePresets\.json"),
    *(r"README\.md", r"LICENSE", r"CHANGELOG\.md", r"CITATION\.cff", r"CONTRIBUTING\.md", r"SECURITY\.md"),
    *(r"bench/\w+\.py", r"bench/limits\.c", r"bench/(ACCURACY|NOTES|RESULTS)\.md", r"bench/(RESULTS\w*|BUSY)\.png"),
    r"cpp/([\w/]+)\.(cpp|hpp|py)",
    r"docs/(\w+/)*\w+\.(css|md|png|py|rst|svg|toml)",
    r"python/fastsoftmax/(\w+\.pyi?|py\.typed)",
    r"tests/[\w/]+\.(c|cpp|json|py)",
)
WHEEL = (
    r"fastsoftmax/\w+\.py",
    *(r"fastsoftmax/__init__\.pyi", r"fastsoftmax/_core\.pyi", r"fastsoftmax/reference\.pyi"),
    r"fastsoftmax/py\.typed",
    r"fastsoftmax/_core\.[\w.-]+\.(so|pyd)",
    r"fastsoftmax-[\w.]+\.dist-info/(METADATA|RECORD|WHEEL|licenses/LICENSE)",
)


def check(name: str, files: Iterable[str], allowed: tuple[str, ...]) -> None:
    files = set(files)
    extra = [file for file in files if not re.fullmatch("|".join(allowed), file)]
    missing = [pattern for pattern in allowed if not any(re.fullmatch(pattern, file) for file in files)]
    if extra or missing:
        sys.exit(f"{name}: unexpected files: {sorted(extra)}; no file for: {missing}")
    print(f"{name}: {len(files)} files, as expected")


def main(folder: Path) -> None:
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        members = [member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()]
        root = sdist.name.removesuffix(".tar.gz")
        changelog = archive.extractfile(f"{root}/CHANGELOG.md").read().decode()
    check(sdist.name, members, SDIST)
    version = root.removeprefix("fastsoftmax-")
    if f"\n## [{version}]" not in changelog:
        sys.exit(f"CHANGELOG.md has no section for {version}, the version in pyproject.toml")
    with zipfile.ZipFile(wheel) as packed:
        check(wheel.name, (name for name in packed.namelist() if not name.endswith("/")), WHEEL)
    size = wheel.stat().st_size
    if size > WHEEL_BYTES:
        sys.exit(f"{wheel.name} has {size:,} bytes, more than {WHEEL_BYTES:,}")
    print(f"{wheel.name}: {size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
