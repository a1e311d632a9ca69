"""What a plugin answers (CNI specification 1.1.0, section 5): bytes of others, so nothing is believed."""

from collections.abc import Mapping, Sequence

from secrun.errors import ImageError, NetworkError
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.network import addresses
from secrun.network.limits import MAX_RESULT_BYTES, MAX_RESULT_ITEMS
from secrun.printable import printable
from secrun.record import field, record

_QUOTED = 500


@record
class Address:
    """An address of one of the result's interfaces, with its prefix length; `gateway` may be empty."""

    cidr: str
    gateway: str
    interface: int | None

    @property
    def ip(self) -> str:
        """The address alone."""
        return self.cidr.partition("/")[0]


@record
class Interface:
    """An interface that the plugins made; an empty `sandbox` means that it is the host's."""

    name: str
    mac: str
    mtu: int
    sandbox: str


@record
class Route:
    """A route; an empty gateway means that of the address."""

    destination: str
    gateway: str


@record
class Answers:
    """Name servers and the like of one network."""

    servers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@record
class Result:
    """What ADD made; `document` is the answer itself, which later calls get back."""

    interfaces: tuple[Interface, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Answers = field(default_factory=Answers)
    document: Mapping[str, JsonValue] = field(default_factory=dict)

    def inside(self, interface: str) -> tuple[Address, ...]:
        """Return the addresses of the pod's side."""
        own = [
            index for index, item in enumerate(self.interfaces) if item.sandbox and item.name == interface
        ]
        return tuple(item for item in self.addresses if item.interface is None or item.interface in own)


class _Reader:
    """Takes typed members of one object; every complaint names the plugin."""

    def __init__(self, value: JsonValue, what: str) -> None:
        self.what = what
        if not isinstance(value, dict):
            raise self.bad("answer", value, "an object")
        self.value: JsonObject = value

    def bad(self, name: str, value: JsonValue, expected: str) -> NetworkError:
        shown = printable(str(value)[:80])
        return NetworkError(
            f"{self.what}: {name} is {shown!r}, expected {expected}",
            hint="the plugin does not keep to the CNI specification",
            code="network-answer",
        )

    def text(self, name: str) -> str:
        value = self.value.get(name) or ""
        if not isinstance(value, str) or not value.isprintable() or len(value) > 4096:
            raise self.bad(name, value, "a line of text")
        return value

    def quoted(self, name: str) -> str:
        """Take words for people: what they say is shown, on one line."""
        return printable(str(self.value.get(name) or "").strip().replace("\n", "; ")[:_QUOTED])

    def number(self, name: str) -> int | None:
        value = self.value.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.bad(name, value, "a number")
        return value

    def items(self, name: str) -> Sequence[JsonValue]:
        value = self.value.get(name) or []
        if not isinstance(value, list) or len(value) > MAX_RESULT_ITEMS:
            raise self.bad(name, value, f"a list of at most {MAX_RESULT_ITEMS}")
        return value

    def objects(self, name: str) -> "Sequence[_Reader]":
        return [_Reader(item, f"{self.what}: {name}") for item in self.items(name)]

    def texts(self, name: str) -> tuple[str, ...]:
        found: list[str] = []
        for item in self.items(name):
            if not isinstance(item, str) or not item.isprintable() or len(item) > 4096:
                raise self.bad(name, item, "a list of strings")
            found.append(item)
        return tuple(found)

    def ip(self, name: str) -> str:
        text = self.text(name)
        found = addresses.address(text) if text else ""
        if found is None:
            raise self.bad(name, text, "an address")
        return found

    def cidr(self, name: str) -> str:
        found = addresses.with_prefix(self.text(name))
        if found is None:
            raise self.bad(name, self.text(name), "an address with its prefix length")
        return found


def _interface(reader: _Reader) -> Interface:
    return Interface(
        name=reader.text("name"),
        mac=reader.text("mac"),
        mtu=reader.number("mtu") or 0,
        sandbox=reader.text("sandbox"),
    )


def _address(reader: _Reader, count: int) -> Address:
    index = reader.number("interface")
    if index is not None and not 0 <= index < count:
        raise reader.bad("interface", index, f"an index below {count}")
    return Address(cidr=reader.cidr("address"), gateway=reader.ip("gateway"), interface=index)


def _answers(value: JsonValue, what: str) -> Answers:
    reader = _Reader(value or {}, f"{what}: dns")
    servers = reader.texts("nameservers")
    for server in servers:
        if addresses.address(server) is None:
            raise reader.bad("nameservers", server, "addresses")
    domain, search = reader.text("domain"), reader.texts("search")
    for name in (domain, *search):
        if name and not addresses.is_domain(name):
            raise reader.bad("domain or search", name, "a domain")
    options = reader.texts("options")
    if any(len(option.split()) != 1 for option in options):
        raise reader.bad("options", " ".join(options), "words")
    return Answers(servers=servers, domain=domain, search=search, options=options)


def from_document(document: JsonObject, what: str) -> Result:
    """Read a result of specification 0.3.0 or later; raises NetworkError naming `what`."""
    reader = _Reader(document, what)
    interfaces = tuple(_interface(item) for item in reader.objects("interfaces"))
    return Result(
        interfaces=interfaces,
        addresses=tuple(_address(item, len(interfaces)) for item in reader.objects("ips")),
        routes=tuple(
            Route(destination=item.cidr("dst"), gateway=item.ip("gw")) for item in reader.objects("routes")
        ),
        dns=_answers(document.get("dns"), what),
        document=document,
    )


def _object(data: bytes, what: str) -> JsonObject:
    try:
        return parse_object(data, what=f"the answer of {what}", limit=MAX_RESULT_BYTES)
    except ImageError as error:
        raise NetworkError(
            error.message, hint="the plugin does not keep to the CNI specification", code="network-answer"
        ) from error


def parse(data: bytes, what: str) -> Result:
    """Parse the answer to ADD; raises NetworkError naming `what`."""
    return from_document(_object(data, what), what)


def versions(data: bytes, what: str) -> frozenset[str]:
    """Parse the answer to VERSION; raises NetworkError naming `what`."""
    return frozenset(_Reader(_object(data, what), what).texts("supportedVersions"))


def failure(data: bytes, noise: bytes, what: str, status: str) -> NetworkError:
    """Put into words how a plugin failed; pure. What it says is quoted, never obeyed."""
    quoted = printable(noise.decode("utf-8", "replace").strip()[-_QUOTED:])
    try:
        reader = _Reader(_object(data, what), what)
        code, said, details = reader.number("code"), reader.quoted("msg"), reader.quoted("details")
    except NetworkError:
        return NetworkError(
            f"{what} failed with {status}: {quoted or 'it did not say why'}", code="network-plugin"
        )
    words = ": ".join(word for word in (said, details, quoted) if word)
    hint = "the plugin says that a later try may succeed" if code == _TRY_AGAIN else ""
    return NetworkError(f"{what} refuses: {words or f'error {code}'}", hint=hint, code="network-plugin")


# Section 5, error codes.
_TRY_AGAIN = 11
