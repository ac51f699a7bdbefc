#!/bin/sh
# Compiles layers for TPUs that are not here; from the root of the repository.
set -e
export PYTHONPATH=.:tests
for topology in v5e:2x2 v6e:2x2 v5p:2x2x1; do
  python tests/kernels/aot_layer.py $topology '1.4B n256' '7B n1024'
done
python tests/kernels/aot_layer.py v5p:2x2x1 '30B n256'
