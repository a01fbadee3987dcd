"""Loading specs: the design's example, parameters, paths, contracts in files, and that nothing heavy is imported."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.spec.load import LoadedSpec, load_spec, parse_spec
from beam_pipelines.spec.problems import SpecErrors

ROOT = Path(__file__).resolve().parents[2]
FLIGHTS = Path(__file__).parent / "flights.yaml"
SMALL = """spec: 1
pipeline: small
parameters: {PARAMETERS}
contract: {key: [id], event_time: at, columns: {id: {type: int64}, at: {type: timestamp}, n: {type: int32}}}
sources: {batch: [{files: in.csv, format: csv}]}
SECTIONS
sinks: [{from: rows, parquet: {path: "out"}}, {from: dead_letters, jsonl: {path: "gs://bucket/dead.jsonl"}}]
"""


def small(sections: str = "", parameters: str = "", **options: object) -> LoadedSpec:
    text = SMALL.replace("SECTIONS", sections).replace("PARAMETERS", parameters)
    return parse_spec(text, path="/specs/small.yaml", **options)  # type: ignore[arg-type]


def problems(sections: str = "", parameters: str = "", **options: object) -> str:
    with pytest.raises(SpecErrors) as caught:
        small(sections, parameters, **options)
    return str(caught.value)


def test_the_designs_example_validates() -> None:
    loaded = load_spec(FLIGHTS)
    assert list(loaded.columns)[-3:] == ["scheduled_departure", "dest_name", "speed_mph"]
    assert (loaded.columns["dest_name"], loaded.columns["speed_mph"], loaded.columns["tailnum"]) == ("VARCHAR", "DOUBLE", "VARCHAR")
    assert loaded.spec.sinks[0].destination.path == str(FLIGHTS.parent / "lake" / "flights")
    assert loaded.spec.sources.batch[0].patterns == (str(FLIGHTS.parent / "data" / "flights*.csv"),)
    assert loaded.state == str(FLIGHTS.parent / ".beam_pipelines" / "flights")
    assert any("raw bytes of dead letters are left out" in note for note in loaded.notes)
    assert loaded.spec.hmac_reference == "env:BEAM_PIPELINES_HMAC_KEY"


def test_a_loaded_spec_travels_between_processes() -> None:
    loaded = load_spec(FLIGHTS)
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_validation_loads_neither_beam_nor_pyarrow_nor_numpy() -> None:
    code = f"from beam_pipelines.spec.load import load_spec; load_spec({str(FLIGHTS)!r}); import sys; print({{'apache_beam', 'pyarrow', 'numpy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout == "set()\n"


def test_parameters_come_from_the_call_then_the_file_then_the_default(tmp_path: Path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(
        SMALL.replace("SECTIONS", 'description: "${a} ${b} ${c}"').replace(
            "PARAMETERS", "a: {default: x}, b: {default: x}, c: {default: x}"
        )
    )
    values = tmp_path / "values.yaml"
    values.write_text("a: file\nb: file\n")
    loaded = load_spec(spec, set_={"a": "call"}, parameters_file=values)
    assert loaded.spec.description == "call file x"
    assert loaded.parameters == {"a": "call", "b": "file", "c": "x"}
    values.write_text('{"a": "json"}')
    assert load_spec(spec, parameters_file=values).spec.description == "json x x"


def test_a_text_that_is_one_parameter_takes_its_type() -> None:
    sections = 'thresholds: {dead_letters: "${share}"}\ndeduplicate: {within: "${horizon}"}\nchecks: [{name: c, expr: "n > ${least}"}]'
    parameters = "share: {type: float, default: 0.5}, horizon: {type: duration}, least: {type: int, default: 3}"
    loaded = small(sections, parameters, set_={"horizon": "2d", "least": "7", "share": "0.25"})
    assert loaded.spec.thresholds.dead_letters == 0.25
    assert loaded.spec.deduplicate is not None
    assert loaded.spec.deduplicate.within == 2 * 86_400_000_000
    assert loaded.spec.checks[0].expr == "n > 7"


def test_escaped_references_are_plain_text() -> None:
    assert small('description: "$${a} and $5 and $$"').spec.description == "${a} and $5 and $$"


@pytest.mark.parametrize(
    ("sections", "parameters", "set_", "says"),
    [
        ("", "", {"x": "1"}, "--set x: unknown parameter 'x'; the spec declares no parameters"),
        ("", "lake: {default: a}", {"lak": "1"}, "--set lak: unknown parameter 'lak'; did you mean 'lake'? Known: lake."),
        ("", "n: {type: int}", {}, "small.yaml:3:14: parameters.n: the parameter has no value; set it with --set n=VALUE"),
        ("", "n: {type: int}", {"n": "1.5"}, "--set n: parameter 'n': got '1.5'; expected an integer"),
        ("", "b: {type: boolean}", {"b": "yes"}, "got 'yes'; expected true or false"),
        ("", "d: {type: duration}", {"d": "2 days"}, "expected a duration such as 15m or 2d"),
        (
            "",
            "lake: {type: path, default: lake}",
            {"lake": ""},
            "--set lake: parameter 'lake': got an empty path; write . for the spec's folder",
        ),
        ("", "s: {choices: [a, b]}", {"s": "c"}, "got 'c'; expected one of a, b"),
        ("", "s: {regex: '\\d+'}", {"s": "c"}, "expected a text matching \\d+"),
        ("", "n: {type: int, default: x}", {}, "parameters.n.default: got 'x'; expected an integer"),
        ("", "n: {type: int, choices: [a], default: 1}", {}, "'choices' is for parameters of type string and path"),
        ("", "n: {regex: '[', default: x}", {}, "parameters.n.regex: not a regular expression"),
        (
            'description: "a ${lak} b"',
            "lake: {default: a}",
            {},
            "small.yaml:6:17: description: unknown parameter 'lak'; did you mean 'lake'?",
        ),
        ('description: "a ${lake"', "lake: {default: a}", {}, "needs a parameter's name and '}'"),
    ],
)
def test_wrong_parameters_are_named_at_their_place(sections: str, parameters: str, set_: dict[str, str], says: str) -> None:
    assert says in problems(sections, parameters, set_=set_)


def test_relative_paths_belong_to_the_spec_and_urls_stay() -> None:
    loaded = small(
        'state: state\nlookups: {a: {files: [x.csv, "s3://b/y.csv"], format: csv, key: k}}\nhmac_key: "file:keys/h"\n'
        'description: "${place}"',
        "place: {type: path, default: p}",
    )
    assert loaded.spec.state == "/specs/state"
    assert loaded.spec.lookups["a"].patterns == ("/specs/x.csv", "s3://b/y.csv")
    assert loaded.spec.hmac_key == "file:/specs/keys/h"
    assert loaded.spec.description == "/specs/p"
    assert [s.destination.path for s in loaded.spec.sinks] == ["/specs/out", "gs://bucket/dead.jsonl"]


def _split(tmp_path: Path, contract: str) -> Path:
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "c.yaml").write_text(contract)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "spec: 1\npipeline: p\ncontract: {file: contracts/c.yaml}\nsources: {batch: [{files: a, format: csv}]}\nsinks: [{from: rows, csv: {path: o}}]\n"
    )
    return spec


def test_a_contract_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    spec = _split(tmp_path, "columns:\n  id: {type: int64}\n")
    assert load_spec(spec).columns == {"id": "BIGINT"}


def test_errors_of_a_contracts_file_point_into_it(tmp_path: Path) -> None:
    spec = _split(tmp_path, "columns:\n  id: {type: int46}\n  b: {type: boolean, expr: idd > 1}\n")
    with pytest.raises(SpecErrors) as caught:
        load_spec(spec)
    assert str(caught.value.problems[0]).startswith(f"{tmp_path}/contracts/c.yaml:2:14: contract.columns.id.type: type 'int46'")


def test_a_contracts_file_that_is_not_there_is_an_error_at_its_name(tmp_path: Path) -> None:
    spec = _split(tmp_path, "columns: {id: {type: int64}}")
    spec.write_text(spec.read_text().replace("c.yaml", "d.yaml"))
    with pytest.raises(SpecErrors, match=r"spec\.yaml:3:18: contract\.file: .*d\.yaml: there is no such file\. Did you mean '.*c\.yaml'"):
        load_spec(spec)


def test_a_spec_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text("spec: 1")
    with pytest.raises(SpecError, match=r"there is no such file\. Did you mean '.*orders\.yaml'"):
        load_spec(tmp_path / "order.yaml")


def test_all_problems_travel_between_processes_and_stay_sorted() -> None:
    with pytest.raises(SpecErrors) as caught:
        small('checks: [{name: c, expr: "m > 1"}]\ndeduplicate: {order_by: x}')
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.problems == caught.value.problems
    assert [p.line for p in again.problems] == [6, 7]


def test_a_function_that_is_not_in_its_module_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "mine" / "enrich.py").write_text("def add_weather(batch): return batch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    small("transform: [{apply: 'mine.enrich:add_weather'}, {apply: 'not.there:f'}]")
    assert (
        "small.yaml:6:21: transform[0].apply.function: module mine.enrich has no function 'add_wether'; did you mean 'add_weather'?"
        in problems("transform: [{apply: 'mine.enrich:add_wether'}]")
    )
