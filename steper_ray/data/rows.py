"""Rows into Parquet, a row group at a time: what is in memory does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.core.files import commit, remove_leftovers, storing, temporary


class RowFile:
    """One Parquet file with page checksums, written under another name; `close` puts it in place.

    The same rows give the same bytes. One process at a time writes a path. Raises StorageError.
    """

    def __init__(self, path: Path, schema: pa.Schema, rows_a_group: int) -> None:
        self.bytes = 0
        """Bytes written so far, uncompressed."""
        self._path, self._schema, self._rows_a_group = path, schema, rows_a_group
        remove_leftovers(path)
        self._fresh = temporary(path)
        self._waiting: list[dict[str, Any]] = []
        with storing(path.parent):
            self._writer = pq.ParquetWriter(self._fresh, schema, compression="zstd", write_page_checksum=True)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self._waiting.append(row)
            if len(self._waiting) == self._rows_a_group:
                self._write()

    def close(self) -> None:
        """Writes the rest; a file without rows has the schema alone."""
        if self._waiting:
            self._write()
        with storing(self._path.parent):
            self._writer.close()
            commit(self._fresh, self._path)

    def _write(self) -> None:
        table = pa.Table.from_pylist(self._waiting, schema=self._schema)
        with storing(self._path.parent):
            self._writer.write_table(table)
        self.bytes += table.nbytes
        self._waiting.clear()


class NumberedFiles:
    """Files `<name>-00000-of-00003.parquet` of one folder, each of about `file_bytes` in memory; at least one."""

    def __init__(
        self, folder: Path, name: str, schema: pa.Schema, *, rows_a_group: int, file_bytes: int
    ) -> None:
        self.rows = 0
        self._folder, self._name, self._schema = folder, name, schema
        self._rows_a_group, self._file_bytes = rows_a_group, file_bytes
        self._paths: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._next()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            if self._file.bytes >= self._file_bytes:
                self._file.close()
                self._file = self._next()
            self._file.add([row])
            self.rows += 1

    def close(self) -> list[Path]:
        """Gives the files their final names, which hold their number."""
        self._file.close()
        named = []
        for number, path in enumerate(self._paths):
            name = f"{self._name}-{number:05}-of-{len(self._paths):05}.parquet"
            named.append(path.rename(self._folder / name))
        return named

    def _next(self) -> RowFile:
        self._paths.append(self._folder / f"{self._name}-{len(self._paths):05}.parquet")
        return RowFile(self._paths[-1], self._schema, self._rows_a_group)
