from __future__ import annotations

import pytest

from backend.errors import SettingError
from backend.hardware.gpu_names import find_gpu, short_name
from backend.hardware.gpu_table import gpu_table


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("h100-80gb", "NVIDIA H100 80GB HBM3"),
        ("h100 sxm", "NVIDIA H100 80GB HBM3"),
        ("H100 PCIe", "NVIDIA H100 PCIe"),
        ("3090", "NVIDIA GeForce RTX 3090"),
        ("rtx3090ti", "NVIDIA GeForce RTX 3090 Ti"),
        ("RTX-4090", "NVIDIA GeForce RTX 4090"),
        ("4080 Super", "NVIDIA GeForce RTX 4080 SUPER"),
        ("A100-40GB", "NVIDIA A100-SXM4-40GB"),
        ("A100", "NVIDIA A100-SXM4-80GB"),
        ("A100 80GB PCIe", "NVIDIA A100 80GB PCIe"),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
        ("6000 Blackwell", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
        ("RTX 6000", "NVIDIA RTX 6000 Ada Generation"),
        ("RTX-A6000", "NVIDIA RTX A6000"),
        ("B200-192GB", "NVIDIA B200"),
        ("H20", "NVIDIA H20"),
        ("H20-3e", "NVIDIA H20-3e"),
        ("A10", "NVIDIA A10"),
        ("A10G", "NVIDIA A10G"),
        ("L4", "NVIDIA L4"),
        ("L40S-48GB", "NVIDIA L40S"),
        ("t4 16gb", "Tesla T4"),
        ("GH200", "NVIDIA GH200 480GB"),
        ("DGX Spark", "NVIDIA GB10"),
        ("7900XTX", "AMD Radeon RX 7900 XTX"),
    ],
)
def test_names_are_read_as_people_write_them(text: str, name: str) -> None:
    assert find_gpu(text).facts.name == name


def test_each_kind_is_found_by_its_own_name_and_the_short_one() -> None:
    for facts in gpu_table():
        assert find_gpu(facts.name).facts is facts
        assert find_gpu(short_name(facts.name)).facts is facts


def test_a_name_of_several_kinds_says_which_others_there_are() -> None:
    assert find_gpu("A100").others == ("A100 80GB PCIe", "A100-SXM4-40GB")
    assert find_gpu("A100", pcie=True).facts.name == "NVIDIA A100 80GB PCIe"
    assert find_gpu("RTX 3090").others == ()


@pytest.mark.parametrize(
    ("text", "near"),
    [("RTX 3900", "RTX 3090"), ("4070 Ti", "RTX 4070 Ti SUPER"), ("H100 NVL", "H100 PCIe"), ("L40X", "L40S")],
)
def test_what_no_kind_is_called_gets_the_nearest_names(text: str, near: str) -> None:
    with pytest.raises(SettingError) as caught:
        find_gpu(text)
    assert text in caught.value.what
    assert near in caught.value.why


@pytest.mark.parametrize("text", ["", "x", "NVIDIA", "80GB", "3090 sxm"])
def test_no_name_is_refused(text: str) -> None:
    with pytest.raises(SettingError):
        find_gpu(text)


@pytest.mark.parametrize("text", ["V100-16GB", "H100-94GB", "RTX 5060 Ti 8GB", "3090 48GB"])
def test_another_size_of_memory_is_not_taken_for_the_known_one(text: str) -> None:
    with pytest.raises(SettingError, match=r"Known of that name: .* GiB"):
        find_gpu(text)
