"""The reference is what the models say, whole, and its examples are valid."""

from __future__ import annotations

import re
from pathlib import Path

from beam_pipelines.spec.load import parse_spec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.reference import models_in, reference_markdown
from beam_pipelines.spec.shape import fields_of
from beam_pipelines.spec.tests import SpecTests

ROOT = Path(__file__).resolve().parents[2]
AROUND = {
    "contract": "{key: [id], event_time: created, columns: {id: {type: int64}, created: {type: timestamp}, dep_time: {type: int32}, dep_delay: {type: int32}, "
    "dest: {type: string}, carrier: {type: string}, origin: {type: string}, distance: {type: int32}, air_time: {type: int32}, minute: {type: int8}}}",
    "sources": "{batch: [{files: a, format: csv}]}",
    "lookups": "{airports: {files: a, format: csv, key: faa}, airlines: {files: a, format: csv, key: carrier}}",
    "sinks": "[{from: rows, csv: {path: out}}]",
}


def test_the_page_in_the_docs_is_what_the_models_say() -> None:
    """After a change of a model: python -c "from beam_pipelines.spec.reference import *; print(reference_markdown(), end='')" > docs/spec-reference.md"""
    assert (ROOT / "docs" / "spec-reference.md").read_text() == reference_markdown()


def test_every_field_of_every_model_is_there_and_described() -> None:
    text = reference_markdown()
    for model in [*models_in(PipelineSpec), *models_in(SpecTests)[1:]]:
        for name, info in fields_of(model).items():
            assert f"| `{name}` |" in text
            assert info.description or name == "type", f"{model.__name__}.{name} has no description"


def test_its_links_lead_to_its_sections() -> None:
    text = reference_markdown()
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\s-]", "", t).strip().lower().replace(" ", "-") for t in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    assert len(titles) == len(set(titles))


def test_its_examples_validate() -> None:
    examples = [e for e in re.findall(r"```yaml\n(.+?)```", reference_markdown(), re.DOTALL) if not e.startswith("tests:")]
    assert len(examples) >= 9
    for example in examples:
        own = {line.split(":")[0] for line in example.splitlines() if line[:1].isalpha()}
        head = "" if "spec" in own else "spec: 1\npipeline: p\n"
        rest = {} if "spec" in own else {k: v for k, v in AROUND.items() if k not in own}
        parse_spec(head + "".join(f"{k}: {v}\n" for k, v in rest.items()) + example, path="reference.yaml")
