"""Real gpg judges real keys: only a good signature of the pinned key over these very bytes passes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flatcar_data import flatcar_data
from keys import BORN, DAY, TestKey
from processes import mentions

from baker.errors import UsageError, VerificationError
from baker.verify import FLATCAR_FINGERPRINT, Verifier, normalize_fingerprint

DATA = b"an image" * 1000


@pytest.fixture(scope="module")
def key() -> Iterator[TestKey]:
    with TestKey() as key:
        key.add_subkey()
        yield key


@pytest.fixture(scope="module")
def verifier(key: TestKey) -> Iterator[Verifier]:
    with Verifier(key.export(), key.fingerprint) as verifier:
        yield verifier


@pytest.mark.parametrize("options", [(), ("--armor",)], ids=["binary", "armored"])
def test_a_good_signature_names_the_signer(key: TestKey, verifier: Verifier, options: tuple[str, ...]) -> None:
    signer = verifier.verify(DATA, key.sign(DATA, *options, at=BORN + 5), "it")
    assert signer.primary == key.fingerprint
    assert signer.key != key.fingerprint, "Flatcar signs with subkeys"
    assert signer.created == BORN + 5
    assert not signer.expired


def test_a_file_is_verified_like_bytes_and_like_a_stream(key: TestKey, verifier: Verifier, tmp_path: Path) -> None:
    big = os.urandom(3 << 20)
    path = tmp_path / "data"
    path.write_bytes(big)
    signature = key.sign(big)
    with verifier.stream(signature, "it") as stream:
        for start in range(0, len(big), 100_000):
            stream.write(big[start : start + 100_000])
        assert stream.finish() == verifier.verify(path, signature, "it") == verifier.verify(big, signature, "it")


def changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("data", [changed(DATA), DATA[:-1], DATA + b"\n", b""], ids=["bit", "cut", "longer", "empty"])
def test_other_data_is_refused(key: TestKey, verifier: Verifier, data: bytes) -> None:
    with pytest.raises(VerificationError, match="does not match its signature"):
        verifier.verify(data, key.sign(DATA), "it")


@pytest.mark.parametrize(
    "signature", [b"", b"\0" * 100, b"<html>404</html>", os.urandom(200)], ids=["empty", "zeros", "page", "noise"]
)
def test_what_is_no_signature_is_refused(verifier: Verifier, signature: bytes) -> None:
    with pytest.raises(VerificationError):
        verifier.verify(DATA, signature, "it")


def test_a_broken_signature_is_noticed_while_data_still_flows(verifier: Verifier) -> None:
    with pytest.raises(VerificationError), verifier.stream(b"no signature", "it") as stream:
        for _ in range(100):
            stream.write(bytes(1 << 20))
        pytest.fail("gpg took 100 MiB for a signature that is none")


@pytest.mark.parametrize("length", [1, 20, 60])
def test_a_truncated_signature_is_refused(key: TestKey, verifier: Verifier, length: int) -> None:
    with pytest.raises(VerificationError):
        verifier.verify(DATA, key.sign(DATA)[:length], "it")


def test_another_key_with_the_same_user_id_is_refused(key: TestKey, verifier: Verifier) -> None:
    with TestKey() as impostor:
        impostor.add_subkey()
        forged = impostor.sign(DATA)
        with pytest.raises(VerificationError, match="signed by an unknown key"):
            verifier.verify(DATA, forged, "it")
        # Even when the impostor's key comes along with the right one.
        with (
            Verifier(key.export() + impostor.export(), key.fingerprint) as both,
            pytest.raises(VerificationError, match=f"signed by {impostor.fingerprint}, not by the pinned key"),
        ):
            both.verify(DATA, forged, "it")


def test_two_signatures_are_refused_whether_one_is_bad_or_not(key: TestKey, verifier: Verifier) -> None:
    good = key.sign(DATA)
    for second in (key.sign(b"something else"), key.sign(DATA)):
        for both in (good + second, second + good):
            with pytest.raises(VerificationError):
                verifier.verify(DATA, both, "it")


def test_a_signed_message_in_place_of_a_detached_signature_is_refused(key: TestKey, verifier: Verifier) -> None:
    for kind in ("--sign", "--clearsign"):
        message = key.gpg(kind, data=DATA)
        with pytest.raises(VerificationError):
            verifier.verify(DATA, message, "it")
        with pytest.raises(VerificationError):
            verifier.verify(b"something else", message, "it")


def test_a_text_mode_signature_is_refused_because_line_endings_do_not_count_in_it(
    key: TestKey, verifier: Verifier
) -> None:
    text = b"one\ntwo\n"
    signature = key.sign(text, "--textmode")
    with pytest.raises(VerificationError, match="class 01"):
        verifier.verify(text, signature, "it")


def test_a_weak_hash_is_refused(verifier: Verifier, key: TestKey) -> None:
    with pytest.raises(VerificationError, match="weak hash"):
        verifier.verify(DATA, key.sign(DATA, "--digest-algo", "SHA1"), "it")


def test_an_expired_subkey_counts_for_what_it_signed_in_its_time() -> None:
    with TestKey() as key:
        subkey = key.add_subkey(days=30)
        signature = key.sign(DATA, at=BORN + 29 * DAY)
        key.add_subkey(at=BORN + 40 * DAY)
        with Verifier(key.export(), key.fingerprint) as verifier:
            signer = verifier.verify(DATA, signature, "it")
            assert signer.expired
            assert signer.key == subkey
            with pytest.raises(VerificationError, match="does not match"):
                verifier.verify(changed(DATA), signature, "it")


def test_an_expired_subkey_does_not_count_for_what_it_signed_later() -> None:
    with TestKey() as key:
        subkey = key.add_subkey(days=30)
        old_edition = key.export()
        # Its owner prolongs it and goes on signing; we only know the edition in which it ends.
        key.gpg("--quick-set-expire", key.fingerprint, "90d", subkey, at=BORN + DAY)
        signature = key.sign(DATA, at=BORN + 45 * DAY)
        with Verifier(old_edition, key.fingerprint) as verifier:
            with pytest.raises(VerificationError, match=r"signed after the signing key .* had expired") as caught:
                verifier.verify(DATA, signature, "it")
            assert "--signing-key" in (caught.value.hint or "")
        with Verifier(key.export(), key.fingerprint) as verifier:
            assert verifier.verify(DATA, signature, "it").expired


def test_an_expired_primary_key_is_judged_by_its_own_date() -> None:
    with TestKey() as key:
        key.add_subkey()
        before, after = key.sign(DATA, at=BORN + 5 * DAY), key.sign(DATA, at=BORN + 15 * DAY)
        key.gpg("--quick-set-expire", key.fingerprint, "10d", at=BORN + 1)
        with Verifier(key.export(), key.fingerprint) as verifier:
            assert verifier.verify(DATA, before, "it").expired
            with pytest.raises(VerificationError, match="had expired"):
                verifier.verify(DATA, after, "it")


def test_an_expired_signature_is_refused() -> None:
    with TestKey() as key:
        key.add_subkey()
        signature = key.sign(DATA, "--default-sig-expire", "10d", at=BORN + 1)
        with (
            Verifier(key.export(), key.fingerprint) as verifier,
            pytest.raises(VerificationError, match="expired signature"),
        ):
            verifier.verify(DATA, signature, "it")


def test_a_revoked_subkey_is_refused_and_its_siblings_are_not() -> None:
    with TestKey() as key:
        bad, good = key.add_subkey(), key.add_subkey(at=BORN + 1)
        by_bad, by_good = key.sign(DATA, key=bad), key.sign(DATA, key=good)
        key.revoke_subkey(1)
        with Verifier(key.export(), key.fingerprint) as verifier:
            assert verifier.verify(DATA, by_good, "it").key == good
            with pytest.raises(VerificationError, match="revoked"):
                verifier.verify(DATA, by_bad, "it")


def test_a_revoked_primary_key_is_refused_before_it_is_used() -> None:
    with TestKey() as key:
        key.add_subkey()
        key.revoke()
        with pytest.raises(VerificationError, match=f"{key.fingerprint} is revoked"):
            Verifier(key.export(), key.fingerprint)


def test_key_material_without_the_pinned_key_is_refused(key: TestKey) -> None:
    for material in (b"", b"not a key", key.export(), key.export("--armor")):
        with pytest.raises(VerificationError, match="does not contain the pinned key"):
            Verifier(material, FLATCAR_FINGERPRINT)


def test_the_pin_is_the_primary_key_never_a_subkey(key: TestKey) -> None:
    subkey = key.add_subkey()
    with pytest.raises(VerificationError, match="does not contain the pinned key"):
        Verifier(key.export(), subkey)


def test_a_fingerprint_may_be_written_with_spaces_and_is_never_short() -> None:
    spaced = " ".join(FLATCAR_FINGERPRINT[i : i + 4] for i in range(0, 40, 4)).lower()
    assert normalize_fingerprint(spaced) == FLATCAR_FINGERPRINT
    for short in ("", "0593B34A", "E25D9AED0593B34A", FLATCAR_FINGERPRINT + "00", "g" * 40):
        with pytest.raises(UsageError):
            normalize_fingerprint(short)


def test_the_official_key_contains_the_pinned_primary() -> None:
    with Verifier(flatcar_data("Flatcar_Image_Signing_Key.asc")) as verifier:
        assert verifier.fingerprint == FLATCAR_FINGERPRINT
        with pytest.raises(VerificationError):
            verifier.verify(DATA, b"", "it")


def test_nothing_is_left_behind_no_keyring_and_no_agent(key: TestKey) -> None:
    with Verifier(key.export(), key.fingerprint) as verifier:
        home = verifier._home
        assert home.stat().st_mode & 0o777 == 0o700
        verifier.verify(DATA, key.sign(DATA), "it")
        assert not mentions(str(home))
        assert not list(home.glob("S.*")), "an agent has made its socket"
    assert not home.exists()


def test_an_abandoned_stream_leaves_no_gpg(verifier: Verifier, key: TestKey) -> None:
    with pytest.raises(KeyboardInterrupt), verifier.stream(key.sign(DATA), "it") as stream:
        stream.write(DATA)
        raise KeyboardInterrupt
    assert not mentions(str(verifier._home))
