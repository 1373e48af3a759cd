"""The SQL of the migrations: frozen with each release."""

from pathlib import Path


def read(*patterns: str) -> str:
    """Return the files of version 1 that match the patterns, in the order of their names."""
    folder = Path(__file__).parent / "v1"
    files = (file for pattern in patterns for file in sorted(folder.glob(pattern)))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
