"""Who may speak: only who holds the token, and never with somebody else's words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdask.errors import AuthenticationError, HandshakeError
from hpcdask.messages import PROTOCOL_VERSION
from hpcdask.wire.handshake import (
    CHALLENGE_LENGTH,
    HELLO_LENGTH,
    MAGIC,
    NAME,
    PROOF_LENGTH,
    Dialler,
    Listener,
)

TOKEN, OTHER = b"t" * 32, b"o" * 32


def shake(dialler: Dialler, listener: Listener) -> dict[str, Any]:
    """Let both talk to the end; return what was said, or raise as the dialler does."""
    hello = dialler.hello()
    challenge, refusal = listener.greeted(hello)
    said = {"hello": hello, "challenge": challenge, "refusal": refusal}
    said["proof"] = dialler.challenged(challenge)
    said["verdict"], said["refusal"] = listener.proven(said["proof"])
    dialler.concluded(said["verdict"])
    return said


@pytest.mark.parametrize("token", [TOKEN, None])
def test_two_with_the_same_token_or_both_without_agree(token: bytes | None) -> None:
    said = shake(Dialler(token), Listener(token))
    assert said["refusal"] is None
    assert len(said["hello"]) == HELLO_LENGTH
    assert len(said["challenge"]) == CHALLENGE_LENGTH
    assert len(said["proof"]) == PROOF_LENGTH
    assert len(said["verdict"]) == 1


def test_a_dialler_with_another_token_finds_out_and_proves_nothing() -> None:
    dialler, listener = Dialler(OTHER), Listener(TOKEN)
    challenge, refusal = listener.greeted(dialler.hello())
    assert refusal is None
    with pytest.raises(AuthenticationError, match=r"another cluster token.*--token-file"):
        dialler.challenged(challenge)


def test_a_listener_refuses_a_proof_made_with_another_token() -> None:
    dialler, impostor, listener = Dialler(OTHER), Listener(OTHER), Listener(TOKEN)
    challenge, _ = listener.greeted(dialler.hello())
    # An attacker who does not check, and answers the listener's nonce with the token it has.
    nonce = challenge[len(MAGIC) + 1 : -32]
    impostor._nonce = nonce
    proof = dialler.challenged(impostor.greeted(dialler.hello())[0])
    verdict, refusal = listener.proven(proof)
    assert isinstance(refusal, AuthenticationError)
    with pytest.raises(AuthenticationError, match="refuses our cluster token"):
        dialler.concluded(verdict)


@pytest.mark.parametrize(
    ("dialling", "listening", "says"),
    [(None, TOKEN, "wants the cluster token"), (TOKEN, None, "runs without authentication")],
)
def test_no_auth_on_one_side_only_is_refused_by_both(
    dialling: bytes | None, listening: bytes | None, says: str
) -> None:
    dialler, listener = Dialler(dialling), Listener(listening)
    challenge, refusal = listener.greeted(dialler.hello())
    assert isinstance(refusal, AuthenticationError)
    with pytest.raises(AuthenticationError, match=f"{says}.*--no-auth"):
        dialler.challenged(challenge)


def test_a_listener_that_claims_to_need_no_proof_gets_none() -> None:
    dialler = Dialler(TOKEN)
    challenge, _ = Listener(None).greeted(Dialler(None).hello())
    with pytest.raises(AuthenticationError):
        dialler.challenged(challenge)


def test_a_recorded_handshake_is_refused_when_replayed() -> None:
    said = shake(Dialler(TOKEN), Listener(TOKEN))
    listener = Listener(TOKEN)
    challenge, refusal = listener.greeted(said["hello"])
    assert refusal is None
    assert challenge != said["challenge"]
    _, refusal = listener.proven(said["proof"])
    assert isinstance(refusal, AuthenticationError)


def test_a_recorded_challenge_does_not_convince_a_dialler() -> None:
    said = shake(Dialler(TOKEN), Listener(TOKEN))
    with pytest.raises(AuthenticationError):
        Dialler(TOKEN).challenged(said["challenge"])


def test_a_reflected_proof_is_refused() -> None:
    """An attacker opens a second connection and lets the listener itself prove its nonce."""
    first, second = Listener(TOKEN), Listener(TOKEN)
    challenge, _ = first.greeted(Dialler(None).hello().replace(b"-", b"T", 1))
    nonce = challenge[len(MAGIC) + 1 : -32]
    reflected, refusal = second.greeted(MAGIC + b"T" + nonce)
    assert refusal is None
    _, refusal = first.proven(reflected[-32:])
    assert isinstance(refusal, AuthenticationError)
    _, refusal = first.proven(challenge[-32:])
    assert isinstance(refusal, AuthenticationError)


def test_a_dialler_that_is_given_its_own_words_refuses_them() -> None:
    dialler = Dialler(TOKEN)
    with pytest.raises(HandshakeError):
        dialler.challenged(dialler.hello() + bytes(32))


def test_nonces_are_never_used_twice() -> None:
    assert len({Dialler(TOKEN).hello() for _ in range(100)}) == 100
    hello = Dialler(TOKEN).hello()
    assert len({Listener(TOKEN).greeted(hello)[0] for _ in range(100)}) == 100


@given(st.binary(max_size=HELLO_LENGTH).filter(lambda words: not words.startswith(NAME)))
def test_what_is_no_hello_is_refused_without_an_answer(garbage: bytes) -> None:
    challenge, refusal = Listener(TOKEN).greeted(garbage)
    assert challenge == b""
    assert isinstance(refusal, HandshakeError)


@pytest.mark.parametrize("token", [TOKEN, None])
def test_another_version_of_the_protocol_is_named_on_both_sides(token: bytes | None) -> None:
    def of_another(words: bytes) -> bytes:
        return NAME + bytes([PROTOCOL_VERSION + 1]) + words[len(MAGIC) :]

    theirs, ours = PROTOCOL_VERSION + 1, PROTOCOL_VERSION
    expected = (
        f"speaks version {theirs} of hpcdask's protocol, and this one version {ours}: install"
    )
    challenge, refusal = Listener(token).greeted(of_another(Dialler(token).hello()))
    assert expected in str(refusal)
    assert challenge.startswith(MAGIC), "or the other side could not tell"
    assert len(challenge) == CHALLENGE_LENGTH
    assert not challenge[len(MAGIC) :].strip(b"\x00"), "it gets nothing to work with"
    with pytest.raises(HandshakeError, match=expected):
        Dialler(token).challenged(of_another(challenge))


@pytest.mark.parametrize("words", [NAME, NAME[:3], b""])
def test_a_hello_that_ends_early_is_refused(words: bytes) -> None:
    assert "expected the start" in str(Listener(TOKEN).greeted(words)[1])


@given(st.binary(max_size=60))
def test_a_hello_with_another_mode_is_refused(rest: bytes) -> None:
    hello = (MAGIC + b"?" + rest).ljust(HELLO_LENGTH, b"\x00")
    assert Listener(TOKEN).greeted(hello)[1] is not None


@pytest.mark.parametrize("token", [TOKEN, None])
def test_what_is_no_challenge_is_refused(token: bytes | None) -> None:
    with pytest.raises(HandshakeError, match="HTTP"):
        Dialler(token).challenged(b"HTTP/1.1 400 Bad Request\r\n".ljust(CHALLENGE_LENGTH))
    with pytest.raises(HandshakeError):
        Dialler(token).challenged(MAGIC + b"?" + bytes(64))


@pytest.mark.parametrize("verdict", [b"\x00", b"\x02", b""])
def test_any_verdict_but_the_right_one_is_a_refusal(verdict: bytes) -> None:
    with pytest.raises(AuthenticationError):
        Dialler(TOKEN).concluded(verdict)


@given(st.integers(0, PROOF_LENGTH - 1), st.integers(1, 255))
def test_a_proof_with_one_wrong_byte_is_refused(place: int, change: int) -> None:
    dialler, listener = Dialler(TOKEN), Listener(TOKEN)
    proof = bytearray(dialler.challenged(listener.greeted(dialler.hello())[0]))
    proof[place] ^= change
    assert listener.proven(bytes(proof))[1] is not None


def test_no_message_of_a_refusal_holds_the_token() -> None:
    for dialling, listening in ((OTHER, TOKEN), (None, TOKEN), (TOKEN, None)):
        listener = Listener(listening)
        with pytest.raises(AuthenticationError) as refusal:
            shake(Dialler(dialling), listener)
        assert TOKEN.decode() not in str(refusal.value)
        assert OTHER.decode() not in str(refusal.value)
