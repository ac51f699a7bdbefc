"""What a compiled GPU kernel uses, read from its machine code.

A cubin is an ELF file. Section `.nv.info` holds a list of attributes, each of
a format byte, a kind byte and a 16-bit value or size; with format 4 that many
bytes of payload follow. Two kinds matter, and their payload is a symbol and a
number: registers of a thread, and bytes of its frame, which is where spilled
registers go. Section `.text.NAME` is the code of kernel NAME, on compute
capability 9.0 in instructions of 16 bytes whose lowest 9 bits say what they do.
"""

from __future__ import annotations

import collections
import struct

_CUDA = 190  # ELF machine number
_NO_BITS, _SYMBOLS = 8, 2  # section types
_REGISTERS, _FRAME = 0x2F, 0x11
_OPCODES = {
  0x1F0: 'wgmma',
  0x03C: 'mma',
  0x187: 'local_stores',
  0x183: 'local_loads',
}


def cubins(data: bytes):
  """All cubins in `data`."""
  at = data.find(b'\x7fELF\x02\x01')
  while at >= 0:
    machine = struct.unpack_from('<H', data, at + 18)[0]
    if machine == _CUDA:
      yield data[at : at + _size(data, at)]
    at = data.find(b'\x7fELF\x02\x01', at + 4)


def kernels(cubin: bytes) -> dict[str, collections.Counter]:
  """name -> registers, frame (bytes), and counts of instructions."""
  sections = _sections(cubin)
  found = collections.defaultdict(collections.Counter)
  for section in sections:
    if section.name.startswith('.text.'):
      found[section.name[6:]] += _instructions(cubin, section)
  symbols = _symbols(cubin, sections)
  for section in sections:
    if section.name == '.nv.info':
      for kind, symbol, value in _attributes(cubin, section):
        name = symbols[symbol]
        if kind == _REGISTERS:
          found[name]['registers'] = value
        elif kind == _FRAME:
          found[name]['frame'] = value
  return dict(found)


_Section = collections.namedtuple('_Section', 'name type offset size link')


def _table(data: bytes, at: int) -> list[tuple[int, ...]]:
  """(name, type, offset, size, link) of each section of the file at `at`."""
  (offset,) = struct.unpack_from('<Q', data, at + 40)
  entry, count = struct.unpack_from('<HH', data, at + 58)
  starts = range(at + offset, at + offset + entry * count, entry)
  return [struct.unpack_from('<II16xQQI', data, start) for start in starts]


def _size(data: bytes, at: int) -> int:
  (headers,) = struct.unpack_from('<Q', data, at + 40)
  entry, count = struct.unpack_from('<HH', data, at + 58)
  (programs,) = struct.unpack_from('<Q', data, at + 32)
  p_entry, p_count = struct.unpack_from('<HH', data, at + 54)
  ends = [headers + entry * count, programs + p_entry * p_count]
  ends += [o + size for _, t, o, size, _ in _table(data, at) if t != _NO_BITS]
  return max(ends)


def _sections(cubin: bytes) -> list[_Section]:
  table = _table(cubin, 0)
  (names,) = struct.unpack_from('<H', cubin, 62)
  names = table[names][2]
  return [_Section(_text(cubin, names + s[0]), *s[1:]) for s in table]


def _text(cubin: bytes, at: int) -> str:
  return cubin[at : cubin.index(b'\0', at)].decode()


def _symbols(cubin: bytes, sections: list[_Section]) -> list[str]:
  (table,) = (s for s in sections if s.type == _SYMBOLS)
  strings = sections[table.link].offset
  starts = range(table.offset, table.offset + table.size, 24)
  names = (struct.unpack_from('<I', cubin, start)[0] for start in starts)
  return [_text(cubin, strings + name) for name in names]


def _attributes(cubin: bytes, section: _Section):
  at = section.offset
  while at < section.offset + section.size:
    form, kind, size = struct.unpack_from('<BBH', cubin, at)
    at += 4
    if form == 4:
      if kind in (_REGISTERS, _FRAME):
        yield kind, *struct.unpack_from('<II', cubin, at)
      at += size


def _instructions(cubin: bytes, section: _Section) -> collections.Counter:
  end = section.offset + section.size
  words = (
    struct.unpack_from('<H', cubin, at)[0] & 0x1FF
    for at in range(section.offset, end, 16)
  )
  counts = collections.Counter(words)
  return collections.Counter(
    {name: counts[code] for code, name in _OPCODES.items() if counts[code]}
  )
