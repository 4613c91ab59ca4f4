"""The report in a real browser: filters, swiping, keys; narrow and wide, light and dark."""

import pytest
from browsing import COLOURS, js, needs_browser, pick, take, wait_until
from pages import Outline, cards, world

from retrieval.report.page import write_page

WATCH_TIMERS = """(() => {
  const [start, stop] = [setInterval, clearInterval];
  window.timers = new Map();
  window.setInterval = (act, ms) => { const id = start(act, ms); timers.set(id, ms); return id; };
  window.clearInterval = (id) => { timers.delete(id); stop(id); };
})()"""
"""Script that records the periods of the timers that run."""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with answers."""
    folder = tmp_path_factory.mktemp("browser")
    it = world(folder)
    return write_page(folder / "r.html", it.index, it.patches, it.details, answers=it.answers, limit=12).path


def shown(browser):
    return js(
        browser, "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.patch)"
    )


def send(browser, selector, keys):
    browser.find_element("css selector", selector).send_keys(keys)


def test_filters_choose_cards_and_show_their_number(look, page):
    browser = look()
    every = [card["data-patch"] for card in cards(Outline(page.read_text(encoding="utf-8")))]
    assert shown(browser) == every and js(browser, "count.textContent") == "12 of 12 patches"
    pick(browser, "input[name=verdict][value=right]")
    remaining = shown(browser)
    assert 0 < len(remaining) < 12 and js(browser, "count.textContent") == f"{len(remaining)} of 12 patches"
    off = js(browser, "[...document.querySelectorAll('.print.off')].map(p => p.dataset.verdict)")
    assert set(off) == {"right"}
    pick(browser, "button[type=reset]")
    wait_until(lambda: shown(browser) == every)
    js(
        browser,
        "(i => (i.value = 0.5, i.dispatchEvent(new Event('input', {bubbles: true}))))"
        "(document.querySelector('[name=min]'))",
    )
    sure = js(
        browser,
        "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => +c.dataset.confidence)",
    )
    assert 0 < len(sure) < 12 and min(sure) >= 0.5
    pick(browser, "button[type=reset]")
    wait_until(lambda: shown(browser) == every)
    take(browser, "image", "7")
    images = js(
        browser, "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.image)"
    )
    assert set(images) == {"7"}
    for box in ("right", "shifted", "wrong"):
        for element in browser.find_elements("css selector", f"input[name=verdict][value={box}]"):
            element.click()
    assert shown(browser) == [] and browser.find_element("id", "nothing").is_displayed()


def test_cards_are_sorted(look):
    browser = look()
    take(browser, "sort", "-confidence")
    sure = js(browser, "[...document.querySelectorAll('.card')].map(c => +c.dataset.confidence)")
    assert sure == sorted(sure, reverse=True)


def test_the_slider_swipes_by_keys_and_by_pointer(look):
    from selenium.webdriver import ActionChains, Keys

    browser = look()
    cut = "document.querySelector('.stage').style.getPropertyValue('--cut')"
    send(browser, ".cut", Keys.ARROW_LEFT * 3)
    assert js(browser, cut) == "47%"
    send(browser, ".cut", Keys.HOME)
    assert js(browser, cut) == "0%"
    assert "100%" in js(browser, "getComputedStyle(document.querySelector('.layer.query')).clipPath")
    stage = browser.find_element("css selector", ".stage")
    js(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
    ActionChains(browser).move_to_element(stage).click().perform()
    wait_until(lambda: abs(float(js(browser, cut)[:-1]) - 50) < 1)


def test_blinking_is_slow_and_can_be_stopped(look):
    browser = look()
    assert not browser.find_element("id", "blink").is_enabled()
    pick(browser, "input[name=view][value=blink]")
    flipped = "document.querySelectorAll('.card.flipped').length"
    pick(browser, ".flip")
    assert js(browser, flipped) == 1 and "the match" in js(
        browser, "document.querySelector('.flip').textContent"
    )
    pick(browser, ".flip")
    assert js(browser, flipped) == 0
    js(browser, WATCH_TIMERS)
    pick(browser, "#blink")
    assert js(browser, "[...timers.values()]") == [1000]  # one change a second at most: faster could harm
    wait_until(lambda: js(browser, flipped) > 0)
    wait_until(lambda: js(browser, flipped) == 0)
    pick(browser, "#blink")
    assert js(browser, "timers.size") == 0
    assert js(browser, "blink.getAttribute('aria-pressed')") == "false"


def test_reduced_motion_disables_blinking(look):
    browser = look(prefers_reduced_motion="reduce")
    pick(browser, "input[name=view][value=blink]")
    assert not browser.find_element("id", "blink").is_enabled()
    pick(browser, ".flip")
    assert js(browser, "document.querySelectorAll('.card.flipped').length") == 1


def test_keys_go_from_patch_to_patch(look):
    browser = look(prefers_reduced_motion="reduce")
    every = shown(browser)
    at = "document.activeElement.closest('.card')?.dataset.patch"
    pick(browser, "#next")
    assert js(browser, at) == every[0]
    send(browser, f"#patch-{every[0]}", "j")
    assert js(browser, at) == every[1]
    send(browser, f"#patch-{every[1]}", "j")
    send(browser, f"#patch-{every[2]}", "k")
    assert js(browser, at) == every[1]
    pick(browser, "#previous")
    assert js(browser, at) == every[0]
    send(browser, f"#patch-{every[0]}", "b")
    assert js(browser, "document.querySelectorAll('.card.flipped').length") == 1


def test_the_map_describes_a_footprint_and_leads_to_its_card(look):
    browser = look(prefers_reduced_motion="reduce")
    wrong = "document.querySelector('a.print[data-verdict=wrong]')"
    patch = js(browser, f"{wrong}.dataset.patch")
    js(browser, f"{wrong}.focus()")
    assert js(browser, "readout.textContent") == js(browser, f"{wrong}.dataset.label")
    assert js(browser, f"document.querySelector('.right-place[data-patch=\"{patch}\"]').matches('.lit')")
    pick(browser, "input[name=verdict][value=wrong]")  # its card is hidden, and comes back
    js(browser, f"{wrong}.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}))")
    wait_until(lambda: js(browser, "document.activeElement.dataset.patch") == patch)
    assert patch in shown(browser)


@pytest.mark.parametrize("width", [320, 360, 768, 1920])
@pytest.mark.parametrize("view", ["swipe", "beside"])
def test_nothing_is_wider_than_the_screen(look, width, view):
    browser = look(width)
    pick(browser, f"input[name=view][value={view}]")
    js(browser, "document.querySelectorAll('details').forEach(d => d.open = true)")
    assert js(browser, "document.documentElement.scrollWidth") <= width
    stage = js(browser, "document.querySelector('.stage').getBoundingClientRect().width")
    assert stage >= 200
    # Nothing is under something else: every card ends below its last part.
    assert js(
        browser,
        "[...document.querySelectorAll('.card')].every(c => c.lastElementChild.getBoundingClientRect().bottom"
        " <= c.getBoundingClientRect().bottom + 1)",
    )


def luminance(colour):
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(look, scheme):
    browser = look(prefers_color_scheme=scheme)
    paper = luminance(js(browser, "getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.8) == (scheme == "light") and (paper < 0.05) == (scheme == "dark")
    selectors = (
        ".quiet",
        ".card.wrong .verdict",
        ".card.right .verdict",
        "summary",
        "caption",
        "h1",
        "select",
    )
    for selector in selectors:
        ink, ground = js(browser, COLOURS, selector)
        bright, dim = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (selector, ink, ground)


def test_without_script_both_dates_are_side_by_side(look):
    browser = look()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        boxes = [
            e.rect
            for e in browser.find_elements("css selector", "#patch-1 .layer, .card:first-child .layer")[:2]
        ]
        assert boxes[0]["x"] != boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
        assert not browser.find_element("id", "filters").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
