"""Devices by name or in words."""

import re
from importlib import resources

import pytest

from sharding.targets import known_targets
from sharding.targets.peaks import Peaks, device_peaks, known_devices

HERE = Peaks("cpu", 1000)


def test_devices_that_can_be_compiled_for_have_the_same_numbers_there() -> None:
    for name in known_targets():
        text = (resources.files("sharding.targets") / f"{name}.txtpb").read_text()
        peaks = known_devices()[name]
        assert f'name: "{peaks.kind}"' in text
        for key, value in (("device_memory_size", peaks.memory_bytes), ("memory_bandwidth", peaks.bandwidth)):
            found = re.search(rf"{key}: (\d+)", text)
            assert found and int(found[1]) == value


def test_a_device_in_words_and_a_name_with_changes() -> None:
    described = device_peaks("memory=24GiB, bandwidth=1008GB/s,tflops=165,compute_capability=8.9", HERE)
    assert (described.memory_bytes, described.bandwidth, described.tflops) == (24 << 30, 1.008e12, 165)
    assert described.compute_capability == "8.9" and described.tflops_float32 is None
    changed = device_peaks("H200,bandwidth=4.3TB/s", HERE)
    assert changed.bandwidth == 4.3e12 and changed.memory_bytes == known_devices()["h200"].memory_bytes
    assert device_peaks("cpu", HERE) == HERE
    assert device_peaks("cpu,memory=1e6", HERE).memory_bytes == 1_000_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("b1000", "choose one of a100, a100-40gb, cpu, h100, h200, rtx4090"),
        ("", "choose one of"),
        ("h200,", "describes no device"),
        ("h200,speed=3", "'speed=3' describes no device"),
        ("memory=24furlongs", "such as memory=24GiB"),
        ("memory=0GiB", "above 0"),
        ("memory=-1GiB", "above 0"),
        ("bandwidth=fast", "such as bandwidth=1008GB/s"),
        ("tflops=165GB", "such as tflops=165"),
        ("compute_capability=nine", "describes no device"),
    ],
)
def test_what_describes_no_device_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        device_peaks(text, HERE)
