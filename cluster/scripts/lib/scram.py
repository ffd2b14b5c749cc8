"""stdin: a password; stdout: what PostgreSQL stores of it, so that the password is in no statement and no log."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import sys

ITERATIONS = 4096  # PostgreSQL's own number; the password is random and long


def verifier(password: bytes, salt: bytes) -> str:
    """SCRAM-SHA-256 as RFC 5803 writes it."""
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"


if __name__ == "__main__":
    print(verifier(sys.stdin.buffer.read(), os.urandom(16)))
