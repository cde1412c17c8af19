"""One browser for all pages."""

import pytest

from tests.browser.samples import chromium

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()


@pytest.fixture(scope="session")
def browser():
    path = chromium()
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a file; whatever the page says, throws or asks for is in ``page.trouble``."""
    contexts = []

    def open_file(file, width=1280, theme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=theme, **options)
        contexts.append(context)
        page = context.new_page()
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (page.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("data:", file.as_uri())) or page.trouble.append(f"request: {request.url}")
            ),
        )
        page.goto(file.as_uri())
        page.set_default_timeout(10_000)
        return page

    yield open_file
    for context in contexts:
        context.close()
