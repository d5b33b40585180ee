"""Tables from benchmark records: the newest record of each case alone, with date and commit beside its figures."""

import datetime
import json
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
FOLDER = re.compile(r"(?<![^\s=])/\S*/")  # where things lay on a machine is nobody's business
IDENTITY = (  # what makes two records of a benchmark two cases, beside their shape
    *("device", "benchmark", "case", "implementation", "dtype", "pool_dtype", "kv_cache_dtype", "top_k", "top_p"),
    *("engine", "label", "backend", "dataset_name", "dataset_flags", "enable_prefix_caching"),
    *("request_rate", "burstiness", "max_concurrency", "num_prompts"),
)
_WIDTH = 118  # of a line of text
CHANGING = {"layers", "num_pages"}  # of a shape: what a run chooses by itself


@dataclass(frozen=True)
class Table:
    """How the records of one benchmark are shown.

    intro: a paragraph. columns: title and content; a "#" before a title marks numbers.
    group: what is said once above a table, so that records that differ there stand in tables of their own.
    order: of the lines. expand: the lines that a record makes.
    """

    benchmark: str
    title: str
    intro: str
    columns: dict[str, Callable[[Record], str]]
    group: Callable[[Record], str] = lambda _: ""
    order: Callable[[Record], Any] = lambda _: 0
    expand: Callable[[Record], list[Record]] = field(default=lambda record: [record])


def sections(tables: Iterable[Table], records: Iterable[Record]) -> list[str]:
    """One for each table that has records."""
    kept = newest(records)
    return [section(table, kept) for table in tables if any(table.expand(one) for one in of(table, kept))]


def of(table: Table, records: list[Record]) -> list[Record]:
    return [record for record in records if record["benchmark"] == table.benchmark]


def newest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each case; where dates do not tell, the last one in the order of files."""
    kept: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: _instant(record.get("date", ""))):
        kept[_identity(record)] = record
    return list(kept.values())


def section(table: Table, kept: list[Record]) -> str:
    """Title, a table for each group, and where the figures come from."""
    used = [one for one in of(table, kept) if table.expand(one)]
    intro = textwrap.fill(table.intro, _WIDTH, break_long_words=False, break_on_hyphens=False)
    parts = [f"## {table.title}\n\n{intro}\n"]
    for device in sorted({_device(record) for record in used}):
        there = [record for record in used if _device(record) == device]
        for group in sorted({table.group(record) for record in there}):
            rows = [row for record in there if table.group(record) == group for row in table.expand(record)]
            parts.append(f"{device}{group}.\n\n{_grid(table, sorted(rows, key=table.order))}\n")
    return "\n".join([*parts, sources(used)])


def sources(records: list[Record]) -> str:
    """A line for each file: date, commit, device, versions, and the commands that made the figures."""
    lines = ["### Where these come from\n"]
    for file in sorted({record["file"] for record in records}):
        some = [record for record in records if record["file"] == file]
        first = some[0]
        versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
        commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(record["commit"] for record in some))
        lines.append(f"- [`{file}`]({file}): {_date(first)}, commit {commits}, {_device(first)}; {versions}.")
        commands = dict.fromkeys(FOLDER.sub("", record["command"]) for record in some if "command" in record)
        lines += [f"  - `{command}`" for command in commands]
    return "\n".join([*lines, ""])


def _grid(table: Table, rows: list[Record]) -> str:
    columns = table.columns | {"measured": lambda record: f"{_date(record)} `{record['commit']}`"}
    lines = [
        "| " + " | ".join(title.removeprefix("#") for title in columns) + " |",
        "|" + "|".join("---:" if title.startswith("#") else "---" for title in columns) + "|",
    ]
    lines += ["| " + " | ".join(show(record) for show in columns.values()) + " |" for record in rows]
    return "\n".join(lines)


def _identity(record: Record) -> str:
    shape = {name: value for name, value in record.get("shape", {}).items() if name not in CHANGING}
    named = {name: record.get(name) for name in IDENTITY} | {"device": _device(record), "model": model_name(record)}
    named["pool_dtype"] = record.get("pool_dtype", record.get("dtype"))
    return json.dumps([named, shape], sort_keys=True)


def _instant(date: str) -> datetime.datetime:
    """A day counts from its start, as UTC where no zone is said."""
    found = datetime.datetime.fromisoformat(date) if date else datetime.datetime.min
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _date(record: Record) -> str:
    return record["date"][:10]


def _device(record: Record) -> str:
    """A server does not say: then the folder of the file does."""
    return record.get("device") or record["file"].split("/")[-2]


def model_name(record: Record) -> str:
    return str(record.get("model_id") or record.get("model") or "").rstrip("/").split("/")[-1]
