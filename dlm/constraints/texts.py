"""JSON texts (RFC 8259) as expressions: values, and what they are made of.

One space at most stands between signs, and objects and arrays are nested so deep and no deeper.
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
"""Objects and arrays in each other, of what no schema describes, and a reference in itself."""
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
"""A character of a string, by itself or escaped (RFC 3629): escapes by number add none."""


def digits(count: int) -> Expression:
    """So many of them."""
    return Repeated(DIGIT, count, count)


def hexes(count: int) -> Expression:
    """So many hexadecimal digits."""
    return Repeated(signs("0123456789abcdef"), count, count)


SOME: Final = either(series(text("0"), signs("123456789")), series(signs("123456789"), DIGIT))
"""01 to 99."""
FOURTH: Final = either(
    series(text("0"), signs("48")),
    series(signs("2468"), signs("048")),
    series(signs("13579"), signs("26")),
)
"""What 4 divides of them."""
YEAR: Final = either(series(digits(2), SOME), series(SOME, text("00")))
"""From 0001 on."""
LEAP: Final = either(series(digits(2), FOURTH), series(FOURTH, text("00")))
MONTH: Final = either(series(text("0"), signs("123456789")), series(text("1"), signs("012")))
LONG: Final = either(series(text("0"), signs("13578")), series(text("1"), signs("02")))
SHORT: Final = either(series(text("0"), signs("469")), text("11"))
EVERY: Final = either(
    series(text("0"), signs("123456789")),
    series(text("1"), DIGIT),
    series(text("2"), signs("012345678")),
)
"""Days that every month has."""
HOUR: Final = either(series(signs("01"), DIGIT), series(text("2"), signs("0123")))
SIXTY: Final = series(signs("012345"), DIGIT)
# Months differ in what they have beyond 28 days: written so, they share states for the others.
MOST: Final = either(
    series(MONTH, text("-"), EVERY),
    series(either(LONG, SHORT), text("-"), either(text("29"), text("30"))),
    series(LONG, text("-31")),
)
"""Days of every year."""
DATE: Final = either(series(YEAR, text("-"), MOST), series(LEAP, text("-02-29")))
"""Days that there are."""
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
"""Of strings (RFC 3339, RFC 9562)."""


def quoted(inner: Expression) -> Expression:
    """A string."""
    return series(text('"'), inner, text('"'))


STRING: Final = quoted(Repeated(CHARACTER))


def listed(begin: str, part: Expression, least: int, most: int | None, end: str) -> Expression:
    """Parts between brackets, with commas."""
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
    """A member of an object."""
    return series(name, SPACE, text(":"), SPACE, value)


def any_object(deep: int = DEEP) -> Expression:
    """Any object, nested so deep."""
    return listed("{", member(STRING, any_value(deep - 1)), 0, None, "}") if deep else NOTHING


def any_value(deep: int = DEEP) -> Expression:
    """Any value, with objects and arrays nested so deep."""
    number = series(maybe(text("-")), WHOLE, BEHIND_POINT, POWER)
    plain = either(STRING, number, text("true"), text("false"), text("null"))
    if not deep:
        return plain
    return either(plain, listed("[", any_value(deep - 1), 0, None, "]"), any_object(deep))
