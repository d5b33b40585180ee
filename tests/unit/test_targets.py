"""Targets to compile for without having them."""

import pytest

from sharding.targets import known_targets, target_devices


def test_targets_are_the_files_beside_the_module():
    assert known_targets() == ["h100", "h200"]


def test_an_unknown_target_is_refused_with_the_list():
    with pytest.raises(ValueError, match="'b200' is unknown; choose one of h100, h200"):
        target_devices("b200")


def test_without_the_compiler_says_what_to_install():
    with pytest.raises(RuntimeError, match="cuda13 extra"):
        target_devices("h200")
