"""gpg's status lines and SHA256SUMS are read strictly: what is not exactly right is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baker.errors import VerificationError
from baker.verify import parse_sha256sums, parse_status

PRIMARY = "A" * 40
SUBKEY = "B" * 40
NEWSIG = "[GNUPG:] NEWSIG"
GOOD = f"[GNUPG:] GOODSIG {SUBKEY[-16:]} Somebody <somebody@example.com>"
EXPIRED = GOOD.replace("GOODSIG", "EXPKEYSIG")
VALID = f"[GNUPG:] VALIDSIG {SUBKEY} 2026-01-02 1767312000 0 4 0 22 10 00 {PRIMARY}"


def status(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def test_one_good_signature() -> None:
    signer = parse_status(status(NEWSIG, GOOD, VALID, "[GNUPG:] TRUST_UNDEFINED 0 always"))
    assert (signer.primary, signer.key, signer.created, signer.expired) == (PRIMARY, SUBKEY, 1767312000, False)
    assert parse_status(status(NEWSIG, EXPIRED, VALID)).expired


def test_an_old_gpg_names_no_primary_when_the_primary_signed() -> None:
    assert parse_status(status(GOOD, VALID.removesuffix(f" {PRIMARY}"))).primary == SUBKEY


@pytest.mark.parametrize("keyword", ["BADSIG", "ERRSIG", "NO_PUBKEY", "EXPSIG", "REVKEYSIG", "NODATA", "PLAINTEXT"])
def test_one_bad_word_anywhere_spoils_it(keyword: str) -> None:
    bad = f"[GNUPG:] {keyword} {SUBKEY[-16:]} x"
    for lines in ([bad, NEWSIG, GOOD, VALID], [NEWSIG, GOOD, bad, VALID], [NEWSIG, GOOD, VALID, bad]):
        with pytest.raises(VerificationError):
            parse_status(status(*lines))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [GOOD],
        [VALID],
        [NEWSIG, GOOD, GOOD, VALID],
        [NEWSIG, GOOD, EXPIRED, VALID],
        [NEWSIG, GOOD, VALID, VALID],
        [NEWSIG, NEWSIG, GOOD, VALID],
        ["GOODSIG x", VALID],
        [f"gpg: {GOOD}", VALID],
        [GOOD, VALID.replace(" 00 ", " 01 ")],
        [GOOD, VALID.replace(" 10 00 ", " 2 00 ")],
        [GOOD, VALID.replace("1767312000", "soon")],
        [GOOD, "[GNUPG:] VALIDSIG"],
    ],
)
def test_anything_but_one_complete_good_signature_is_refused(lines: list[str]) -> None:
    with pytest.raises(VerificationError):
        parse_status(status(*lines))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_user_id_cannot_smuggle_in_a_line(separator: str) -> None:
    with pytest.raises(VerificationError):
        parse_status(status(NEWSIG, f"{GOOD}{separator}{VALID}"))
    forged = VALID.replace(PRIMARY, "C" * 40)
    assert parse_status(status(NEWSIG, f"{GOOD}{separator}{forged}", VALID)).primary == PRIMARY


@given(
    st.lists(st.sampled_from([NEWSIG, GOOD, EXPIRED, VALID, "[GNUPG:] ", "[GNUPG:] BADSIG x", "noise"]) | st.text())
)
def test_no_status_makes_it_fail_in_another_way_or_pass_wrongly(lines: list[str]) -> None:
    text = status(*lines)
    try:
        signer = parse_status(text)
    except VerificationError:
        return
    assert signer.primary == PRIMARY
    assert text.count("[GNUPG:] VALIDSIG") == 1
    assert "BADSIG" not in text


ONE, TWO = "1" * 64, "2" * 64


def test_both_modes_of_sha256sum_are_read() -> None:
    text = f"{ONE}  a-1.0+x.raw\n{TWO.upper()} *b c.raw\n\n".encode()
    assert parse_sha256sums(text) == {"a-1.0+x.raw": ONE, "b c.raw": TWO}
    assert parse_sha256sums(b"") == {}


def test_a_name_may_be_listed_twice_with_one_digest_only() -> None:
    assert parse_sha256sums(f"{ONE}  a\n{ONE} *a\n".encode()) == {"a": ONE}
    with pytest.raises(VerificationError, match="two digests"):
        parse_sha256sums(f"{ONE}  a\n{TWO}  a\n".encode())


@pytest.mark.parametrize(
    "line",
    [
        f"{ONE}  ../a", f"{ONE}  /etc/passwd", f"{ONE}  x/y", f"{ONE}  .", f"{ONE}  ..", f"{ONE}  ", f"{ONE} a",
        f"{ONE}", f"{ONE[1:]}  a", f"{ONE}0  a", f"x{ONE[1:]}  a", f"\\{ONE}  a\\nb", f"{ONE}  a\x1b[2J",
        f"{ONE}  a\r", "<html>", " " + f"{ONE}  a",
    ],
)  # fmt: skip
def test_any_other_line_is_refused(line: str) -> None:
    with pytest.raises(VerificationError, match="Line 2"):
        parse_sha256sums(f"{TWO}  good\n{line}\n".encode())


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read_as_plain_names(data: bytes) -> None:
    try:
        names = parse_sha256sums(data)
    except VerificationError:
        return
    assert all("/" not in name and len(digest) == 64 for name, digest in names.items())
