"""The verb that reads and judges stored images once more."""

from pathlib import Path

from secrun.cli.guard import each
from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.digest import Digest
from secrun.errors import DeniedError, StateError
from secrun.image import integrity, resolve
from secrun.image import reference as references
from secrun.image.admit import Admitter
from secrun.image.entries import Entry
from secrun.image.options import FetchOptions
from secrun.image.reference import Origin, StoredReference
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject
from secrun.trust.admission import Admission, Decision

VERIFY_SCHEMA = "secrun.dev/image-verify/v1"


class _Verification:
    """One call: each image is read once, by however many names it is asked for."""

    def __init__(self, args: Arguments, context: Context) -> None:
        policy = args.text("policy")
        self._context = context
        self._repair = args.flag("repair")
        self._store = ImageStore(context.layout)
        self._admitter = Admitter(
            self._store, FetchOptions(policy=Path(policy).absolute() if policy else None)
        )
        self._found: dict[Digest, list[str]] = {}
        self.rows: list[JsonObject] = []

    def image(self, word: str) -> None:
        """Read and judge what a word means; raises UsageError or StateError."""
        for entry in resolve.lookup(self._store.entries(), references.localize(references.parse(word))):
            reference = references.parse(entry.reference)
            if not isinstance(reference, StoredReference):
                self.rows.append({**self._judged(entry, reference), "damage": [*self._damage(entry)]})

    def _judged(self, entry: Entry, reference: Origin) -> JsonObject:
        try:
            return _verdict(entry, self._admitter.judged(entry, reference, anew=True))
        except DeniedError as error:
            return _refused(entry, error)

    def _damage(self, entry: Entry) -> list[str]:
        if entry.digest in self._found:
            return self._found[entry.digest]
        known = integrity.damages(self._store, entry)
        self._found[entry.digest] = [item.text for item in known]
        if known and self._repair:
            with self._store.sole_use():
                done = integrity.repair(self._store, entry, known)
            self._context.warn(f"note: {entry.shown}: {done}")
        return self._found[entry.digest]


def verify(args: Arguments, context: Context) -> int:
    """Read stored images anew, and judge them anew."""
    work = _Verification(args, context)
    status = each(args.many("image"), work.image)
    if args.text("format") == "json":
        write_json(context, {"schema": VERIFY_SCHEMA, "images": [*work.rows]})
    else:
        for row in work.rows:
            context.out.write(_text(row))
    if any(row["damage"] for row in work.rows):
        return StateError.exit_code
    return status or (DeniedError.exit_code if any(map(_is_refused, work.rows)) else 0)


def _is_refused(row: JsonObject) -> bool:
    return row["decision"] != str(Decision.ACCEPT)


def _named(entry: Entry) -> JsonObject:
    return {"id": str(entry.digest), "reference": entry.reference, "tag": entry.tag}


def _verdict(entry: Entry, found: Admission) -> JsonObject:
    return {**_named(entry), **found.to_json(), "reason": found.reason}


def _refused(entry: Entry, error: DeniedError) -> JsonObject:
    return {
        **_named(entry),
        "decision": str(Decision.REJECT),
        "reason": error.message,
    }


def _text(row: JsonObject) -> str:
    """Return a verdict for people."""
    lines = [f"{row['tag'] or row['reference']} ({str(row['id'])[7:19]}): {row['decision']}"]
    if "policy" in row:
        lines.append(f"  by {row['policy']}, scope {row['scope']}")
    signatures = row.get("signatures")
    for item in signatures if isinstance(signatures, list) else ():
        if isinstance(item, dict):
            name = item["reference"] or "its digest"
            lines.append(f"  {item['kind']} signature of {_shown(item['signer'])} for {_shown(name)}")
    if row["reason"]:
        lines.append(f"  {_shown(row['reason'])}")
    damage = row["damage"]
    lines += [f"  damaged: {_shown(item)}" for item in (damage if isinstance(damage, list) else ())]
    return "".join(f"{line}\n" for line in lines)


def _shown(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)
