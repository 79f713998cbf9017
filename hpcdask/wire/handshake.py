"""Who may speak: mutual proof that both ends of a new connection hold the cluster token.

Before anything else travels::

    dialler  -> listener   magic, mode, nonce_d                       41 bytes
    listener -> dialler    magic, mode, nonce_l, proof_l              73 bytes
    dialler  -> listener   proof_d                                    32 bytes
    listener -> dialler    verdict                                     1 byte

``proof_x = HMAC-SHA-256(token, label_x + nonce_d + nonce_l)``. Nonces are 32 fresh random bytes
from either side, so nothing recorded can be replayed; labels differ, so a listener's own proof
cannot be sent back to it. Compare in constant time. No byte reaches msgpack or pickle before it.
(The scheme is the symmetric-key mutual authentication of ISO/IEC 9798-4 with random numbers.)
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from hashlib import sha256

from hpcdask.errors import AuthenticationError, HandshakeError
from hpcdask.messages import PROTOCOL_VERSION

NAME = b"hpcdask"
#: With the version of the protocol, since messages of another one could not even be refused.
MAGIC = NAME + bytes([PROTOCOL_VERSION])
NONCE = 32
_LOCKED, _OPEN, _REFUSED = b"T", b"-", b"X"
_WELCOME, _DENIED = b"\x01", b"\x00"
HELLO_LENGTH = len(MAGIC) + 1 + NONCE
CHALLENGE_LENGTH = len(MAGIC) + 1 + NONCE + 32
PROOF_LENGTH = 32

_CURE = (
    "use the scheduler's token: --token-file, HPCDASK_TOKEN_FILE, its scheduler file, "
    "or the same user's own token file"
)


def _proof(token: bytes, label: bytes, nonce_d: bytes, nonce_l: bytes) -> bytes:
    return hmac.digest(token, label + nonce_d + nonce_l, sha256)


def _foreign(received: bytes) -> HandshakeError:
    version = received[len(NAME) : len(MAGIC)] if received.startswith(NAME) else b""
    if version and version != MAGIC[-1:]:
        return HandshakeError(
            f"the other side speaks version {version[0]} of hpcdask's protocol, and this one "
            f"version {PROTOCOL_VERSION}: install the same hpcdask on all hosts"
        )
    return HandshakeError(f"expected the start of a hpcdask handshake, got {received[:16]!r}")


class Dialler:
    """The connecting side. Send `hello`, then what `challenged` returns, then read the verdict.

    Parameters
    ----------
    token : bytes or None
        The cluster token; None to ask for a connection without authentication.
    """

    def __init__(
        self, token: bytes | None, random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._token = token
        self._nonce = random(NONCE)

    def hello(self) -> bytes:
        """First bytes to send."""
        return MAGIC + (_OPEN if self._token is None else _LOCKED) + self._nonce

    def challenged(self, challenge: bytes) -> bytes:
        """Check the listener's proof and return ours.

        Parameters
        ----------
        challenge : bytes
            `CHALLENGE_LENGTH` bytes from the listener.

        Raises
        ------
        AuthenticationError
            If the listener holds another token, or one side wants none.
        HandshakeError
            If this is no hpcdask listener.
        """
        if not challenge.startswith(MAGIC):
            raise _foreign(challenge)
        mode = challenge[len(MAGIC) : len(MAGIC) + 1]
        if mode == _REFUSED:
            raise AuthenticationError(
                "the listener runs without authentication and we do not: start both sides "
                "with --no-auth, or neither"
                if self._token is not None
                else "the listener wants the cluster token and we run with --no-auth: " + _CURE
            )
        nonce = challenge[len(MAGIC) + 1 : len(MAGIC) + 1 + NONCE]
        if self._token is None:
            if mode != _OPEN:
                raise _foreign(challenge)
            return bytes(PROOF_LENGTH)
        expected = _proof(self._token, b"listener", self._nonce, nonce)
        if mode != _LOCKED or not hmac.compare_digest(challenge[-32:], expected):
            raise AuthenticationError("the listener holds another cluster token: " + _CURE)
        return _proof(self._token, b"dialler", self._nonce, nonce)

    def concluded(self, verdict: bytes) -> None:
        """Read the last byte.

        Raises
        ------
        AuthenticationError
            If the listener refuses us.
        """
        if verdict != _WELCOME:
            raise AuthenticationError("the listener refuses our cluster token: " + _CURE)


class Listener:
    """The accepting side of one connection.

    Parameters
    ----------
    token : bytes or None
        The cluster token; None only if --no-auth was asked for.
    """

    def __init__(
        self, token: bytes | None, random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._token = token
        self._nonce = random(NONCE)
        self._peer_nonce = b""

    def greeted(self, hello: bytes) -> tuple[bytes, HandshakeError | None]:
        """Answer a dialler's `HELLO_LENGTH` first bytes.

        Returns
        -------
        challenge : bytes
            What to send.
        refusal : HandshakeError or None
            Why the connection ends after that.
        """
        if not hello.startswith(MAGIC):
            # One of another version is told ours, and nothing else.
            challenge = MAGIC + bytes(CHALLENGE_LENGTH - len(MAGIC))
            return challenge if hello.startswith(NAME) else b"", _foreign(hello)
        mode, self._peer_nonce = hello[len(MAGIC) : len(MAGIC) + 1], hello[len(MAGIC) + 1 :]
        if mode != (_OPEN if self._token is None else _LOCKED):
            refusal = AuthenticationError(
                "it has no token" if mode == _OPEN else "it has a token and we run with --no-auth"
            )
            return MAGIC + _REFUSED + bytes(CHALLENGE_LENGTH - len(MAGIC) - 1), refusal
        if self._token is None:
            return MAGIC + _OPEN + self._nonce + bytes(32), None
        proof = _proof(self._token, b"listener", self._peer_nonce, self._nonce)
        return MAGIC + _LOCKED + self._nonce + proof, None

    def proven(self, proof: bytes) -> tuple[bytes, HandshakeError | None]:
        """Check the dialler's `PROOF_LENGTH` bytes; return the verdict and why it is a refusal."""
        if self._token is None:
            return _WELCOME, None
        expected = _proof(self._token, b"dialler", self._peer_nonce, self._nonce)
        if hmac.compare_digest(proof, expected):
            return _WELCOME, None
        return _DENIED, AuthenticationError("it holds another cluster token")
