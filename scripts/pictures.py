#!/usr/bin/env python3
"""Takes the pictures of the READMEs from a running demo: `scripts/pictures.py [--chromium PROGRAM]`.

For each language one demo is started, watched until the switch has failed and what stands behind it is held back, and the
first page is taken as a person sees it: docs/img/overview.LANG.png, light, at most 150 kB. Needs Playwright and a Chromium.
"""

import argparse
import asyncio
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from playwright.async_api import Page, ViewportSize, async_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "img"
LANGUAGES = {"en": "en-GB", "zh_CN": "zh-CN"}  # of the demo: of the browser
BYTES_MAX = 150_000
STORY_S_MAX = 180
SETTLE_S = 1.5  # the page takes its first live update; the story goes on after 6 s
SIZE = ViewportSize(width=1180, height=690)
SCALE = 1.25


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chromium = parser.parse_args().chromium
    IMAGES.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        file = IMAGES / f"overview.{language}.png"
        async with asyncio.timeout(STORY_S_MAX):
            await take(language, file, chromium)
        size = file.stat().st_size
        print(f"{file.relative_to(ROOT)}: {size} bytes")
        if size > BYTES_MAX:
            raise SystemExit(f"{file}: more than {BYTES_MAX} bytes, choose a smaller SIZE or SCALE")


async def take(language: str, file: Path, chromium: str) -> None:
    """One demo from its start to the picture; it is ended whatever happens."""
    command = (Path(sys.executable).with_name("tocsin"), "demo", "--lang", language)
    demo = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert demo.stdout is not None
    try:
        url = (await awaited(demo.stdout, r"(http://127\.0\.0\.1:\d+)"))[1]
        password = (await awaited(demo.stdout, r"admin.*?([A-Za-z0-9_-]{10,})"))[1]
        async with async_playwright() as play:
            browser = await play.chromium.launch(executable_path=chromium)
            context = await browser.new_context(
                viewport=SIZE, locale=LANGUAGES[language], color_scheme="light", device_scale_factor=SCALE
            )
            page = await context.new_page()
            await log_in(page, url, password)
            for _ in range(2):  # one line for each device behind the switch: its incident, and the one that explains it
                await awaited(demo.stdout, r"^ +(mes-db|plc-press-7)\b.*\bI-\d+.*\bI-\d+")
            await page.reload()
            await asyncio.sleep(SETTLE_S)
            await page.screenshot(path=file)
            await browser.close()
    finally:
        if demo.returncode is None:
            demo.terminate()
        await demo.communicate()


async def log_in(page: Page, url: str, password: str) -> None:
    await page.goto(f"{url}/login")
    await page.fill("input[name=name]", "admin")
    await page.fill("input[name=password]", password)
    await page.click("form[action^='/login'] button")
    await page.wait_for_url(f"{url}/")


async def awaited(out: asyncio.StreamReader, pattern: str) -> re.Match[str]:
    """The next line of the demo that fits."""
    while line := (await out.readline()).decode():
        if found := re.search(pattern, line):
            return found
    raise SystemExit(f"the demo ended before it said {pattern}")


if __name__ == "__main__":
    asyncio.run(main())
