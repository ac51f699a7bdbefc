"""Reads the records of a serialised executable: a Riegeli file of Snappy data.

Formats: github.com/google/riegeli (doc/riegeli_records_file_format.md) and
github.com/google/snappy (format_description.txt). Only what XLA writes is
read: simple chunks, compressed with Snappy or not at all.
"""

from __future__ import annotations

import struct

BLOCK = 1 << 16  # a block header interrupts the file at every multiple of it
BLOCK_HEADER = 24
CHUNK_HEADER = 40
# The first block header of a file starts like this.
SIGNATURE = bytes.fromhex('83af70d10d884a3f')


def records(serialised: bytes) -> bytes:
  """The values of all records, one after the other."""
  chunks = _without_block_headers(serialised)
  values, position = [], CHUNK_HEADER  # the first chunk has no data
  while position + CHUNK_HEADER <= len(chunks):
    size, kind = struct.unpack_from('<8xQ8xc', chunks, position)
    position += CHUNK_HEADER
    if kind != b'r':  # what follows the file
      break
    values.append(_simple(memoryview(chunks)[position : position + size]))
    position += size
  return b''.join(values)


def _without_block_headers(serialised: bytes) -> bytes:
  start = serialised.index(SIGNATURE)
  blocks = range(start, len(serialised), BLOCK)
  return b''.join(serialised[at + BLOCK_HEADER : at + BLOCK] for at in blocks)


def _simple(chunk: memoryview) -> bytes:
  """A chunk: its compression, the sizes of its records, their values."""
  compression = chr(chunk[0])
  sizes, position = _varint(chunk, 1)
  position += sizes
  if compression == '\0':
    return bytes(chunk[position:])
  if compression == 's':
    _, position = _varint(chunk, position)
    return unpack(chunk[position:])
  raise NotImplementedError(f'compression {compression!r} is not read.')


def _varint(data, position: int) -> tuple[int, int]:
  """A number in groups of 7 bits, lowest first, and where it ends."""
  value = shift = 0
  while True:
    byte = data[position]
    position += 1
    value |= (byte & 0x7F) << shift
    shift += 7
    if byte < 0x80:
      return value, position


def unpack(data) -> bytes:
  """Undoes Snappy."""
  size, position = _varint(data, 0)
  out = bytearray()
  while position < len(data):
    tag = data[position]
    position += 1
    if tag & 3 == 0:
      length, position = _literal_length(data, tag >> 2, position)
      out += data[position : position + length]
      position += length
    else:
      length, offset, position = _copy(data, tag, position)
      _repeat(out, offset, length)
  if len(out) != size:
    raise ValueError(f'unpacked {len(out)} bytes, not the {size} announced.')
  return bytes(out)


def _literal_length(data, code: int, position: int) -> tuple[int, int]:
  if code < 60:
    return code + 1, position
  end = position + code - 59
  return int.from_bytes(data[position:end], 'little') + 1, end


def _copy(data, tag: int, position: int) -> tuple[int, int, int]:
  """(length, how far back, position after): one of three encodings."""
  if tag & 3 == 1:
    length = (tag >> 2 & 7) + 4
    return length, tag >> 5 << 8 | data[position], position + 1
  end = position + (2 if tag & 3 == 2 else 4)
  offset = int.from_bytes(data[position:end], 'little')
  return (tag >> 2) + 1, offset, end


def _repeat(out: bytearray, offset: int, length: int):
  """Appends what began `offset` bytes ago; it may run into what it appends."""
  start = len(out) - offset
  while length > 0:
    piece = out[start : start + length]
    out += piece
    start += len(piece)
    length -= len(piece)
