#!/bin/sh
# Compiles the kernels for TPUs that are not here; from the root of the
# repository. Writes results.csv.
set -e
export PYTHONPATH=.:tests
here=experiments/2026_11_chunked_aot
for topology in v4:2x2x1 v5e:2x2 v5p:2x2x1 v6e:2x2; do
  python tests/kernels/aot_chunked.py $topology
done | python $here/table.py v4 v5e v5p v6e > $here/results.csv
