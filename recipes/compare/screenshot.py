"""Draw pages in headless Chromium as a phone and a desktop show them, and fail where one is broken.

python -m recipes.compare.screenshot runs/compare_debug/report.html --out screenshots
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

WIDTHS = {"phone": 380, "desktop": 1280}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Pictures that do not show, and a page wider than its window.
_PROBE = """async () => {
  const found = [];
  for (const img of document.images) {
    img.loading = "eager";
    try { await img.decode() } catch { found.push("a picture does not show: " + img.alt) }
  }
  const width = document.documentElement.scrollWidth;
  if (width > innerWidth) found.push(`the page is ${width} wide in a window of ${innerWidth}`);
  return found;
}"""


def draw(page: Path, out: Path) -> list[str]:
    """Write ``NAME_phone.png``, ``NAME_phone_dark.png`` and ``NAME_desktop.png``; returns what is broken."""
    from playwright.sync_api import sync_playwright

    broken = []
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, _BROWSERS)), None)  # None: Playwright's own, if it is installed
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, scheme in (("phone", "light"), ("phone", "dark"), ("desktop", "light")):
            window = browser.new_page(viewport={"width": WIDTHS[name], "height": 900}, color_scheme=scheme)
            window.on("pageerror", lambda error: broken.append(f"{page.name}: {error}"))
            window.on("console", lambda message: broken.append(f"{page.name}: {message.text}"))
            window.on("request", lambda request: _allow(request.url, page, broken))
            window.goto(page.resolve().as_uri())
            broken.extend(f"{page.name} ({name}): {what}" for what in window.evaluate(_PROBE))
            picture = out / f"{page.stem}_{name}{'_dark' if scheme == 'dark' else ''}.png"
            window.screenshot(path=picture, full_page=True)
            print(picture)
        browser.close()
    return broken


def _allow(url: str, page: Path, broken: list[str]) -> None:
    if url != page.resolve().as_uri() and not url.startswith(("data:", "blob:")):
        broken.append(f"{page.name} asks for {url[:100]}: it must need nothing but itself")


def main() -> int:
    """Exit code 1 where a page is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    args = parser.parse_args()
    broken = [what for page in args.page for what in draw(page, args.out)]
    for what in broken:
        print(f"broken: {what}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
