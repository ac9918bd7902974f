"""Checks the licences of what this package depends on, extras included, as installed here.

    python scripts/licences.py

Fails (exit code 1) on a copyleft licence, and on one that the metadata does not name. A dependency
that is not installed here cannot be checked and is listed.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
# Tools of this repository; nothing of them reaches a user. CUDA's own packages are NVIDIA's.
LEFT_OUT = ("dev", "docs", "gpu")
PERMISSIVE = {
    *("apache-2.0", "mit", "mit-cmu", "bsd", "bsd-2-clause", "bsd-3-clause", "0bsd", "isc"),
    *("psf-2.0", "zlib", "cc0-1.0", "unlicense", "hpnd"),
}
# As written in metadata that does not use SPDX names.
NAMES = {
    "apache software license": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "apache license, version 2.0": "apache-2.0",
    "apache 2.0": "apache-2.0",
    "bsd license": "bsd",
    "bsd 3-clause": "bsd-3-clause",
    "3-clause bsd license": "bsd-3-clause",
    "mit license": "mit",
    "isc license (iscl)": "isc",
    "python software foundation license": "psf-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "mpl-2.0",
}
# Looked at one by one: distribution -> why it will do.
KNOWN = {
    "certifi": "MPL-2.0 is copyleft by file; we ship and change none of its files",
    "tqdm": "MPL-2.0 AND MIT: as certifi",
    "namex": "Apache-2.0 by the LICENSE file that it brings; the metadata names none",
}


_YES = "permissive"


def licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence as an SPDX expression, as far as the metadata tells; "" if it does not."""
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    found = [NAMES.get(c.split(" :: ")[-1].lower(), c) for c in classifiers]
    text = (metadata.get("License") or "").strip()
    if not found and text and "\n" not in text:
        found = [NAMES.get(text.lower(), text)]
    # Of several classifiers each may bind.
    return " AND ".join(found)


def permissive(expression: str) -> bool:
    """Whether one may choose permissive licences alone: `OR` needs one side, `AND` both."""
    # `(a OR b) AND c` innermost first: what is between brackets becomes one word, yes or no.
    while (
        inner := re.sub(r"\(([^()]*)\)", lambda m: f" {_flat(m[1])} ", expression)
    ) != expression:
        expression = inner
    return _flat(expression) == _YES


def _flat(expression: str) -> str:
    fine = any(
        all(term.strip().lower() in {*PERMISSIVE, _YES} for term in re.split(r"\bAND\b", choice))
        for choice in re.split(r"\bOR\b", expression)
    )
    return _YES if fine else "no"


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(t for e in extras if e not in LEFT_OUT for t in extras[e])]
    found = [Requirement(text) for text in texts]
    return [r for r in found if r.marker is None or r.marker.evaluate()]


def dependencies() -> tuple[dict[str, importlib.metadata.Distribution], set[str]]:
    """All that is needed, directly or not, by name, and what of it is not installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    missing: set[str] = set()
    waiting = [(canonicalize_name(r.name), frozenset(r.extras)) for r in direct()]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.add(name)
            continue
        found[name] = distribution
        for requirement in map(Requirement, distribution.requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (*extras, "")):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found, missing


def main() -> int:
    """Prints what is wrong; the exit code."""
    found, missing = dependencies()
    wrong = []
    for name, distribution in sorted(found.items()):
        expression = licence(distribution.metadata)
        if name not in KNOWN and not permissive(expression):
            wrong.append(f"{name} {distribution.version}: {expression or 'names no licence'}")
    print(f"{len(found)} dependencies, {len(found) - len(wrong)} under permissive licences")
    for name in sorted(set(KNOWN) & set(found)):
        print(f"  by hand: {name}: {KNOWN[name]}")
    if missing:
        print(f"  not installed, not checked: {', '.join(sorted(missing))}")
    for line in wrong:
        print(f"  NOT ACCEPTED: {line}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
