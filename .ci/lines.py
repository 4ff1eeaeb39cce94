"""Count lines of code, without blanks, comments and docstrings: `python .ci/lines.py [FOLDER]`."""

import ast
import io
import sys
import tokenize
from pathlib import Path

IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def code_lines(text: str) -> int:
    """Number of lines that hold code."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in IGNORED and token.type != tokenize.ENDMARKER:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                held.difference_update(range(first.lineno, first.end_lineno + 1))
    return len(held)


if __name__ == "__main__":
    total = 0
    for folder in sys.argv[1:] or ["pipeline", "models", "shards", "jobs"]:
        count = sum(code_lines(path.read_text()) for path in sorted(Path(folder).rglob("*.py")))
        total += count
        print(f"{folder:<10} {count:6}")
    print(f"{'all':<10} {total:6}")
