"""What is installed with the project may be used under licences that suit MIT."""

import re
from importlib.metadata import Distribution, distributions

COPYLEFT = re.compile(r"\bA?GPL|(?<!Lesser )General Public License|Affero|\bSSPL|Server Side Public")
LESSER = re.compile(r"\bLGPL[\w.+-]*|Lesser General Public License[^;,]*")


def licence(distribution: Distribution) -> str:
    metadata = distribution.metadata
    named = [metadata.get("License-Expression"), (metadata.get("License") or "").partition("\n")[0]]
    classifiers = [text for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]
    return "; ".join(text for text in [*named, *classifiers] if text)


def test_no_dependency_is_under_gpl_or_agpl():
    found = {distribution.name: licence(distribution) for distribution in distributions()}
    assert "celery" in found
    assert not {name: text for name, text in found.items() if COPYLEFT.search(LESSER.sub("", text))}


def test_every_dependency_names_its_licence():
    assert not [distribution.name for distribution in distributions() if not licence(distribution)]


def test_a_gpl_would_be_noticed():
    assert COPYLEFT.search("GPL-3.0-or-later")
    assert COPYLEFT.search("License :: OSI Approved :: GNU Affero General Public License v3")
    assert not COPYLEFT.search(LESSER.sub("", "LGPL-3.0-only; GNU Lesser General Public License v3 (LGPLv3)"))
