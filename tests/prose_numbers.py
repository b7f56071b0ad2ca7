"""Which numbers in a lesson's prose have nothing behind them: no cell prints or sets them, no source has them."""

import re

from ldm_tutor.lessons.paper_figures import known_numbers

_PLAIN = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
# Not part of a word, a range, a version or another number; a unit of per cent belongs to it.
NUMBER = re.compile(rf"(?<![\w.,])({_PLAIN})(\s?%|\s?per cent)?(?![\w%]|[.,]\d)")
SHOWN = re.compile(rf"(?<![\w.])(?:{_PLAIN})(?:e[+-]?\d+)?")
_NAMED = r"\(?(?:[A-Z]?\d[\d.]*|[A-Z]\b)\)?"
REFERENCE = re.compile(
    r"\b(?:equations?|eqs?\.|tables?|figures?|sections?|lessons?|algorithms?|appendix|chapters?|pages?)\s+"
    rf"{_NAMED}(?:(?:,| and| to| or) {_NAMED})*",
    re.IGNORECASE,
)
WITHOUT_REFERENCES = re.compile(r"^#+ References$.*?(?=^#+ |\Z)", re.DOTALL | re.MULTILINE)
NOT_PROSE = (
    re.compile(r"```.*?```|\$\$.*?\$\$|`[^`]*`|\$[^$]*\$", re.DOTALL),
    re.compile(r"<[^>]+>|\]\([^)]*\)|https?://\S+|arXiv[: ]\d{4}\.\d{4,5}"),
    re.compile(r"^#.*$", re.MULTILINE),
    REFERENCE,
)


def unsupported_numbers(notebook):
    """Numbers with a point, with per cent or of three digits and more, without years, that nothing supports."""
    shown = numbers_shown(notebook)
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        text = WITHOUT_REFERENCES.sub("", cell.source)
        for paragraph in re.split(r"\n(?:>?\s*)\n", text):
            plain = paragraph
            for pattern in NOT_PROSE:
                plain = pattern.sub(" ", plain)
            known = None
            for match in NUMBER.finditer(plain):
                if not is_claim(match) or is_shown(match, shown):
                    continue
                known = set(known_numbers(paragraph)) if known is None else known
                if not is_shown(match, known, shares=False):
                    around = " ".join(plain[max(0, match.start() - 40) : match.end() + 20].split())
                    found.append(f"{cell.id}: {match[0]} in '{around}'")
    return found


def is_claim(match):
    """Whether it is a number of the kind that is looked at: a small whole number or a year is not."""
    digits = match[1].replace(",", "")
    if "." in digits or match[2]:
        return True
    year = "," not in match[1] and 1950 <= int(digits) <= 2035
    return len(digits) >= 3 and not year


def is_shown(match, values, shares=True):
    """Whether one of the values is the number, rounded to as many digits; with `shares` 0.93 supports 93%."""
    digits = match[1].replace(",", "")
    number, places = float(digits), len(digits.partition(".")[2])
    slack = 0.5 * 10**-places + 1e-9 if places or match[2] else 1e-9
    factors = (1, 100) if match[2] and shares else (1,)
    return any(abs(factor * value - number) <= slack for value in values for factor in factors)


def numbers_shown(notebook):
    """Every number in the notebook's code and in what it prints, also in the words that stand for its figures."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        parts.append(re.sub(r"(?<=\d)_(?=\d)", "", cell.source))
        for output in cell.outputs:
            data = output.get("data", {})
            markup = re.sub(r'data:image/[^"]+|style="[^"]*"', "", data.get("text/html", ""))
            parts += [output.get("text", ""), data.get("text/plain", ""), markup]
    return {float(each.replace(",", "")) for each in SHOWN.findall("\n".join(parts))}
