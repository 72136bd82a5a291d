"""Give an environment what a wheel asks for and nothing else, by links to packages that are installed here.

Run as `python .ci/declared.py WHEEL SITE_PACKAGES`. A dependency that the wheel does not declare is then missing, as it
would be for its users, and nothing is downloaded.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path
from zipfile import Path as PathInZip
from zipfile import ZipFile

from packaging.requirements import Requirement


def of_wheel(wheel: Path) -> Distribution:
    """The distribution in a wheel."""
    (folder,) = (path for path in PathInZip(ZipFile(wheel)).iterdir() if path.name.endswith(".dist-info"))
    return PathDistribution(folder)


def needed(asking: Distribution) -> dict[str, Distribution]:
    """What a distribution asks for, and what that asks for; what is not installed here is left out."""
    found: dict[str, Distribution] = {}
    waiting = [(asking, "")]
    seen: set[tuple[str, str]] = set()
    while waiting:
        one, extra = waiting.pop()
        for requirement in map(Requirement, one.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            try:
                found[requirement.name] = distribution(requirement.name)
            except PackageNotFoundError:
                continue  # pip says so afterwards
            new = {(requirement.name, wanted) for wanted in ("", *requirement.extras)} - seen
            seen |= new
            waiting += [(found[name], wanted) for name, wanted in sorted(new)]
    return found


def link(one: Distribution, site_packages: Path) -> None:
    """Link the files and folders of a distribution that lie in site-packages."""
    for name in sorted({file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}):
        target = site_packages / name
        if not target.exists():
            target.symlink_to(Path(str(one.locate_file(name))).resolve())


def main(wheel: str, site_packages: str) -> None:
    """Link all that the wheel needs."""
    found = needed(of_wheel(Path(wheel)))
    for one in found.values():
        link(one, Path(site_packages))
    print(f"{len(found)} packages, declared by the wheel or by each other")


if __name__ == "__main__":
    main(*sys.argv[1:])
