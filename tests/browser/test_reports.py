"""Reports in a browser, from the disk: nothing wider than the page or beyond reach, in light and
dark, and nothing that their policy refuses."""

from __future__ import annotations

import numpy as np
import pytest

from lfmim.config import ExperimentConfig
from lfmim.evaluation.store_report import Crop, describe_store, write_store_report
from lfmim.experiments.comparison_report import write_comparison
from lfmim.experiments.search import best_trial, read_space
from lfmim.experiments.sweep_report import sweep_figures, sweep_page
from tests.support.reports import benchmark_run, epochs, evaluation, meta_of, sweep
from tests.support.toy import LABELS, write_toy_store

pytestmark = pytest.mark.browser
WIDE = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
OUTSIDE = """[...document.querySelectorAll("body *")].filter((node) =>
  !node.closest(".scroll") && node.getBoundingClientRect().right > innerWidth + 1).length"""
HIDDEN = """[...document.querySelectorAll(".scroll")].filter((box) =>
  box.scrollWidth > box.clientWidth + 1).map((box) => box.ariaLabel)"""
SPILT = """[...document.querySelectorAll(".cards li, .sheet figure")].filter((card) =>
  card.scrollWidth > card.clientWidth).length"""
UNSEEN = "[...document.images].filter((i) => !i.complete || !i.naturalWidth || !i.alt).length"
CONTRAST = """[...document.querySelectorAll("h1, h2, h3, p, td, th, a")].map((node) => {
  const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + [0.2126, 0.7152, 0.0722][k] * v, 0);
  let box = node;
  const ground = (n) => getComputedStyle(n).backgroundColor;
  while (/^rgba\\(.*, 0\\)$/.test(ground(box))) box = box.parentElement;
  const [a, b] = [getComputedStyle(node).color, ground(box)].map(light);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind, with names that are long or markup."""
    home = tmp_path_factory.mktemp("pages")
    store = write_toy_store(home / "store")
    meta = meta_of(LABELS, epochs(12, best=5), 5, later=6)
    base = ExperimentConfig(store="s")
    space = read_space("", base)
    records = sweep(space, base, 20)
    swept = home / "sweep.html"
    figures = sweep_figures(space, records)
    swept.write_text(
        sweep_page("Sweep <s>", figures, records, best_trial(records), meta, [0.5, 0.6]),
        encoding="utf-8",
    )
    systems = ("lfmim", "lfmim-feedback", "logistic", "stacking", "mult")
    runs = [benchmark_run(s, k, 0.5 + 0.02 * i) for i, s in enumerate(systems) for k in (0, 1)]
    crops = [Crop("a", np.zeros((64, 64, 3), np.uint8)), Crop("b" * 90, None, "the video is gone")]
    return {
        "evaluate": evaluation(home / "report", store, meta),
        "benchmark": write_comparison(home / "compared", runs, ["<eft> 1: died"], title="a<b"),
        "sweep": swept,
        "store": write_store_report(home / "store.html", store, describe_store(store), crops),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("kind", ["evaluate", "benchmark", "sweep", "store"])
def test_everything_is_within_the_page(show, pages, kind, width, scheme):
    page = show(pages[kind], width=width, color_scheme=scheme)
    assert page.evaluate(WIDE)
    assert page.evaluate(OUTSIDE) == 0
    assert page.evaluate(UNSEEN) == 0
    assert min(page.evaluate(CONTRAST)) >= 4.5
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    # At 360 there is no room for all, at 1440 no table is cut.
    assert bool(page.evaluate(HIDDEN)) == (width == 360)
    assert page.evaluate(SPILT) == 0


def test_the_keyboard_scrolls_a_wide_table(show, pages):
    page = show(pages["evaluate"], width=360)
    box = page.locator(".scroll").first
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert box.evaluate("box => box.scrollLeft") > 0
    # Which row it is stays in sight.
    name = box.locator("tbody th").first
    assert name.evaluate("n => n.getBoundingClientRect().left") >= 0
