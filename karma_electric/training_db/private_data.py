"""Secrets and personal data in a text: what has a form or a check digit is found, names and stories are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_GROUPED_DIGITS = r"\d(?:[ \u00a0.\-/]?\d)"


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool] = lambda _: True


def find_private_data(text: str) -> Iterator[tuple[str, str]]:
    """(kind, where it begins) of everything in `text` that looks like a secret or personal data, in their order.

    The beginning is cut to four characters, so that a report does not spread what it warns of.
    """
    found: list[tuple[int, str, str]] = []
    taken: list[tuple[int, int]] = []
    for kind in _KINDS:
        for match in kind.pattern.finditer(text):
            start, end = match.span()
            if kind.is_real(match[0]) and not any(start < last and first < end for first, last in taken):
                taken.append((start, end))
                found.append((start, kind.name, match[0][:4] + "…"))
    yield from ((name, beginning) for _, name, beginning in sorted(found))


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _passes_luhn(text: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(_digits(text))):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0 and len(set(_digits(text))) > 1


def _passes_iban(text: str) -> bool:
    """The check digits of bank accounts (ISO 13616): the number, turned round, is 1 modulo 97."""
    compact = re.sub(r"[^A-Z0-9]", "", text.upper())
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _is_birth_number(text: str) -> bool:
    """The Czech birth number: a date (women's months + 50, since 2004 also + 20), and divisible by 11."""
    digits = _digits(text)
    month, day = int(digits[2:4]) % 50 % 20, int(digits[4:6])
    return 1 <= month <= 12 and 1 <= day <= 31 and int(digits) % 11 == 0


def _is_public_address(text: str) -> bool:
    """Not one of the addresses that are kept for networks at home and for documentation (RFC 1918, 5737)."""
    parts = [int(part) for part in text.split(".")]
    if any(part > 255 for part in parts) or parts[0] in (0, 10, 127, 255):
        return False
    kept = ((192, 168), (192, 0), (198, 51), (203, 0), (169, 254))
    return tuple(parts[:2]) not in kept and not (parts[0] == 172 and 16 <= parts[1] < 32)


def _is_reachable(text: str) -> bool:
    """Not at a domain that is kept for examples (RFC 2606)."""
    domain = text.rpartition("@")[2].casefold().rstrip(".")
    return not re.search(r"(?:^|\.)(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$", domain)


# The order matters: what one kind has taken is no other kind's.
_KINDS = (
    _Kind("private key", re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----")),
    _Kind(
        "password in an address",
        re.compile(r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{1,100}:[^\s/@]{1,100}@\S", re.IGNORECASE),
    ),
    _Kind("web token", re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}")),
    _Kind(
        "access key",
        re.compile(
            r"\b(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,})"
        ),
    ),
    _Kind(
        "password",
        re.compile(
            r"\b(?:password|passwd|heslo|api[_ -]?key|secret)\s{0,3}[:=]\s{0,3}[\"']?(?=\S{0,60}\d)\S{6,60}",
            re.IGNORECASE,
        ),
    ),
    _Kind(
        "e-mail address",
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
        _is_reachable,
    ),
    _Kind("bank account", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _passes_iban),
    _Kind("payment card", re.compile(rf"(?<![\d+]){_GROUPED_DIGITS}{{12,18}}(?!\d)"), _passes_luhn),
    _Kind("birth number", re.compile(r"(?<!\d)\d{6}/?\d{4}(?!\d)"), _is_birth_number),
    _Kind("network address", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)"), _is_public_address),
    _Kind(
        "telephone number",
        re.compile(
            r"(?<![\d.,/-])(?:(?:\+|00)\d{1,3}[ \u00a0.-]?(?:\(?\d{1,4}\)?[ \u00a0.-]?){2,5}\d{2,4}"
            r"|\(?\d{3}\)?[ \u00a0.-]\d{3}[ \u00a0.-]\d{3,4}|\d{9,10})(?![\d/-])"
        ),
    ),
)
