"""Readers of the file formats that hold documents, chosen by suffix."""

import bisect
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
from array_record.python import array_record_module

from moejax.data.documents import Document, Reader

# Lines of .jsonl are read in blocks that begin in the same 4 MiB of the file.
_BLOCK_BITS = 22
_SCAN_BYTES = 1 << 24
_RECORDS_PER_BLOCK = 256


class PlainText:
  """A file that is one document."""

  def __init__(self, path: str):
    self.path, self.field = path, None
    self.text_bytes = os.path.getsize(path)
    self.bounds = np.array([0, 1])

  def read(self, start: int, stop: int, keep: np.ndarray) -> list[Document]:
    with open(self.path, 'rb') as file:
      return [Document(file.read(), self.path)]


class JsonLines:
  """A document per line, under one field of the line's object.

  Blank lines are records without text. Only the offsets of the lines are
  held, eight bytes each.
  """

  def __init__(self, path: str, field: str):
    self.path, self.field = path, field
    self.text_bytes = os.path.getsize(path)
    self._offsets = _line_offsets(path)
    bucket = self._offsets[:-1] >> _BLOCK_BITS
    edges = np.flatnonzero(np.diff(bucket)) + 1
    count = len(self._offsets) - 1
    self.bounds = np.array([0, *edges, count] if count else [0])
    if count:
      self.read(0, 1, np.array([True]))

  def read(self, start: int, stop: int, keep: np.ndarray) -> list[Document]:
    begin, end = int(self._offsets[start]), int(self._offsets[stop])
    with open(self.path, 'rb') as file:
      file.seek(begin)
      data = file.read(end - begin)
    edges = self._offsets[start : stop + 1] - begin
    return [
      self._parse(data[edges[i] : edges[i + 1]], start + int(i) + 1)
      for i in np.flatnonzero(keep)
    ]

  def _parse(self, line: bytes, number: int) -> Document:
    place = f'{self.path}:{number}'
    if not line.strip():
      return Document(b'', place)
    try:
      value = json.loads(line)
      if isinstance(value, dict) and isinstance(value.get(self.field), str):
        return Document(value[self.field].encode(), place)
    except (ValueError, RecursionError) as error:
      # Truncated JSON, invalid UTF-8 and lone surrogates all land here.
      raise ValueError(
        f'{place}: the line must be one JSON object in UTF-8 ({error}); '
        'correct or remove the line'
      ) from None
    known = sorted(value) if isinstance(value, dict) else type(value).__name__
    raise ValueError(
      f'{place}: field={self.field!r} must name a string of the JSON object, '
      f'which has {known}; set `field` or correct the line'
    )


class Parquet:
  """A document per row, in one string or binary column.

  A block is a row group.
  """

  def __init__(self, path: str, field: str):
    self.path, self.field = path, field
    try:
      with pyarrow.parquet.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
    except pyarrow.ArrowException as error:
      raise ValueError(
        f'{path}: the file is not readable as parquet ({_line(error)}); '
        'write it again'
      ) from None
    if field not in schema.names:
      raise ValueError(
        f'{path}: field={field!r} must name a column, one of {schema.names}; '
        'set `field`'
      )
    kind = schema.field(field).type
    if pyarrow.types.is_dictionary(kind):
      kind = kind.value_type
    if not any(is_kind(kind) for is_kind in _TEXT_TYPES):
      raise ValueError(
        f'{path}: field={field!r} must hold text, but its type is {kind}; '
        'set `field` to a column of strings'
      )
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    self.bounds = np.cumsum([0, *(group.num_rows for group in groups)])
    self.text_bytes = sum(_uncompressed_bytes(g, field) for g in groups)

  def read(self, start: int, stop: int, keep: np.ndarray) -> list[Document]:
    # Empty row groups share a bound with their neighbour: take the last one.
    group = bisect.bisect_right(self.bounds, start) - 1
    with pyarrow.parquet.ParquetFile(self.path) as file:
      column = file.read_row_group(group, columns=[self.field])[self.field]
    if pyarrow.types.is_dictionary(column.type):
      column = column.cast(column.type.value_type)
    return [
      Document(_as_bytes(value), f'{self.path}: row {start + int(i)}')
      for i, value in zip(
        np.flatnonzero(keep), column.filter(keep).to_pylist(), strict=True
      )
    ]


class ArrayRecord:
  """A document per record: the record's bytes are the text."""

  def __init__(self, path: str):
    self.path, self.field = path, None
    self.text_bytes = os.path.getsize(path)
    count = self._with_reader(lambda reader: reader.num_records())
    self.bounds = np.append(np.arange(0, count, _RECORDS_PER_BLOCK), count)

  def read(self, start: int, stop: int, keep: np.ndarray) -> list[Document]:
    records = self._with_reader(lambda reader: reader.read(start, stop))
    return [
      Document(records[i], f'{self.path}: record {start + int(i)}')
      for i in np.flatnonzero(keep)
    ]

  def _with_reader(self, use):
    try:
      reader = array_record_module.ArrayRecordReader(self.path)
      try:
        return use(reader)
      finally:
        reader.close()
    except (RuntimeError, ValueError) as error:
      raise ValueError(
        f'{self.path}: the file is not readable as array_record '
        f'({_line(error) or "it is truncated or corrupt"}); write it again'
      ) from None


_READERS = {
  '.txt': lambda path, field: PlainText(path),
  '.jsonl': JsonLines,
  '.parquet': Parquet,
  '.array_record': lambda path, field: ArrayRecord(path),
}

SUFFIXES = tuple(_READERS)

_TEXT_TYPES = (
  pyarrow.types.is_string,
  pyarrow.types.is_large_string,
  pyarrow.types.is_binary,
  pyarrow.types.is_large_binary,
)


def open_file(path: str, field: str) -> Reader:
  """A reader of the file, by its suffix.

  Raises:
    ValueError: if the file is not what its suffix promises.
  """
  return _READERS[os.path.splitext(path)[1]](path, field)


def _line_offsets(path: str) -> np.ndarray:
  """[lines + 1] int64 offsets at which lines begin, and the file's end."""
  found, base = [np.zeros(1, np.int64)], 0
  with open(path, 'rb') as file:
    while chunk := file.read(_SCAN_BYTES):
      ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord('\n'))
      found.append(base + 1 + ends)
      base += len(chunk)
  offsets = np.concatenate(found)
  return offsets if offsets[-1] == base else np.append(offsets, base)


def _uncompressed_bytes(group, field: str) -> int:
  """Size of a column of a row group, with the encoding of parquet undone."""
  columns = map(group.column, range(group.num_columns))
  return sum(
    column.total_uncompressed_size
    for column in columns
    if column.path_in_schema == field
  )


def _as_bytes(value: str | bytes | None) -> bytes:
  if value is None:
    return b''
  return value.encode() if isinstance(value, str) else value


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())
