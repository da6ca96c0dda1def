"""The site as it was built: its links lead somewhere, and a browser finds nothing missing.

`nox -s docs` builds it and runs this. Without Chromium, links are still checked. Screenshots are left beside the site.
"""

import shutil
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

SITE = Path(__file__).parents[1] / "build" / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGES = (
    "index",
    "quickstart",
    "gallery/plot_segmentation",
    "api/fastsoftmax.cross_entropy_with_grad_hess",
    "accuracy",
    "performance/index",
)
TIME_LIMIT = 100_000  # ms
WIDTHS = {"wide": 1440, "narrow": 390}

if not SITE.exists():
    pytest.skip("the site is not built: `nox -s docs`", allow_module_level=True)


class Page(HTMLParser):
    """The references of a page, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, _tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" and value:
                self.places.add(value)


page_at = cache(Page)


def test_every_link_inside_the_site_leads_somewhere():
    pages = [path for path in sorted(SITE.rglob("*.html")) if "_static" not in path.parts]
    assert len(pages) > 40, f"{SITE} is not the site"
    broken = []
    for path in pages:
        for link in page_at(path).links:
            address, place = urldefrag(link)
            if urlsplit(address).scheme:
                continue
            target = (path.parent / unquote(urlsplit(address).path)).resolve() if address else path
            found = target.is_file() and (target.suffix != ".html" or unquote(place) in page_at(target).places)
            if not found:
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert not broken, "\n".join(broken)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: the package chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the site, served on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Opened:
    """A tab of the browser, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab.set_default_timeout(TIME_LIMIT)
        self.faults: list[str] = []
        self.tab.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        self.tab.on("pageerror", lambda error: self._note(True, str(error)))
        self.tab.on("requestfailed", lambda request: self._note(True, f"failed: {request.url}"))
        self.tab.on("response", lambda response: self._note(not response.ok, f"{response.status}: {response.url}"))
        self.tab.on("request", lambda request: self._note(self._elsewhere(request.url, address), request.url))

    def _note(self, is_fault: bool, text: str) -> None:
        if is_fault:
            self.faults.append(text)

    @staticmethod
    def _elsewhere(url: str, address: str) -> bool:
        """Whether an address is on another host, of which the site needs none."""
        return urlsplit(url).scheme.startswith("http") and not url.startswith(address)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_screens_of_any_width_and_lacks_nothing(name, width, scheme, browser, address):
    with Opened(browser, address, WIDTHS[width], scheme) as opened:
        tab = opened.tab
        tab.goto(f"{address}/{name}.html", wait_until="networkidle")
        missing = tab.locator("article img").evaluate_all("all => all.filter(e => !e.naturalWidth).map(e => e.src)")
        names = tab.locator("h1, h2, h3, .sig, .prev-next-area")
        cut = names.evaluate_all("all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)")
        folder = SITE.with_name("screenshots")
        folder.mkdir(exist_ok=True)
        tab.screenshot(path=folder / f"{name.replace('/', '-')}-{width}-{scheme}.png", full_page=True)
        assert tab.locator("h1").count() >= 1
        assert not missing
        assert not cut
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], "the page scrolls sideways"
        assert not opened.faults


def test_a_search_for_a_function_finds_its_page(browser, address):
    with Opened(browser, address, WIDTHS["wide"], "light") as opened:
        tab = opened.tab
        tab.goto(f"{address}/index.html", wait_until="networkidle")
        tab.keyboard.press("Control+k")
        tab.keyboard.type("logsumexp")
        tab.keyboard.press("Enter")
        results = tab.locator("#search-results li a")
        results.first.wait_for()
        tab.wait_for_load_state("networkidle")
        links = results.evaluate_all("all => all.map(each => each.href)")
        tab.screenshot(path=SITE.with_name("screenshots") / "search.png")
        assert any("api/fastsoftmax.logsumexp.html" in link for link in links)
        assert not opened.faults
