"""Archived messages as Parquet files, with pyarrow (the extra `archive`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any

from ..exceptions import MissingExtra

CHUNK = 10_000
"""Messages in a row group."""
COLUMNS = ("position", "channel", "key", "type", "payload", "headers", "created_at")


def write(rows: Iterable[tuple[Any, ...]], file: IO[bytes]) -> None:
    """Write messages, each a tuple in the order of COLUMNS, to a file; raises MissingExtra."""
    arrow, parquet = _libraries()
    schema = arrow.schema(
        [
            ("position", arrow.int64()),
            *((name, arrow.string()) for name in COLUMNS[1:-1]),
            ("created_at", arrow.timestamp("us", tz="UTC")),
        ]
    )
    remaining = iter(rows)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while chunk := list(islice(remaining, CHUNK)):
            columns = dict(zip(COLUMNS, map(list, zip(*chunk, strict=True)), strict=True))
            writer.write_table(arrow.table(columns, schema=schema))


def read(file: IO[bytes]) -> Iterator[tuple[Any, ...]]:
    """Give the messages of a file; raises ValueError when it is broken, and MissingExtra."""
    arrow, parquet = _libraries()
    try:
        for batch in parquet.ParquetFile(file).iter_batches(CHUNK):
            for row in batch.to_pylist():
                yield tuple(row[name] for name in COLUMNS)
    except (arrow.ArrowException, KeyError) as error:
        raise ValueError(f"it is no Parquet file of messages: {error}") from error


def _libraries() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtra(module="pyarrow", extra="archive") from error
