"""The delta rule on TPU: two phases forward, one pass backward.

Forward, the scores A and the inverse X = (I + L)^-1 of all chunks come first,
in no order, then a scan over chunks with the state in fast memory. Backward, a
scan gives the states before the chunks once more, and a scan from the last to
the first makes all gradients; the gradient of the state never leaves fast
memory.

Kept for the backward pass, beside the inputs: A and X, 8 C bytes a token and
value head. There for the time of the backward pass alone: the states, 4 K V / C
bytes. (At C = 64 and K = V = 128 these are 512 and 1024; the decay by channel
itself is 512.) Widths count in whole registers of 128 lanes.

FLOPs of one chunk of one value head, each product counted once:

  A, X     4 C^2 K, by channel 4 r C K + 2 n C^2 K s; 4 (n - 1) C^3
  forward  6 C K V + 4 C^2 V
  states   4 C K V + 2 C^2 V
  backward 16 C K V + 10 C^2 V + 12 C^2 K

with n = log2 C
"""
