"""Papers on what makes the layers fast: kernels, memory, parallelism."""
