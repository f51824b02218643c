"""The report in a real browser, from the file system: `make test-slow`.

Needs Chromium and its driver (Debian: chromium, chromium-driver). Opens the pages of results/report, and of the report
built from two small notebooks, so that the checks run before there are results.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITES = [
    site
    for site in (Path(os.environ.get("DECORLIB_SITE", ROOT / "results" / "report")),)
    if (site / "index.html").exists()
]
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromedriver"),
    pytest.mark.skipif(not SITES, reason="no report yet; run `make reproduce`"),
]
PAGES = [page for site in SITES for page in sorted(site.rglob("*.html")) if "_static" not in page.parts]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: "/".join(page.parts[-2:]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        "force-prefers-reduced-motion",  # a colour that is still fading is no colour of the page
        # Every host but the driver's own is unknown: what a page fetches from elsewhere fails and is logged.
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def open_page(browser, page: Path, phone: bool = False) -> list[str]:
    """Open a page; return what went wrong while loading: console messages and requests that failed."""
    if phone:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    else:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.set_window_size(1300, 900)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    wrong = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.loadingFailed" and not message["params"].get("canceled"):
            wrong.append(f"did not load: {message['params']}")
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:")):
                wrong.append(f"asks the network: {url}")
    return wrong


@every_page
def test_loads_without_a_complaint(browser, page):
    assert open_page(browser, page) == []
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
    assert browser.execute_script(broken) == []
    assert browser.execute_script("return [...document.images].filter(i => !i.alt.trim()).map(i => i.src)") == []
    # icons are drawn by a script of the theme, from which unused ones were taken out
    icons = "return [...document.querySelectorAll('.fa-solid')].filter(i => i.tagName != 'svg').map(i => i.className)"
    assert browser.execute_script(icons) == []


@every_page
def test_links_lead_somewhere(browser, page):
    open_page(browser, page)
    targets = browser.execute_script(
        "return [...document.querySelectorAll('a[href]')].map(a => a.href).filter(h => h.startsWith('file:'))"
    )
    from urllib.parse import unquote, urlparse

    missing = {target for target in targets if not Path(unquote(urlparse(target).path)).exists()}
    assert not missing
    anchors = browser.execute_script(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => decodeURIComponent(a.hash.slice(1)))"
        ".filter(h => h && !document.getElementById(h))"
    )
    assert anchors == []


@every_page
def test_no_horizontal_scroll_on_a_phone(browser, page):
    assert open_page(browser, page, phone=True) == []
    width = browser.execute_script("return document.documentElement.scrollWidth")
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.bd-article *')].filter(e => e.getBoundingClientRect().right > 391"
        " && !e.closest('div.math, pre, table, .output')).slice(0, 5).map(e => e.outerHTML.slice(0, 120))"
    )
    assert (width, wide) == (390, [])


@every_page
def test_no_table_and_no_code_is_cut_on_a_small_laptop(browser, page):
    open_page(browser, page)
    laptop = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", laptop)
    cut = browser.execute_script(
        "for (const fold of document.querySelectorAll('details')) fold.open = true;"
        "const held = '.bd-article :is(pre, .output, .pst-scrollable-table-container, table)';"
        "const all = [document.documentElement, ...document.querySelectorAll(held)];"
        "const wide = all.filter(e => e.scrollWidth > e.clientWidth + 1);"
        "return wide.map(e => [e.tagName, e.clientWidth, e.scrollWidth, e.innerText.slice(0, 80)])"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert cut == []


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_search_quotes_pages_without_a_complaint(browser, site):
    from selenium.webdriver.support.ui import WebDriverWait

    open_page(browser, site / "search.html")
    browser.get(f"{(site / 'search.html').as_uri()}?q=decorrelation")
    found = "return [...document.querySelectorAll('#search-results p.context')].map(p => p.innerText)"
    WebDriverWait(browser, 20).until(lambda _: "finished" in browser.find_element("id", "search-results").text)
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(found))
    quoted = browser.execute_script(found)
    assert sum("decorrelation" in text.lower() for text in quoted) > len(quoted) / 2
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


@every_page
def test_code_is_folded_one_click_away(browser, page):
    from selenium.webdriver.support.ui import WebDriverWait

    if page.parent.name != "notebooks":
        pytest.skip("not a notebook")
    open_page(browser, page)
    folds = browser.find_elements("css selector", ".cell details")
    assert folds
    for fold in folds:
        code = fold.find_element("css selector", "pre")
        assert not code.is_displayed()
        fold.find_element("css selector", "summary").click()
        WebDriverWait(browser, 5).until(lambda _, code=code: code.is_displayed())  # it fades in


@every_page
def test_formulas_are_drawn(browser, page):
    open_page(browser, page)
    sizes = browser.execute_script(
        # but those in the page's contents, whose deeper entries show when their section is read
        "return [...document.querySelectorAll('math')].filter(m => !m.closest('nav')).map(m =>"
        " [m.getBoundingClientRect().width, m.getBoundingClientRect().height, m.textContent])"
    )
    folded = browser.execute_script(
        "return [...document.querySelectorAll('math')].filter(m => m.closest('details:not([open])')).length"
    )
    assert sum(1 for width, height, _ in sizes if width < 3 or height < 5) == folded
    text = browser.execute_script("return document.querySelector('main').innerText")
    assert "\\frac" not in text
    assert "$$" not in text


@every_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, page, theme):
    script = axe()
    if script is None:
        pytest.skip("needs axe-core: npm install --prefix build/npm axe-core")
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    open_page(browser, page)
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    browser.execute_script(script.read_text(encoding="utf-8"))
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
    )
    serious = [
        f"{rule['id']}: {rule['help']}: " + " ".join(node["html"][:160] for node in rule["nodes"][:3])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []


def axe() -> Path | None:
    """axe.min.js, where it is installed: from npm in build/, or inside a Python package."""
    places = [Path(os.environ.get("AXE_CORE", "nowhere")), ROOT / "build/npm/node_modules/axe-core/axe.min.js"]
    for package in ("axe_core_python", "axe_playwright_python"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            places.append(Path(spec.origin).parent / "axe.min.js")
    return next((place for place in places if place.is_file()), None)
