"""Where the model meets the paged pool: write a layer's keys and values, then attend over the pages."""

from jaxtyping import Array, Float, Int

from jaxserve.batch.step_batch import StepBatch
from jaxserve.core.config import ModelConfig
from pallas_kernels import attention_workspace, ragged_paged_attention, write_kv


class PagedAttention:
    """The `attend` that serving passes to a model, for one trace of one step.

    pools: one `[P, 2, K, Z, Hp]` array a layer; each call replaces its layer's entry, so after the
    model ran `pools` holds the updated arrays. All of a step's keys are written before any query of
    that layer reads, so requests of one step may share pages that this very step fills, and every query
    sees keys as the pool holds them, rounded or not, its own included.
    implementation: see `ragged_paged_attention`.
    kv_scales_L2K: of each layer's keys and values; None for 1.
    """

    def __init__(
        self,
        config: ModelConfig,
        pools: list[Float[Array, "P 2 K Z Hp"]],
        batch: StepBatch,
        page_table_BM: Int[Array, "B M"],
        implementation: str = "auto",
        kv_scales_L2K: Float[Array, "L 2 K"] | None = None,
    ) -> None:
        self.pools = list(pools)
        self._config = config
        self._batch = batch
        self._page_table_BM = page_table_BM
        self._implementation = implementation
        self._workspace = attention_workspace()
        self._kv_scales_L2K = kv_scales_L2K

    def __call__(
        self, layer: int, q_TNH: Float[Array, "T N H"], k_TKH: Float[Array, "T K H"], v_TKH: Float[Array, "T K H"]
    ) -> Float[Array, "T N H"]:
        batch = self._batch
        scale_2K = None if self._kv_scales_L2K is None else self._kv_scales_L2K[layer]
        self.pools[layer] = write_kv(self.pools[layer], k_TKH, v_TKH, batch.slots_T, scale_2K)
        return ragged_paged_attention(
            q_TNH,
            self.pools[layer],
            self._page_table_BM,
            batch.context_lens_B,
            batch.query_starts,
            batch.row_counts,
            pool_scale_2K=scale_2K,
            scale=self._config.head_dim**-0.5,
            sliding_window=self._config.sliding_windows[layer],
            implementation=self._implementation,
            workspace=self._workspace,
        )
