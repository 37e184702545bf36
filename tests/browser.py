"""A page as chromium sees it."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

WHAT_A_BROWSER_SEES = """<script>addEventListener('load', () => setTimeout(() => {
  const out = document.documentElement, beyond = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll'));
  const texts = [...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().height);
  const narrow = [...document.querySelectorAll('th:not(.counts th), td.long')].filter(e => e.innerText.length > 3 && e.getBoundingClientRect().width < 24);
  document.title = JSON.stringify({images: [...document.images].map(i => i.naturalWidth), room: innerWidth, width: out.scrollWidth, beyond: beyond.map(e => e.outerHTML.slice(0, 80)),
    text: Math.min(...texts), narrow: narrow.map(e => e.innerText), paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color})
}, 100))</script>"""


def opened(text, folder, width, dark):
    """(what a script sees in the page, lines of the console) of a page in a frame as wide as is asked for: a window may not be narrow."""
    browser = shutil.which("chromium")
    if not browser:
        pytest.skip("no chromium here (apt-get install chromium)")
    (folder / "opened.html").write_text(text.replace("</body>", WHAT_A_BROWSER_SEES + "</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(f"<meta name=color-scheme content='light dark'><iframe src=opened.html style='width:{width}px;height:9000px;border:0'></iframe>"
                                       "<script>onload = () => setTimeout(() => document.title = frames[0].document.title, 900)</script>")
    done = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}",
                           f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom",
                           f"file://{folder / 'frame.html'}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = re.search(r"<title>({.*?})</title>", done.stdout)
    assert told, done.stdout[-2000:]
    return json.loads(unescape(told[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]
