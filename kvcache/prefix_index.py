"""PrefixIndex: which device page holds the content of which key. Pages' holders and order are PagePool's."""

from __future__ import annotations

from dataclasses import dataclass

from kvcache.transfer import PageKey


@dataclass(slots=True)
class IndexedPage:
    """A page whose content is known, of this cache group and owner (as in Transfer).

    `uses` counts the sequences that wanted it, the one that made it included; `stored`: the disk was
    given it once, and is not again, whatever it has made of it.
    """

    key: PageKey
    page: int
    group: int
    owner: bytes
    uses: int = 1
    stored: bool = False


class PrefixIndex:
    """Keys and pages, one to one. The first page that is added under a key keeps it."""

    def __init__(self) -> None:
        self._by_key: dict[PageKey, IndexedPage] = {}
        self._by_page: dict[int, IndexedPage] = {}

    def __contains__(self, key: PageKey) -> bool:
        return key in self._by_key

    def __len__(self) -> int:
        return len(self._by_key)

    def pages(self) -> tuple[int, ...]:
        """All pages at this moment."""
        return tuple(self._by_page)

    def find(self, key: PageKey) -> IndexedPage | None:
        return self._by_key.get(key)

    def of_page(self, page: int) -> IndexedPage | None:
        return self._by_page.get(page)

    def add(self, entry: IndexedPage) -> bool:
        """Whether the entry's page is now the one of its key; False, and nothing changes, where another page is."""
        if entry.key in self._by_key:
            return False
        if entry.page in self._by_page:
            raise ValueError(f"page {entry.page} has a key already: its content cannot have changed")
        self._by_key[entry.key] = self._by_page[entry.page] = entry
        return True

    def drop(self, page: int) -> IndexedPage:
        """Takes a page out. Raises KeyError for a page that is not here."""
        entry = self._by_page.pop(page)
        del self._by_key[entry.key]
        return entry

    def check_integrity(self) -> None:
        """Raises AssertionError unless every key maps to a page that maps back."""
        assert len(self._by_key) == len(self._by_page), "keys and pages are not one to one"
        for page, entry in self._by_page.items():
            assert entry.page == page, f"page {page} is indexed as another"
            assert self._by_key[entry.key] is entry, f"page {page} and its key do not map to each other"
