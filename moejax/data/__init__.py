"""Text to batches of packed token ids."""

from moejax.data.characters import Characters
from moejax.data.check import check_tokens
from moejax.data.documents import Document, Documents, Source
from moejax.data.files import Files
from moejax.data.standard_library import StandardLibrary
from moejax.data.tasks import Chains, Facts, Rounds
from moejax.data.text import Text
from moejax.data.tokenizers import Bytes, Tokenizer, TokenizerFile

__all__ = [
  'Bytes',
  'Chains',
  'Characters',
  'Document',
  'Documents',
  'Facts',
  'Files',
  'Rounds',
  'Source',
  'StandardLibrary',
  'Text',
  'Tokenizer',
  'TokenizerFile',
  'check_tokens',
]
