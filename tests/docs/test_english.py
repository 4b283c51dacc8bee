"""Refuses habits of foreign English in pages, docstrings, comments, error messages and report texts.

`python tests/docs/test_english.py` lists them with better words; CONTRIBUTING.md has the rules.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HABITS = {  # a pattern, and the words to use instead
    r"\balone\b": "only, by itself",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|more\b|less\b|worse\b|better\b|faster\b|newer\b)\w": "is not a",
    r"\banew\b": "again",
    r"\blikewise\b": "same",
    r"\bin the place of\b|\btakes? (?:the|its) place\b": "instead of, replaces",
    r"\b(?:held|holds?) (?:against|to)\b": "checked against",
    r"\bbeside\b": "next to, besides, compared with",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bst(?:and|ands|ood|anding)\b(?! for)": "is",
    r"\bwhat (?:of|came of|comes of|belongs)\b": "name the thing",
    r"\brivals?\b": "alternatives",
    r"(?:#|lists?) the rest\b": "name the thing",
    r"\breal steps?\b": "non-padding step",
    r"\b(?:test|training|validation) parts?\b": "split",
    r"\bin vain\b": "gave up waiting",
    r"\bto be had\b": "available",
    r"\bgoes without\b": "does not use",
    r"\b(?:once|product|line|step|row|call|ms|us|bytes?|samples?) an? "
    r"(?:call|step|chunk|layer|line|row|epoch|character|token|poll|mode|page|gate|block|sample)\b": "per",
}
OF_LIBRARY = {r"\bfaults?\b": "bug, error"}  # tests plant faults; the library and its pages have none to name
OPENINGS = r"(?:What|All that|As|With what|Whatever|Where|Who|Those|That|Of|Which) "  # of a docstring without a verb


def files() -> list[str]:
    """Every file with prose, whether git knows it yet or not."""
    patterns = ("*.md", "*.py", "*.h", "*.cpp", "*.sh", "*.yml", "Makefile")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    own = Path(__file__).relative_to(ROOT).as_posix()  # its patterns are the habits
    return sorted(path for path in {*listed} - {own} if (ROOT / path).is_file())


def prose(path: str, text: str) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is a docstring) of everything in a file that people read."""
    if path.endswith(".md"):
        blocks = re.compile(r"^( *)(```+).*?^\1\2\s*$", re.DOTALL | re.MULTILINE)
        text = blocks.sub(lambda block: "\n" * block[0].count("\n"), text)
        yield 1, re.sub(r"`[^`\n]+`|\]\([^)]*\)", "``", text), False
    elif path.endswith(".py"):
        yield from prose_of_python(path, text)
    else:
        mark = "//" if path.endswith((".h", ".cpp")) else ""
        for number, line in enumerate(text.split("\n"), 1):
            yield number, line.partition(mark)[2] if mark else line, False


def prose_of_python(path: str, text: str) -> Iterator[tuple[int, str, bool]]:
    """Docstrings, comments, and the strings of messages; all longer strings where reports are made."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, re.sub(r"`[^`\n]+`", "``", docstring), True
        elif isinstance(node, (ast.Raise, ast.Call)) and is_message(path, node):
            strings = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            yield node.lineno, "".join(each for each in strings if isinstance(each, str)), False
        elif path.startswith("benchmarks/publishing/") and isinstance(node, ast.Constant) and " " in str(node.value):
            yield node.lineno, str(node.value), False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def is_message(path: str, node: ast.AST) -> bool:
    """Whether users read the strings below a node: errors, warnings, help and output of commands."""
    name = "raise" if isinstance(node, ast.Raise) else getattr(node.func, "attr", getattr(node.func, "id", ""))
    return name == "raise" or (not path.startswith("tests/") and name in ("warn", "error", "add_argument", "print"))


def found_in(path: str, text: str) -> list[str]:
    """The habits in a file, one per line."""
    habits = HABITS | (OF_LIBRARY if path.startswith(("grucore/", "kernels/", "docs/")) else {})
    lines = []
    for line, part, is_docstring in prose(path, text):
        if is_docstring and re.match(OPENINGS, part):
            lines.append(f"{path}:{line}: {part.split()[0]!r} opens a docstring: write a sentence with a verb")
        for habit, better in habits.items():
            for match in re.finditer(habit, part, re.IGNORECASE):
                around = " ".join(part[max(0, match.start() - 40) : match.end() + 40].split())
                at = line + part[: match.start()].count("\n")
                lines.append(f"{path}:{at}: {match[0]!r}, write {better!r}: {around}")
    return lines


@pytest.mark.parametrize("path", files())
def test_no_file_has_a_foreign_habit(path):
    assert not found_in(path, (ROOT / path).read_text())


PLANTED = {
    "a page": ("docs/new.md", "It runs on the CPU alone.", 1),
    "code in a page": ("docs/new.md", "`alone` and\n```\nalone\n```\n", 0),
    "a docstring": ("grucore/new.py", '"""Weights that are no plain parameters."""', 1),
    "an opening": ("grucore/new.py", '"""What a layer has."""', 1),
    "a comment": ("tests/new.py", "x = 1  # computed anew", 1),
    "an error": ("kernels/new.py", 'raise ValueError(f"{x} stands in the place of {y}")', 2),
    "a name": ("grucore/new.py", "alone = 1", 0),
    "data": ("examples/new.py", 'x = "home alone"', 0),
    "a report": ("benchmarks/publishing/new.py", 'x = "two rivals"', 1),
    "C++": ("kernels/native/new.h", "int alone;  // kept beside x", 1),
    "right words": ("docs/new.md", "There is no copy. It is no longer used; 3 ms per step stand for that.", 0),
}


@pytest.mark.parametrize("path, text, count", PLANTED.values(), ids=PLANTED)
def test_planted_habits_are_found(path, text, count):
    assert len(found_in(path, text)) == count


if __name__ == "__main__":
    everything = [line for path in files() for line in found_in(path, (ROOT / path).read_text())]
    print(*everything, f"{len(everything)} in all", sep="\n")
    sys.exit(bool(everything))
