"""Limits of requests over HTTP."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.support.bundles import tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import client_of


def test_images_of_a_request_are_bounded_together(tmp_path: Path):
    """A thousand small files of the largest size would keep a decoder for minutes."""
    files = [("images", ("a", encoded(picture(height=50, width=50))))] * 41
    with client_of(tiny_served(tmp_path), max_image_pixels=10_000) as client:
        fine, refused = (client.post("/predict_batch", files=files[:count]) for count in (40, 41))

    assert fine.status_code == 200
    assert refused.status_code == 413
    assert "together" in refused.json()["error"]


def test_long_urlencoded_form_is_refused_unread(tmp_path: Path):
    with client_of(tiny_served(tmp_path)) as client:
        answer = client.post(
            "/predict_image",
            content=b"image=" + b"%41" * 10**6,
            headers={"content-type": "application/x-www-form-urlencoded"},
        )

    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["error"]


def test_class_of_a_megabyte_is_neither_compared_nor_echoed(tmp_path: Path):
    with client_of(tiny_served(tmp_path)) as client:
        answer = client.post("/explain", files={"image": ("a", encoded(picture()))}, data={"class": "x" * 2**20})

    assert answer.status_code == 400
    assert len(answer.text) < 1000


def test_body_that_never_comes_is_answered_and_its_connection_closed(tmp_path: Path):
    """A client that announced 5,000 bytes and sent 55 was held for more than ten minutes."""
    head = b"POST /predict_image HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    with (
        client_of(tiny_served(tmp_path), timeout_s=0.5) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection,
    ):
        connection.sendall(head + b"Content-Length: 5000\r\n\r\n--B\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server closes

    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"\r\nconnection: close\r\n" in answer
