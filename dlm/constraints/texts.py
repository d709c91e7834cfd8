"""Expressions for JSON (RFC 8259): values and their parts.

At most one space separates JSON tokens, and objects and arrays nest to a limited depth.
"""

from typing import Final

from dlm.constraints.expressions import (
    Either,
    Expression,
    Joined,
    Repeated,
    either,
    maybe,
    series,
    signs,
    span,
    text,
)

DEEP: Final = 3
"""Most nested objects and arrays without a schema, and most nested uses of one reference."""
NOTHING: Final = Either(())

DIGIT: Final = signs("0123456789")
WHOLE: Final = either(text("0"), series(signs("123456789"), Repeated(DIGIT)))
BEHIND_POINT: Final = maybe(series(text("."), Repeated(DIGIT, 1)))
POWER: Final = maybe(series(signs("eE"), maybe(signs("+-")), Repeated(DIGIT, 1)))
SPACE: Final = maybe(text(" "))
MORE: Final = span(0x80, 0xBF)
CHARACTER: Final = either(
    span(0x20, 0x21),
    span(0x23, 0x5B),
    span(0x5D, 0x7F),
    series(span(0xC2, 0xDF), MORE),
    series(span(0xE0, 0xE0), span(0xA0, 0xBF), MORE),
    series(span(0xE1, 0xEC), MORE, MORE),
    series(span(0xED, 0xED), span(0x80, 0x9F), MORE),
    series(span(0xEE, 0xEF), MORE, MORE),
    series(span(0xF0, 0xF0), span(0x90, 0xBF), MORE, MORE),
    series(span(0xF1, 0xF3), MORE, MORE, MORE),
    series(span(0xF4, 0xF4), span(0x80, 0x8F), MORE, MORE),
    series(text("\\"), signs('"\\/bfnrt')),
)
"""A character of a string as UTF-8 (RFC 3629), or escaped; numeric escapes add none."""


def digits(count: int) -> Expression:
    """Exactly `count` digits."""
    return Repeated(DIGIT, count, count)


def hexes(count: int) -> Expression:
    """Exactly `count` hexadecimal digits."""
    return Repeated(signs("0123456789abcdef"), count, count)


SOME: Final = either(series(text("0"), signs("123456789")), series(signs("123456789"), DIGIT))
"""01 to 99."""
FOURTH: Final = either(
    series(text("0"), signs("48")),
    series(signs("2468"), signs("048")),
    series(signs("13579"), signs("26")),
)
"""The multiples of 4 in 01 to 99."""
YEAR: Final = either(series(digits(2), SOME), series(SOME, text("00")))
"""Years 0001 to 9999."""
LEAP: Final = either(series(digits(2), FOURTH), series(FOURTH, text("00")))
MONTH: Final = either(series(text("0"), signs("123456789")), series(text("1"), signs("012")))
LONG: Final = either(series(text("0"), signs("13578")), series(text("1"), signs("02")))
SHORT: Final = either(series(text("0"), signs("469")), text("11"))
EVERY: Final = either(
    series(text("0"), signs("123456789")),
    series(text("1"), DIGIT),
    series(text("2"), signs("012345678")),
)
"""Days 01 to 28, which every month has."""
HOUR: Final = either(series(signs("01"), DIGIT), series(text("2"), signs("0123")))
SIXTY: Final = series(signs("012345"), DIGIT)
# Months differ only after day 28. Written like this, they share states for the other days.
MOST: Final = either(
    series(MONTH, text("-"), EVERY),
    series(either(LONG, SHORT), text("-"), either(text("29"), text("30"))),
    series(LONG, text("-31")),
)
"""Month and day, for dates that exist in every year."""
DATE: Final = either(series(YEAR, text("-"), MOST), series(LEAP, text("-02-29")))
"""Dates that exist."""
ZONE: Final = either(text("Z"), series(signs("+-"), HOUR, text(":"), SIXTY))
TIME: Final = series(HOUR, text(":"), SIXTY, text(":"), SIXTY, BEHIND_POINT, ZONE)
FORMATS: Final[dict[str, Expression]] = {
    "date": DATE,
    "time": TIME,
    "date-time": series(DATE, text("T"), TIME),
    "uuid": series(
        hexes(8), *(series(text("-"), hexes(4)) for _ in range(3)), text("-"), hexes(12)
    ),
}
"""String formats by name (RFC 3339, RFC 9562)."""


def quoted(inner: Expression) -> Expression:
    """A string with the given contents."""
    return series(text('"'), inner, text('"'))


STRING: Final = quoted(Repeated(CHARACTER))


def listed(begin: str, part: Expression, least: int, most: int | None, end: str) -> Expression:
    """A bracketed list of `least` to `most` parts, separated by commas."""
    if most is not None and most < max(1, least):
        return series(text(begin), SPACE, text(end)) if not least else NOTHING
    comma = series(SPACE, text(","), SPACE)
    if least < 2 and most is None:
        some = series(SPACE, Joined(part, comma))
    else:
        rest = Repeated(series(comma, part), max(0, least - 1), most and most - 1)
        some = series(SPACE, part, rest)
    return series(text(begin), some if least else maybe(some), SPACE, text(end))


def member(name: Expression, value: Expression) -> Expression:
    """An object member: name, colon, value."""
    return series(name, SPACE, text(":"), SPACE, value)


def any_object(deep: int = DEEP) -> Expression:
    """Any object, nested at most `deep` levels."""
    return listed("{", member(STRING, any_value(deep - 1)), 0, None, "}") if deep else NOTHING


def any_value(deep: int = DEEP) -> Expression:
    """Any value, with objects and arrays nested at most `deep` levels."""
    number = series(maybe(text("-")), WHOLE, BEHIND_POINT, POWER)
    plain = either(STRING, number, text("true"), text("false"), text("null"))
    if not deep:
        return plain
    return either(plain, listed("[", any_value(deep - 1), 0, None, "]"), any_object(deep))
