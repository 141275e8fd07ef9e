"""Energy by the counters of Linux's powercap, over files as the kernel shows them."""

import pytest

from steper_ray.core.energy import EnergyMeter


def write(folder, name, microjoules, wraps_at=262_143_328_850):
    counter = folder / name
    counter.mkdir(exist_ok=True)
    (counter / "energy_uj").write_text(f"{microjoules}\n")
    (counter / "max_energy_range_uj").write_text(f"{wraps_at}\n")


def test_packages_are_summed_and_their_parts_are_not_counted_twice(tmp_path):
    names = ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0")
    for name in names:
        write(tmp_path, name, 5_000_000)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0
    for name, now in zip(names, (7_500_000, 6_000_000, 7_000_000), strict=True):
        write(tmp_path, name, now)
    assert meter.joules() == pytest.approx(3.5)


def test_a_counter_that_began_again_at_zero_is_still_right(tmp_path):
    write(tmp_path, "intel-rapl:0", 9_000_000, wraps_at=10_000_000)
    meter = EnergyMeter(tmp_path)
    write(tmp_path, "intel-rapl:0", 2_000_000, wraps_at=10_000_000)
    assert meter.joules() == pytest.approx(3.0)


@pytest.mark.parametrize("names", [(), ("intel-rapl:0",)])
def test_without_a_counter_that_can_be_read_nothing_is_measured(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()  # its file is not there, as where only root may see it
    assert EnergyMeter(tmp_path).joules() is None
