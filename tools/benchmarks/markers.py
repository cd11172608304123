"""Tables in Markdown files that a program keeps up to date."""

from __future__ import annotations

from pathlib import Path


def write_between(path: Path, program: str, text: str) -> None:
    """Replace what stands between the lines ``<!-- program -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the file has no such lines.
    """
    begin, end = f"<!-- {program} -->\n", "<!-- end -->"
    before, begins, rest = path.read_text(encoding="utf-8").partition(begin)
    _, ends, after = rest.partition(end)
    if not begins or not ends:
        raise ValueError(f"{path} has no place for the table of {program}")
    path.write_text(before + begin + text + end + after, encoding="utf-8")
    print(f"written into {path}")
