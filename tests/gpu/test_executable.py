"""The reader of serialised executables, on data made by hand."""

import importlib.util
import pathlib
import struct

import pytest

_spec = importlib.util.spec_from_file_location(
  'executable', pathlib.Path(__file__).parent / 'executable.py'
)
executable = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(executable)


@pytest.mark.parametrize(
  'packed, plain',
  [
    (b'\x00', b''),
    (b'\x03\x08abc', b'abc'),
    # A copy with a short offset that runs into what it appends.
    (b'\x0a\x04ab\x11\x02', b'ababababab'),
    # Offsets of 16 and of 32 bits.
    (b'\x06\x08abc\x0a\x03\x00', b'abcabc'),
    (b'\x06\x08abc\x0b\x03\x00\x00\x00', b'abcabc'),
    # A literal whose length takes a byte of its own.
    (b'\x46\xf0\x45' + b'z' * 70, b'z' * 70),
  ],
)
def test_snappy_is_unpacked(packed, plain):
  assert executable.unpack(packed) == plain


def test_a_wrong_length_is_an_error():
  with pytest.raises(ValueError, match='unpacked 3 bytes, not the 4'):
    executable.unpack(b'\x04\x08abc')


def test_records_are_read_across_block_headers_and_up_to_the_end_of_the_file():
  values = bytes(range(256)) * 512  # two blocks and more
  data = b'\0\x00' + values  # uncompressed, no sizes

  def chunk(kind, data):
    return struct.pack('<8xQ8xc15x', len(data), kind) + data

  stream = chunk(b's', b'') + chunk(b'r', data) + chunk(b'u', b'other')
  room = executable.BLOCK - executable.BLOCK_HEADER
  header = executable.SIGNATURE + b'\0' * 16
  file = b''.join(
    (header if at == 0 else b'\0' * 24) + stream[at : at + room]
    for at in range(0, len(stream), room)
  )
  assert executable.records(b'before' + file) == values
