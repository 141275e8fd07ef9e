"""A function over many items, by Ray tasks."""

import pytest

from steper_ray.core.errors import DataError
from steper_ray.core.tasks import in_order

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_after_an_error_no_task_is_left_that_could_still_write(tmp_path):
    def work(number: int) -> None:
        (tmp_path / f"begun-{number}").touch()
        if number == 0:
            raise DataError("the first item")
        (tmp_path / f"ended-{number}").touch()

    # Many ends with tasks under way: a cancelled one would now and then end this process.
    for _ in range(20):
        with pytest.raises(DataError, match="the first item"):
            list(in_order(work, range(100)))
        begun, ended = ({p.name.split("-")[1] for p in tmp_path.glob(f"{n}-*")} for n in ("begun", "ended"))
        assert begun - ended == {"0"}
        assert 1 < len(begun) < 100
        for path in tmp_path.iterdir():
            path.unlink()
