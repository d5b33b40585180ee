"""Hopper backend: kernels in Pallas Mosaic GPU (TMA, wgmma). Public way in: `pallas_kernels.ragged_paged_attention`."""
