"""Check a built site: every local link leads to a file and a place in it, and no page fetches anything from elsewhere.

python scripts/check_site.py docs/_build/html
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Where a page leads (`links`), what it loads (`assets`), and the places in it (`ids`)."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.assets, self.ids = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag != "a":
            wanted = tag != "link" or given.get("rel") not in ("canonical", "author")
            self.assets |= {given[name] for name in ("href", "src") if name in given and wanted}


def problems(site: Path) -> list[str]:
    """One line for each link, file or fetch that does not work from a folder without a network."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    }
    found = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        for target in sorted(page.links | page.assets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.assets and parts.scheme != "data":
                    found.append(f"{where} fetches {target}")
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file():
                found.append(f"{where} leads to {target}, which does not exist")
            elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].ids:
                found.append(f"{where} leads to {target}, a place which does not exist")
    for sheet in sorted(site.rglob("*.css")):
        for target in re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)", sheet.read_text(encoding="utf-8")):
            found.append(f"{sheet.relative_to(site)} fetches {target}")
    return found


if __name__ == "__main__":
    (folder,) = sys.argv[1:]
    wrong = problems(Path(folder))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(f"{len(wrong)} broken links or remote files in {folder}" if wrong else 0)
