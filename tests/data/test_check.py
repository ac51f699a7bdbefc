import numpy as np
import pytest

from moejax import data


@pytest.mark.parametrize('name', ['tokens', 'targets'])
@pytest.mark.parametrize('bad', [257, -1])
def test_an_id_outside_the_vocabulary_is_named(name, bad):
  batch = {n: np.full((3, 4), 256, np.int32) for n in ('tokens', 'targets')}
  data.check_tokens(batch, 257)
  batch[name][2, 1] = bad
  with pytest.raises(
    ValueError, match=f'{name}: id {bad} in row 2, position 1 '
  ):
    data.check_tokens(batch, 257)


def test_batches_pass_with_the_vocabulary_that_data_states():
  text = data.Text({'a': data.StandardLibrary(max_bytes=200_000)})
  batches = text.batches('train', batch_size=2, seq_len=64, seed=0, epochs=1)
  largest = 0
  for batch in batches:
    data.check_tokens(batch, text.vocab)
    largest = max(largest, batch['targets'].max())
  assert largest == text.vocab - 1
