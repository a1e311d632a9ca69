"""Which stored images `image list --filter` shows."""

import fnmatch
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from secrun.digest import Digest
from secrun.errors import ImageError, StateError, UsageError
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.entries import Entry
from secrun.image.store import ImageStore, imported_seconds

_Test: TypeAlias = Callable[[Entry], bool]
_InUse: TypeAlias = Callable[[], Collection[Digest]]
_KNOWN = "reference=PATTERN, label=NAME[=VALUE], before=IMAGE, since=IMAGE, used=true|false"


def _reference(pattern: str) -> _Test:
    def test(entry: Entry) -> bool:
        bare = entry.reference.partition("://")[2]
        return any(
            fnmatch.fnmatchcase(name, pattern) for name in (entry.reference, bare, entry.name) if name
        )

    return test


def _label(store: ImageStore, word: str) -> _Test:
    name, equals, value = word.partition("=")

    def test(entry: Entry) -> bool:
        try:
            known = store.facts(entry.digest)
        except (ImageError, StateError):
            return False  # nobody knows what a damaged image says
        labels = dict(known.config.labels) if known else {}
        return name in labels and (not equals or labels[name] == value)

    return test


def _compared(store: ImageStore, word: str, *, before: bool) -> _Test:
    found = resolve.lookup(store.entries(), references.localize(references.parse(word)))
    moment = imported_seconds(resolve.newest(found))

    def test(entry: Entry) -> bool:
        own = imported_seconds(entry)
        return own < moment if before else own > moment

    return test


def _used(word: str, in_use: _InUse) -> _Test:
    if word not in ("true", "false"):
        raise UsageError(f"--filter used={word[:40]}: expected true or false", code="usage-filter")
    used = in_use()
    return lambda entry: (entry.digest in used) is (word == "true")


def _test(store: ImageStore, text: str, in_use: _InUse) -> _Test:
    key, equals, value = text.partition("=")
    if equals and value:
        match key:
            case "reference":
                return _reference(value)
            case "label":
                return _label(store, value)
            case "before" | "since":
                return _compared(store, value, before=key == "before")
            case "used":
                return _used(value, in_use)
    raise UsageError(
        f"--filter {text[:80]}: there is no such filter", hint=f"known: {_KNOWN}", code="usage-filter"
    )


def chosen(store: ImageStore, words: Sequence[str], in_use: _InUse) -> list[Entry]:
    """Return the entries that all filters let through; raises UsageError for one that is not understood.

    `in_use` tells the images of pods; it is asked only if a filter needs it.
    """
    tests = [_test(store, word, in_use) for word in words]
    return [entry for entry in store.entries() if all(test(entry) for test in tests)]
