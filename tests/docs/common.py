"""The documents, and the blocks in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def name(path):
    return str(path.relative_to(ROOT))


def fenced(text, language):
    """(rest of the opening line, content) of each fenced block of a language."""
    return re.findall(rf"^```{language}\b *(.*?)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text):
    """Lines of indented blocks without their comments, as typed in a shell."""
    lines = re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line).strip())]
