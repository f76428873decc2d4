"""Names of nodes as a menu shows them: it cuts a name after about 20 letters."""

from __future__ import annotations

import re
import unicodedata

import pytest
from reins.tests.helpers.menu_names import ACRONYMS, LANGUAGES, names

SHOWN = 20  # columns; a Korean, Japanese or Chinese letter is as wide as two


def shown(name: str) -> str:
    """The part of a name that a menu shows."""
    width = 0
    for i, letter in enumerate(name):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > SHOWN:
            return name[:i]
    return name


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_menu_shows_of_the_names_tells_them_apart(language):
    by_start: dict[str, list[str]] = {}
    for name in names(language).values():
        by_start.setdefault(shown(name), []).append(name)
    assert [alike for alike in by_start.values() if len(alike) > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", ACRONYMS)
def test_a_name_begins_with_the_acronym_of_its_method_and_the_full_name_follows(node, language):
    acronym, _, full = names(language)[node].partition(" – ")
    assert acronym == ACRONYMS[node]
    assert re.search(r"[^\W\d_]{2}", full)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_acronym_stands_behind_a_name_where_a_menu_cuts_it(language):
    assert [name for name in names(language).values() if shown(name) != name and "(" in name] == []
    assert set(ACRONYMS) == {node for node, name in names(language).items() if " – " in name}


def test_english_names_differ_within_what_is_shown_by_more_than_a_piece_of_a_word():
    """Two names that are both cut have another whole word before the cut."""
    cut = [name for name in names("en").values() if shown(name) != name]
    whole = [" ".join(shown(name).split(" ")[:-1]) for name in cut]
    assert len(set(whole)) == len(whole), sorted(whole)
