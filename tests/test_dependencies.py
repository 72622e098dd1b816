"""docs/dependencies.md lists what pyproject.toml asks for, with the licences that these state."""

import importlib.metadata
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TABLE, _, _ = (ROOT / "docs" / "dependencies.md").read_text().partition("\n## ")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| package")
]
# What a package that states no SPDX expression says instead.
WORDS = {
    "Apache-2.0": r"apache",
    "BSD-3-Clause": r"bsd",
    "MIT": r"\bmit\b",
}


def name_of(requirement: str) -> str:
    """A requirement without versions, extras and markers."""
    return re.match(r"[\w.-]+", requirement)[0]


def asked() -> dict[str, set[str]]:
    """The extras that ask for each package; none if it is always there."""
    found = {name_of(each): set() for each in PROJECT["dependencies"]}
    for extra, requirements in PROJECT["optional-dependencies"].items():
        for each in requirements:
            found.setdefault(name_of(each), set()).add(extra)
    return found


def test_every_direct_dependency_has_a_row_and_every_row_a_dependency():
    listed = {name: {x.strip() for x in extras.split(",") if x} for name, extras, _, _ in ROWS}
    assert listed == asked()
    assert len(listed) == len(ROWS) > 20


@pytest.mark.parametrize(("name", "licence"), [(row[0], row[2]) for row in ROWS])
def test_the_licence_is_the_one_that_the_package_states(name, licence):
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    stated = package.metadata.get("License-Expression")
    if stated:
        assert licence in re.split(r" AND | OR |[()]", stated)
        return
    texts = [package.metadata.get("License") or "", *package.metadata.get_all("Classifier", [])]
    texts += [
        file.read_text()[:400] for file in package.files or () if "LICEN" in file.name.upper()
    ]
    said = " ".join(text for text in texts if "Programming" not in text).lower()
    assert re.search(WORDS[licence], said), said[:300]


def test_every_row_says_why():
    assert all(len(row) == 4 and len(row[3]) > 3 for row in ROWS)
