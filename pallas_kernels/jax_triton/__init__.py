"""Backend in jax-triton, an optional dependency: GPUs before Hopper, and what the Hopper backend does not take.

Nothing here imports triton before a kernel is asked for. Ways in: `pallas_kernels.ragged_paged_attention` and
`jaxserve.sampling.filters.kept_tokens`.
"""
