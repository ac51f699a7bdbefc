#!/bin/sh
# Compiles the pod recipes for TPUs that are not here; from the root of the
# repository. Writes results.csv.
set -e
export PYTHONPATH=.
here=experiments/2026_11_pod_aot
{
  python $here/table.py header
  python $here/table.py configs/pods/mixtral_8x22b.py v5p:2x4x4
  python $here/table.py configs/pods/kimi_linear.py v5p:2x2x4
  python $here/table.py configs/pods/ultramem_v2.py v5p:2x4x4
  python $here/table.py configs/pods/deepseek_v3.py v5p:8x8x16
} > $here/results.csv
