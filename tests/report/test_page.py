"""Pages in a browser: what the slider moves, hostile names, keyboard, accessibility, no script."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report import samples
from trueode.report.page import make_page, write_report

LIMIT = 1_500_000  # bytes
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's headless Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium: the pages are not looked at")
    with api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=program, args=list(QUIET))
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open the page of some contents; nothing may be said, thrown or requested by it."""
    wrong: list[str] = []
    contexts = []

    def open_page(contents: dict[str, Any], **options: Any) -> Any:
        path = write_report(contents, tmp_path / "report.html")
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))

        def route(request: Any) -> None:
            if request.request.url == path.as_uri():
                request.continue_()
            else:
                wrong.append(request.request.url)
                request.abort()

        context.route("**/*", route)
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            until(
                page,
                "document.documentElement.classList.contains('lively') && "
                "[...document.querySelectorAll('.area, .strip')].every((n) => n.children.length)",
            )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def until(page: Any, condition: str) -> None:
    """Wait for a condition; `wait_for_function` needs ``eval``, which the page forbids."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {condition}")


def state(page: Any) -> dict[str, Any]:
    """What the slider moves."""
    found: dict[str, Any] = page.evaluate(
        """() => ({
            paths: [...document.querySelectorAll(".trail")].map((p) => p.getAttribute("d")).sort(),
            numbers: document.getElementById("numbers").textContent,
            marked: document.querySelectorAll(".plane .changed").length,
            regions: [...document.querySelectorAll(".region")].map((m) => m.style.opacity),
            row: document.querySelector("#stops [aria-current]").cells[0].textContent,
            words: document.getElementById("solver").getAttribute("aria-valuetext"),
        })"""
    )
    return found


@pytest.mark.parametrize("name", samples.PAGES)
def test_a_page_is_small_and_tells_its_answer(visit: Callable[..., Any], name: str) -> None:
    contents = samples.PAGES[name]()
    assert len(make_page(contents).encode()) < LIMIT
    page = visit(contents)
    words = page.locator("#answer .sentence").text_content().replace("\N{NO-BREAK SPACE}", " ")
    assert words == contents["answer"]["sentence"]
    assert contents["answer"]["status"] in page.locator("#answer").get_attribute("class")
    colour = "getComputedStyle(document.querySelector('.sentence')).color"
    assert page.evaluate(colour) != page.evaluate("getComputedStyle(document.body).color")


def test_the_slider_moves_all_at_once(visit: Callable[..., Any]) -> None:
    contents = samples.run_page()
    slider = contents["slider"]
    page = visit(contents)
    trained = samples.STEPS.index(samples.TRAINED)
    before = state(page)
    # motion is unwelcome here: the page starts at rest, at the training solver
    assert page.locator("#solver").input_value() == str(trained)
    assert before["marked"] == 0
    page.locator("#solver").focus()
    for _ in range(len(slider["stops"]) - 1 - trained):
        page.keyboard.press("ArrowRight")
        after = state(page)
        for part in before:
            if part == "marked":
                continue
            assert after[part] != before[part], part
        before = after
    assert before["marked"] == len(slider["changed"][-1]) > 0
    assert before["row"] == "exact flow"
    assert f"{100 * slider['stops'][-1]['accuracy']:.1f}" in before["numbers"]
    assert page.locator("#changed li").count() == before["marked"]


def test_drawn_ends_are_the_flow(visit: Callable[..., Any]) -> None:
    """Each path starts and ends where the closed form says, by the plane's own scale."""
    contents = samples.run_page()
    page = visit(contents)
    page.locator("#solver").focus()
    page.keyboard.press("End")
    frame = page.evaluate(
        """() => { const f = document.querySelector(".plane .frame");
            return ["x", "y", "width", "height"].map((n) => Number(f.getAttribute(n))); }"""
    )
    drawn = page.evaluate(
        """() => [...document.querySelectorAll(".sample:not(.changed) .trail")].map((p) => {
            const w = p.getAttribute("d").slice(1).split("L").map((q) => q.split(" ").map(Number));
            return [w[0], w[w.length - 1], w.length]; })"""
    )[: contents["slider"]["n_paths"]]
    changed = set(contents["slider"]["changed"][-1])
    z0 = np.random.default_rng(0).normal(size=(120, 2)) * 0.9
    ends = samples.exact(z0, 2)[-1]
    x0, x1, y0, y1 = contents["slider"]["plane"]["bounds"]

    def pixel(z: Any) -> list[float]:
        return [
            frame[0] + (z[0] - x0) / (x1 - x0) * frame[2],
            frame[1] + (y1 - z[1]) / (y1 - y0) * frame[3],
        ]

    kept = [sample for sample in range(120) if sample not in changed]
    by_start = {tuple(round(v) for v in pixel(z0[k])): k for k in kept}
    for start, end, points in drawn[: len(kept)]:
        sample = by_start.get(tuple(round(v) for v in start))
        if sample is not None:
            assert end == pytest.approx(pixel(ends[sample]), abs=0.1)
        assert points == 65


def test_it_plays_once_and_can_be_stopped(visit: Callable[..., Any]) -> None:
    contents = samples.run_page()
    page = visit(contents, reduced_motion="no-preference")
    assert page.locator("button.play").text_content() == "Pause"
    until(page, "document.getElementById('solver').value !== '0'")
    page.locator("button.play").click()
    stopped = page.locator("#solver").input_value()
    page.wait_for_timeout(1500)
    assert page.locator("#solver").input_value() == stopped
    assert page.locator("button.play").text_content() == "Play"
    page.locator("button.play").click()
    last = str(len(contents["slider"]["stops"]) - 1)
    until(page, f"document.getElementById('solver').value === '{last}'")
    until(page, "document.querySelector('button.play').textContent === 'Play'")


def test_series_at_times_of_their_own_are_lines(visit: Callable[..., Any]) -> None:
    made = samples.series_page()
    series = made["slider"]["series"]
    for lines in (*series["lines"], series["exact"]):
        for k, values in enumerate(lines):
            values[k::3] = [None] * len(values[k::3])  # a time of another series
    page = visit(made)
    drawn = page.eval_on_selector_all(".series path.own[d]", "all => all.map((p) => p.outerHTML)")
    lines = [line for line in drawn if 'd="M' in line and "h0L" in line]
    assert len(lines) == len(series["exact"])
    assert all(line.count("M") == 1 for line in lines)


def test_series_move_too(visit: Callable[..., Any]) -> None:
    page = visit(samples.series_page())
    lines = "[...document.querySelectorAll('.area .own')].map((p) => p.getAttribute('d'))"
    page.locator("#solver").focus()
    page.keyboard.press("Home")
    coarse = page.evaluate(lines)
    page.keyboard.press("End")
    fine = page.evaluate(lines)
    exact = "[...document.querySelectorAll('.area .exact')].map((p) => p.getAttribute('d'))"
    assert coarse != fine == page.evaluate(exact)
    assert page.locator(".own.changed").count() == 2


def test_tables_sort_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit(samples.run_page())
    column = (
        "[...document.querySelectorAll('#table-0 tbody tr')].map((r) => r.cells[2].textContent)"
    )
    button = page.locator("#table-0 th button").nth(2)
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(column) == ["0", "0.0021", "0.4167", "–"]
    assert page.locator("#table-0 th").nth(2).get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert page.evaluate(column) == ["0.4167", "0.0021", "0", "–"]
    page.locator("#table-0 th button").nth(0).press("Enter")
    assert page.locator("#table-0 [aria-sort]").count() == 1


def test_charts_are_read_by_keyboard_and_pointer(visit: Callable[..., Any]) -> None:
    contents = samples.run_page()
    page = visit(contents)
    figure = page.locator("figure.chart").first
    reader = figure.locator("input")
    reader.focus()
    page.keyboard.press("Home")
    loss = contents["charts"][0]["lines"][0]["values"]
    assert f"{loss[0]:.4g}" in reader.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowRight")
    assert f"{loss[1]:.4g}" in figure.locator(".readout").text_content()
    reader.blur()
    assert not figure.locator(".readout").text_content().strip()
    reader.hover()
    middle = f"{loss[len(loss) // 2]:.4g}", f"{loss[len(loss) // 2 - 1]:.4g}"
    assert any(word in figure.locator(".readout").text_content() for word in middle)


def test_sparse_lines_are_joined_and_gaps_are_not(visit: Callable[..., Any]) -> None:
    contents = samples.run_page()
    values = [0.1 * i for i in range(60)]
    contents["charts"][1]["lines"] = [
        {
            "label": "every third",
            "values": [v if i % 3 == 0 else None for i, v in enumerate(values)],
        },
        {"label": "a gap", "values": [None if i == 30 else v for i, v in enumerate(values)]},
    ]
    page = visit(contents)
    drawn = page.locator("figure.chart").nth(1).locator(".area .line")
    assert [line.get_attribute("d").count("M") for line in drawn.all()] == [1, 2]


def test_runs_open_their_options(visit: Callable[..., Any]) -> None:
    contents = samples.sweep_page()
    page = visit(contents)
    assert page.locator(".runs > li").count() == len(contents["runs"])
    page.locator(".runs summary").nth(2).press("Enter")
    shown = page.locator(".runs pre").nth(2)
    assert shown.is_visible()
    assert shown.text_content() == contents["runs"][2]["options"]


@pytest.mark.parametrize("scripts", [True, False])
def test_hostile_names_stay_text(visit: Callable[..., Any], scripts: bool) -> None:
    page = visit(samples.hostile_page(), java_script_enabled=scripts)
    assert page.title().startswith("<img src=x")
    assert page.locator("b").count() == 0
    assert page.locator("img").count() == 1  # the still, whose source loads nothing
    assert page.locator("script").count() == 2
    assert "<img src=x" in page.locator("h1").text_content()
    if scripts:
        page.locator("#solver").focus()
        page.keyboard.press("End")
        assert "<img src=x" in page.locator("#numbers").text_content()
        assert page.locator("b").count() == 0


def test_only_its_own_script_may_run() -> None:
    """The policy itself stops what would have escaped all escaping."""
    page = make_page(samples.series_page())
    assert "unsafe-inline" not in page.split("script-src")[1].split(";")[0]
    assert "http" not in page.split("</head>")[0].replace("http-equiv", "")


@pytest.mark.parametrize("name", samples.PAGES)
def test_without_a_script_all_numbers_are_there(visit: Callable[..., Any], name: str) -> None:
    contents = samples.PAGES[name]()
    page = visit(contents, java_script_enabled=False)
    said = page.locator("body").inner_text()
    for stop in (contents["slider"] or {"stops": []})["stops"]:
        assert stop["label"] in said
        for share in (stop["accuracy"], stop["flips"]):
            assert share is None or f"{100 * share:.1f} %" in said
        assert stop["metric"] is None or f"{stop['metric']:.4g}" in said
    for chart in contents["charts"]:
        for line in chart["lines"]:
            assert all(f"{value:.4g}" in said for value in line["values"] if value is not None)
    for run in contents["runs"] or []:
        assert run["name"] in said


def test_stills_stand_in_without_a_script(visit: Callable[..., Any]) -> None:
    contents = samples.run_page()
    dot = samples.DOT
    contents["stills"] = [
        {"alt": "paths", "src": dot, "fallback": True},
        {"alt": "kept", "src": dot},
    ]
    lively, plain = visit(contents), visit(contents, java_script_enabled=False)
    assert [lively.get_by_alt_text(word).is_visible() for word in ("paths", "kept")] == [
        False,
        True,
    ]
    assert [plain.get_by_alt_text(word).is_visible() for word in ("paths", "kept")] == [True, True]


@pytest.mark.parametrize("name", [*samples.PAGES, "hostile"])
@pytest.mark.parametrize("width", [360, 1280])
def test_accessible_at_each_width_and_theme(
    visit: Callable[..., Any], name: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    contents = samples.hostile_page() if name == "hostile" else samples.PAGES[name]()
    page = visit(contents, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for each in page.locator("details").all():
        each.evaluate("(node) => { node.open = true; }")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        told = [(one["id"], [n["html"][:200] for n in one["nodes"]]) for one in found]
        assert not told, theme


def test_print_is_dark_on_light_without_controls(visit: Callable[..., Any]) -> None:
    page = visit(samples.run_page(), color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_timeout(100)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all(int(part) > 230 for part in paper[4:-1].split(","))
    assert not page.locator("button.play").is_visible()
    assert page.locator(".plane svg").is_visible()


def test_numbers_that_are_not_finite_are_left_out(visit: Callable[..., Any]) -> None:
    contents = samples.run_page()
    nan, infinite = float("nan"), float("inf")
    contents["charts"][0]["lines"][0]["values"][:3] = [nan, infinite, -infinite]
    contents["tables"][0]["rows"][0]["cells"][2] = nan
    contents["slider"]["stops"][0].update(accuracy=nan, nfe=infinite)
    paths = samples.euler(np.full((120, 2), 0.5), 1).transpose(1, 0, 2)
    paths[:, 1] = infinite
    contents["slider"]["paths"][0] = samples.coded(paths, "<f4")
    page = visit(contents)
    page.locator("#solver").focus()
    page.keyboard.press("Home")
    for word in ("NaN", "Infinity", "inf", "nan"):
        assert word not in page.locator("main").inner_html().replace("inner", "")


def test_a_lone_stop_and_empty_parts(visit: Callable[..., Any]) -> None:
    contents = samples.run_page()
    slider = contents["slider"]
    for key in ("stops", "paths", "n_points", "predicted", "changed"):
        slider[key] = slider[key][2:3]
    slider["regions"] = None
    contents.update(charts=[], tables=[], facts=[], stills=[])
    page = visit(contents)
    assert page.locator(".trail").count() == slider["n_paths"]


def test_no_name_is_taken_for_a_place_of_the_template() -> None:
    contents = samples.sweep_page()
    contents["title"] = "{{data}}{{script}}"
    assert "<h1>{{data}}{{script}}</h1>" in make_page(contents)
