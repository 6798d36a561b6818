"""test_fuzz_corpus - what the fuzzer keeps, and what once broke something, is without fault"""

import zipfile
from pathlib import Path

import pytest
from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    with zipfile.ZipFile(CORPUS / f"{name}.zip") as corpus:
        for file in corpus.namelist():
            try:
                TARGETS[name](corpus.read(file))
            except Exception as error:
                error.add_note(f"{name}: {file}")
                raise
