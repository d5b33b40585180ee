"""Tests here need an NVIDIA GPU; without one each is skipped, and says so."""

from pathlib import Path

import jax
import pytest

from pallas_kernels.jax_triton.door import missing_on

HERE = Path(__file__).parent


def _missing() -> str | None:
    """Why these tests cannot run here; None where they can."""
    try:
        devices = jax.devices("gpu")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return f"needs an NVIDIA GPU and the cuda12 or cuda13 extra: JAX sees only {jax.default_backend()} ({reason})"
    kinds = {device.device_kind for device in devices}
    if not any("NVIDIA" in kind for kind in kinds):
        return f"needs an NVIDIA GPU: JAX sees {', '.join(sorted(kinds))}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `gpu`, and skip it where there is none."""
    ours = [item for item in items if HERE in item.path.parents]
    reason = _missing() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["mosaic_gpu", "jax_triton"])
def implementation(request: pytest.FixtureRequest) -> str:
    """A backend of attention that runs here. Parametrise it with indirect=True for a choice of others."""
    device = jax.devices()[0]
    if request.param == "mosaic_gpu" and getattr(device, "compute_capability", None) != "9.0":
        pytest.skip("needs a GPU of compute capability 9.0")
    if request.param == "jax_triton" and (reason := missing_on(device)):
        pytest.skip(reason)
    return request.param
