"""Tables in Markdown files that a program keeps up to date."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end -->"


class Place:
    """What stands between the lines ``<!-- program -->`` and ``<!-- end -->`` of a file.

    Raises:
        ValueError: the file has no such lines.
    """

    def __init__(self, path: Path, program: str):
        self.path = path
        self.begin = f"<!-- {program} -->\n"
        self._around()

    def write(self, text: str) -> None:
        before, after = self._around()
        self.path.write_text(before + text + after, encoding="utf-8")
        print(f"written into {self.path}")

    def _around(self) -> tuple[str, str]:
        before, begins, rest = self.path.read_text(encoding="utf-8").partition(self.begin)
        _, ends, after = rest.partition(END)
        if not begins or not ends:
            raise ValueError(f"{self.path} has no place for a table: {self.begin}{END}")
        return before + begins, ends + after
