"""One self-contained HTML page: text, figures and sortable tables.

The page asks no other host for anything, and a content security policy in it
tells the browser to refuse any such request.
"""

import html
import io
import math
import pathlib
import re

import matplotlib

from keras_smat.plots import INK

_STYLE = """
:root{color-scheme:light dark;--ink:#262626;--dim:#5f6368;--page:#fff;
--line:#d9dce0;--shade:#f3f5f7;--link:#0072b2}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--dim:#a3a8ae;
--page:#15181b;--line:#3a3f45;--shade:#1f2428;--link:#56b4e9}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:54rem;padding:1.5rem 1rem 4rem;color:var(--ink);
background:var(--page);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.25;margin:.5rem 0}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;border-top:1px solid var(--line);
padding-top:1rem}
.lead{color:var(--dim)}
.note{background:var(--shade);border-left:4px solid var(--link);
padding:.6rem .9rem;margin:1rem 0}
figure{margin:1.2rem 0}
figcaption,caption{color:var(--dim);font-size:.88rem;text-align:left;
padding:.3rem 0}
.scroll{overflow-x:auto}
svg{display:block;width:100%;height:auto;color:var(--ink)}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:inherit!important}
table{border-collapse:collapse;font-size:.88rem;
font-variant-numeric:tabular-nums;min-width:50%}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}
td:first-child{white-space:nowrap}
tfoot td{font-weight:600;background:var(--shade)}
th button{font:inherit;font-weight:600;color:inherit;background:none;border:0;
padding:0;cursor:pointer;text-align:inherit}
th button::after{content:"\\2195";opacity:.4;margin-left:.3em}
th[aria-sort=ascending] button::after{content:"\\2191";opacity:1}
th[aria-sort=descending] button::after{content:"\\2193";opacity:1}
details{margin:.6rem 0}
summary{cursor:pointer}
pre{overflow-x:auto;background:var(--shade);padding:.8rem;font-size:.8rem;
line-height:1.4}
"""

_SCRIPT = """
for(const button of document.querySelectorAll("th button"))
button.addEventListener("click",()=>{
 const head=button.closest("th"),body=head.closest("table").tBodies[0];
 const down=head.getAttribute("aria-sort")==="ascending";
 for(const other of head.parentNode.children)other.removeAttribute("aria-sort");
 head.setAttribute("aria-sort",down?"descending":"ascending");
 const key=row=>{const cell=row.cells[head.cellIndex];
  return "v" in cell.dataset?Number(cell.dataset.v):cell.textContent};
 const rows=[...body.rows].sort((a,b)=>{const x=key(a),y=key(b);
  const sign=typeof x==="number"&&typeof y==="number"?x-y:
   String(x).localeCompare(String(y));
  return down?-sign:sign});
 body.append(...rows)});
"""

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)


class HtmlPage:
    """Builds a page from top to bottom; all text is escaped.

    Args:
        title: str.
        lead: str, a sentence below the title. Defaults to `""`.

    Example:

    ```python
    from keras_smat.html_page import HtmlPage

    page = HtmlPage("Few-shot accuracy")
    page.section("Results")
    page.table(["set", "accuracy %"], [["birds", ("81.2 ± 0.9", 81.2)]])
    text = page.render()
    ```
    """

    def __init__(self, title, lead=""):
        self.title = title
        self._parts = [f"<h1>{_escape(title)}</h1>"]
        self._figures = 0
        if lead:
            self._parts.append(f'<p class="lead">{_escape(lead)}</p>')

    def section(self, title):
        """Starts a section."""
        self._parts.append(f"<h2>{_escape(title)}</h2>")

    def paragraph(self, text):
        """Adds a paragraph."""
        self._parts.append(f"<p>{_escape(text)}</p>")

    def note(self, text):
        """Adds a paragraph that stands out."""
        self._parts.append(f'<p class="note">{_escape(text)}</p>')

    def bullets(self, items):
        """Adds a list.

        Args:
            items: list of str.
        """
        items = "".join(f"<li>{_escape(item)}</li>" for item in items)
        self._parts.append(f"<ul>{items}</ul>")

    def figure(self, figure, caption, min_width=360):
        """Adds a figure as inline SVG, in the page's own ink and font.

        Args:
            figure: matplotlib `Figure` or `Axes`.
            caption: str, also the figure's text for screen readers.
            min_width: int, pixels below which the figure scrolls instead of
                shrinking. Defaults to `480`.
        """
        self._figures += 1
        figure = getattr(figure, "figure", figure)
        svg = to_svg(figure, f"{self.title}/{self._figures}")
        label = html.escape(caption, quote=True)
        style = f"min-width:{min_width}px"
        svg = svg.replace(
            "<svg ", f'<svg role="img" aria-label="{label}" style="{style}" ', 1
        )
        self._parts.append(
            f'<figure><div class="scroll">{svg}</div>'
            f"<figcaption>{_escape(caption)}</figcaption></figure>"
        )

    def table(self, columns, rows, footer=(), caption=""):
        """Adds a table that sorts when a heading is clicked.

        Args:
            columns: list of str.
            rows: list of lists of cells. A cell is a str, a number, `None`,
                or a pair `(text, number)` of what is shown and what is
                sorted by.
            footer: list of rows that stay at the bottom. Defaults to `()`.
            caption: str. Defaults to `""`.
        """
        first = (*rows, *footer)[:1]
        numeric = [_number(cell) is not None for row in first for cell in row]
        numeric += [False] * (len(columns) - len(numeric))
        head = "".join(
            f'<th{_kind(n)} scope="col"><button type="button">'
            f"{_escape(name)}</button></th>"
            for name, n in zip(columns, numeric)
        )
        body = "".join(map(_row, rows))
        foot = "".join(map(_row, footer))
        foot = f"<tfoot>{foot}</tfoot>" if foot else ""
        caption = f"<caption>{_escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr>'
            f"</thead><tbody>{body}</tbody>{foot}</table></div>"
        )

    def preformatted(self, text):
        """Adds text as it is, such as JSON."""
        self._parts.append(f"<pre>{_escape(text)}</pre>")

    def folded(self, summary, add):
        """Adds what `add()` adds, unfolded by a click.

        Args:
            summary: str, always visible.
            add: function without arguments that adds to this page.
        """
        text = _escape(summary)
        self._parts.append(f"<details><summary>{text}</summary>")
        add()
        self._parts.append("</details>")

    def render(self):
        """Returns the page as a str."""
        parts = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, '
            'initial-scale=1">\n<link rel="icon" href="data:,">\n'
            f"<title>{_escape(self.title)}</title>\n"
            f"<style>{_STYLE}</style></head>\n<body>\n{parts}\n"
            f"<script>{_SCRIPT}</script>\n</body></html>\n"
        )

    def save(self, path):
        """Writes the page to a path."""
        pathlib.Path(path).write_text(self.render(), encoding="utf-8")


def to_svg(figure, salt="keras_smat"):
    """A matplotlib `Figure` as an `<svg>` element for an HTML page.

    Args:
        figure: matplotlib `Figure`.
        salt: str; ids in figures of different salts differ. Defaults to
            `"keras_smat"`.

    Returns:
        str, the same for the same figure. What was drawn in `plots.INK` has
        the colour of the surrounding text.
    """
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    settings = {"svg.fonttype": "none", "svg.hashsalt": salt}
    text = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # An HTML parser knows the namespaces; style rules and the ids of groups
    # would reach beyond their figure.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", svg)
    svg = re.sub(
        r"<style.*?</style>|<metadata.*?</metadata>", "", svg, flags=re.S
    )
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' id="image[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor").strip()


def _row(cells):
    return f"<tr>{''.join(map(_cell, cells))}</tr>"


def _cell(cell):
    number = _number(cell)
    text = cell[0] if isinstance(cell, tuple) else cell
    text = "" if text is None else _escape(str(text))
    if number is None:
        return f"<td>{text}</td>"
    return f'<td class="n" data-v="{number!r}">{text}</td>'


def _number(cell):
    value = cell[1] if isinstance(cell, tuple) else cell
    if isinstance(value, str) or value is None or not math.isfinite(value):
        return None
    return float(value)


def _kind(numeric):
    return ' class="n"' if numeric else ""


def _escape(text):
    return html.escape(str(text), quote=False)
