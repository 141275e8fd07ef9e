"""The page of a data set in a real browser: its filter needs no script."""

import shutil

import pytest
from distilled import assembled, trajectory
from selenium import webdriver
from selenium.webdriver.common.by import By

from steper_ray.data.inspection import DataSet, inspect
from steper_ray.data.inspection_text import page

pytestmark = pytest.mark.chromium


@pytest.fixture
def driver():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_only_trajectories_of_the_chosen_fate_are_shown(tmp_path, driver):
    assembled(tmp_path, [trajectory(1), trajectory(2, answer="Bo"), trajectory(3, reason="step_limit")])
    data = DataSet(tmp_path)
    page(data, inspect(data), data, tmp_path / "page.html")
    driver.get((tmp_path / "page.html").as_uri())

    def shown():
        found = driver.find_elements(By.TAG_NAME, "details")
        return [e.text.split(" q")[0] for e in found if e.is_displayed()]

    everything = ["Question 1?", "Question 2?", "Question 3?"]
    assert shown() == everything
    for label, left in (
        ("kept 1", [0]),
        ("wrong answer 1", [1]),
        ("step limit 1", [2]),
        ("all 3", [0, 1, 2]),
    ):
        driver.find_element(By.XPATH, f"//label[.='{label}']").click()
        assert shown() == [everything[n] for n in left]
    assert driver.get_log("browser") == []
