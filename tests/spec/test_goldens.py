"""What users read when a spec is wrong, word for word. `UPDATE_GOLDENS=1 pytest tests/spec/test_goldens.py` writes the texts anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.tests import load_tests

HERE = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("name", sorted(p.stem for p in HERE.glob("*.yaml")))
def test_errors_read_as_agreed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    with pytest.raises(SpecError) as caught:
        load_tests(f"{name}.yaml") if name.startswith("tests_") else load_spec(f"{name}.yaml")
    golden = HERE / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(f"{caught.value}\n")
    assert f"{caught.value}\n" == golden.read_text()
