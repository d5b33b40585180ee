"""Kernel shapes: the tables beside the code, and what `bench kernels --tune` makes of times."""

import argparse
import tomllib
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxserve.bench import kernels
from jaxserve.bench.tune_kernels import candidates, tune
from pallas_kernels import tuning
from pallas_kernels.tuning import decode_config, prefill_config, table_name, trying

HEAD_SIZES = (64, 128, 256)
TABLES = sorted((Path(tuning.__file__).parent / "tables").glob("*.toml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_names_shapes_that_fit(path: Path) -> None:
    table = tomllib.loads(path.read_text())
    assert set(table) <= {"decode", "prefill"}
    for name, shape in table["decode"].items():
        assert tuple(shape) in set(candidates(int(name.removeprefix("head_")), 2))


@pytest.mark.parametrize("head_dim", HEAD_SIZES)
def test_what_stands_in_without_a_table_fits_too(head_dim: int) -> None:
    assert tuning._DECODE[head_dim] in set(candidates(head_dim, 2))  # pyright: ignore[reportPrivateUsage]
    assert decode_config(head_dim=head_dim).num_sms == prefill_config(head_dim=head_dim).num_sms == 132


def test_compiled_without_a_gpu_the_table_is_an_h200s() -> None:
    table = tomllib.loads((TABLES[0].parent / table_name(tuning.COMPILED_FOR)).read_text())
    config = decode_config(head_dim=128)
    assert [config.workers_per_sm, config.num_stages] == table["decode"]["head_128"]


def test_a_shape_is_tried_only_meanwhile() -> None:
    before = decode_config(head_dim=128)
    with trying(3, 5):
        tried = decode_config(head_dim=128)
    assert (tried.workers_per_sm, tried.num_stages) == (3, 5)
    assert decode_config(head_dim=128) == before


def test_more_stages_fit_a_pool_of_8_bits_and_narrow_heads() -> None:
    wide, narrow, eight_bits = (set(candidates(*sizes)) for sizes in ((128, 2), (64, 2), (128, 1)))
    assert wide < narrow and len(eight_bits) > len(wide)
    assert (2, 2) in wide and (4, 2) not in wide


def test_the_best_over_all_cases_becomes_the_line_of_the_head_size(tmp_path: Path) -> None:
    path = tmp_path / table_name(jax.devices()[0].device_kind)
    path.write_text("# by hand\n[decode]\nhead_64 = [2, 4]\nhead_128 = [1, 2]\n\n[prefill]\nhead_128 = [2]\n")
    tried: list[tuple[int, int]] = []

    def measure(case: str) -> dict[str, Any]:
        config = decode_config(head_dim=128)
        shape = config.workers_per_sm, config.num_stages
        tried.append(shape)
        if shape == (1, 6):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: registers")
        # The fastest of "a" is slow at "b": neither case may pay for the other.
        ms = {(1, 2): {"a": 1.0, "b": 9.0}, (2, 2): {"a": 1.1, "b": 2.0}}.get(shape, {"a": 3.0, "b": 3.0})
        return {"median_ms": ms[case]}

    args = argparse.Namespace(case=["a", "b"], head_dim=128)
    found = tune(measure, args, 2, tmp_path)
    assert set(tried) == set(candidates(128, 2))
    assert found["best"] == [2, 2] and "1x6" not in found["times_ms"]
    assert path.read_text() == "# by hand\n[decode]\nhead_64 = [2, 4]\nhead_128 = [2, 2]\n\n[prefill]\nhead_128 = [2]\n"
    args.head_dim = 256
    tune(lambda _: {"median_ms": 1.0}, args, 2, tmp_path)
    assert "head_256 = [" in path.read_text() and tomllib.loads(path.read_text())["prefill"] == {"head_128": [2]}


def test_tuning_needs_the_gpu() -> None:
    with pytest.raises(SystemExit, match="needs its GPU"):
        kernels.main(["--tune", ".", "--case", "1x64"])
