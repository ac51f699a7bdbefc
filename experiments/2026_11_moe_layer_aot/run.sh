#!/bin/sh
# Compiles layers for TPUs that are not here; from the root of the repository.
set -e
export PYTHONPATH=.:tests
folder=experiments/2026_11_moe_layer_aot
out=$folder/results.csv

compile() {
  topology=$1
  shift
  python tests/kernels/aot_layer.py "$topology" "$@" |
    python $folder/rows.py "${topology%%:*}" >>$out
}

header=chip,layer,direction,reported_flops_over_ideal
echo "$header,live_megabytes,model_megabytes,least_model_megabytes,heap_megabytes" >$out
for topology in v5e:2x2 v6e:2x2 v5p:2x2x1; do
  compile $topology '1.4B n256' '7B n1024'
done
compile v5p:2x2x1 '30B n256'
# Finer experts at equal work: 8, 56 and 256 of them.
compile v5p:2x2x1 8 56 256
