import grain

from moejax.data.shuffle import Shuffled, shuffle_windows


def test_every_epoch_is_another_permutation():
  shuffled = Shuffled(grain.MapDataset.range(50), seed=3)
  epochs = [[shuffled[e * 50 + i] for i in range(50)] for e in range(3)]
  assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert [shuffled[i] for i in range(50)] == epochs[0]
  assert list(shuffled[10:13]) == epochs[0][10:13]


def test_windows_are_permuted_each_in_its_own_way():
  stream = grain.MapDataset.range(95).to_iter_dataset()
  found = list(shuffle_windows(stream, 20, seed=3))
  windows = [found[i : i + 20] for i in range(0, 95, 20)]
  orders = set()
  for i, window in enumerate(windows):
    assert sorted(window) == list(range(20 * i, min(20 * i + 20, 95)))
    orders.add(tuple(x - 20 * i for x in window))
  assert len(orders) == 5
  again = list(shuffle_windows(stream, 20, seed=3))
  other = list(shuffle_windows(stream, 20, seed=4))
  assert again == found != other
