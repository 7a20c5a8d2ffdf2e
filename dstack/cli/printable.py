"""Somebody else's text on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """*text* without what could steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
