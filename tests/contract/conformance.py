#!/usr/bin/env python3
"""Checks any server for the REST contract from outside; one file, so that it can be copied to where the server is.

  python conformance.py --base-url http://127.0.0.1:3000
  python conformance.py --base-url ... --level all           # also the nice-to-have checks
  python conformance.py --base-url ... --bentoml-client      # also drive the real client
  python conformance.py --base-url NEW --reference-url OLD   # same model behind both: compare
  python conformance.py --list                               # names only, no network

Needs requests, pillow and numpy (and bentoml only with --bentoml-client). Nothing depends on the model: class names
come from /get_model_info and only invariants are compared. The checks are a sample of docs/contract.md, each seen to
pass on BentoML 1.4.39: what is marked must there binds whether or not a check covers it. Where BentoML answers 500 to a
bad input, a 4xx of the same shape is accepted too; where it refuses what could be served (RGBA, a raw body), serving it
is accepted if the answer is the right one.

Last line: "N passed, M failed"; exit code 1 if anything failed, 2 if the server is absent.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests
from PIL import Image

PRED_KEYS = ["predicted_class", "predicted_index", "confidence", "probabilities"]
INFO_KEYS = ["model_metadata", "device", "classes", "num_classes"]
HEALTH = {"status": "healthy", "service": "mlflow_vision_classifier"}
APIS = ("predict_image", "predict_batch", "get_model_info", "health")
# a bad image / bad body: BentoML says 400 or 500; the proper 4xx codes are fine as well
BAD_INPUT = (400, 413, 415, 422, 500)

CHECKS: list = []


class Fail(Exception):  # noqa: N818
    """The server does not keep the contract."""


class Skip(Exception):  # noqa: N818
    """This model or call cannot show whether it does."""


def check(name: str, level: str = "must", client: bool = False):
    def deco(fn):
        CHECKS.append((name, level, client, fn))
        return fn

    return deco


def need(cond, msg):
    if not cond:
        raise Fail(msg)


# --- images -----------------------------------------------------------------------------------------------------------
def encode(im: Image.Image, fmt: str = "PNG", **kw) -> bytes:
    buf = io.BytesIO()
    im.save(buf, format=fmt, **kw)
    return buf.getvalue()


def noise(seed: int, h: int = 32, w: int = 32) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))


def blobs(seed: int, k: int, h: int = 48, w: int = 40) -> Image.Image:
    rng = np.random.default_rng(1000 + seed)
    small = Image.fromarray(rng.integers(0, 256, (k, k, 3), dtype=np.uint8))
    return small.resize((w, h), Image.Resampling.BICUBIC)


def pool() -> list[Image.Image]:
    ims = [noise(s) for s in range(6)]
    ims += [blobs(s, k) for s, k in enumerate((2, 3, 4, 6, 8))]
    ims += [Image.new("RGB", (32, 32), c) for c in ((0, 0, 0), (255, 255, 255), (220, 30, 40))]
    return ims


# --- context ----------------------------------------------------------------------------------------------------------
class Ctx:
    def __init__(self, base: str, timeout: float, atol: float):
        self.base = base.rstrip("/")
        self.timeout = timeout
        self.atol = atol
        self.reference = None
        self.s = requests.Session()
        self._classes: list[str] = []
        self._pool: list[tuple[bytes, dict]] = []

    # -- transport
    def post(self, path, **kw):
        kw.setdefault("timeout", self.timeout)
        return self.s.post(self.base + path, **kw)

    def get(self, path, **kw):
        kw.setdefault("timeout", self.timeout)
        return self.s.get(self.base + path, **kw)

    def image(self, data: bytes, ctype: str | None = "image/png", name="a.png", field="image", **kw):
        part = (name, data, ctype) if ctype else (name, data)
        return self.post("/predict_image", files={field: part}, **kw)

    def batch(self, datas, ctype="image/png", field="images", **kw):
        files = [(field, (f"{i}.png", d, ctype)) for i, d in enumerate(datas)]
        return self.post("/predict_batch", files=files, **kw)

    # -- judging
    @property
    def classes(self) -> list[str]:
        if not self._classes:
            self._classes = self.post("/get_model_info", json={}).json()["classes"]
        return self._classes

    def pred(self, r, what="") -> dict:
        need(r.status_code == 200, f"{what}: expected 200, got {r.status_code}: {r.text[:160]}")
        need_json(r, what)
        p = r.json()
        self.valid(p, what)
        return p

    def valid(self, p, what=""):
        need(isinstance(p, dict), f"{what}: prediction is {type(p).__name__}, not an object")
        need(set(p) == set(PRED_KEYS), f"{what}: keys {sorted(p)} != {sorted(PRED_KEYS)}")
        c, i, conf, pr = (p[k] for k in PRED_KEYS)
        need(isinstance(c, str) and type(i) is int and type(conf) is float, f"{what}: wrong types {p}")
        need(isinstance(pr, dict), f"{what}: probabilities is not an object")
        need(list(pr) == self.classes, f"{what}: probabilities keys differ from classes (names/order)")
        v = list(pr.values())
        need(
            all(type(x) in (float, int) and math.isfinite(x) and 0 <= x <= 1 for x in v),
            f"{what}: probabilities not finite numbers in [0,1]: {v}",
        )
        need(abs(sum(v) - 1) < 1e-5, f"{what}: probabilities sum to {sum(v)!r}")
        need(0 <= i < len(v) and self.classes[i] == c, f"{what}: class {c!r} is not classes[{i}]")
        need(v[i] == max(v), f"{what}: predicted_index is not the argmax")
        need(abs(conf - v[i]) < 1e-9, f"{what}: confidence {conf} != its probability {v[i]}")

    def dist(self, a, b) -> float:
        return max(abs(x - y) for x, y in zip(a["probabilities"].values(), b["probabilities"].values(), strict=False))

    def same(self, a, b, what=""):
        d = self.dist(a, b)
        need(d <= self.atol, f"{what}: predictions differ by {d:.3g} (> {self.atol:g})")

    def error(self, r, statuses, what=""):
        """The error shape: JSON object {"error": "<text>", ...}, nothing internal in it."""
        need(r.status_code in statuses, f"{what}: status {r.status_code} not in {statuses}: {r.text[:160]}")
        need_json(r, what)
        b = r.json()
        need(
            isinstance(b, dict) and isinstance(b.get("error"), str) and b["error"],
            f"{what}: body has no string 'error': {r.text[:160]}",
        )
        need(not re.search(r'Traceback|File \\?"|site-packages', r.text), f"{what}: error body leaks internals")
        return b

    def missing(self, r, field, what=""):
        b = self.error(r, (400,), what)
        d = b.get("detail")
        need(
            isinstance(d, list) and d and all(isinstance(x, dict) for x in d),
            f"{what}: 400 body has no 'detail' list: {r.text[:200]}",
        )
        need(
            any(list(x.get("loc", [])) == [field] and x.get("type") == "missing" for x in d),
            f"{what}: detail does not say field {field!r} is missing: {d}",
        )

    def error_or_same(self, r, ref: bytes, what=""):
        """Either refused in the error shape, or served, and then correctly."""
        if r.status_code == 200:
            p = self.pred(r, what)
            self.same(p, self.pred(self.image(ref), what + " reference"), what)
            return "served"
        self.error(r, BAD_INPUT, what)
        return f"refused {r.status_code}"

    def alive(self, what="server"):
        r = requests.post(self.base + "/health", json={}, timeout=self.timeout)
        need(r.status_code == 200 and r.json() == HEALTH, f"{what}: not healthy afterwards ({r.status_code})")

    def ref_pool(self):
        """[(png, prediction)] one by one."""
        if not self._pool:
            files = [encode(im) for im in pool()]
            self._pool = [(d, self.pred(self.image(d), f"pool image {n}")) for n, d in enumerate(files)]
        return self._pool

    def distinct(self, k: int):
        """k pool images whose predictions differ clearly, so that order is observable."""
        ps = self.ref_pool()
        chosen = [0]
        while len(chosen) < k:
            best, bd = None, -1.0
            for j in range(len(ps)):
                if j not in chosen:
                    d = min(self.dist(ps[j][1], ps[i][1]) for i in chosen)
                    if d > bd:
                        best, bd = j, d
            chosen.append(best)
            if bd < 4 * self.atol:
                raise Skip(
                    f"model output is (nearly) constant: only {len(chosen) - 1} of {k} test images "
                    f"differ by > {4 * self.atol:g}; use a model that reacts to its input"
                )
        return [ps[i] for i in chosen]


def need_json(r, what=""):
    ct = r.headers.get("content-type", "")
    need(ct.split(";")[0].strip().lower() == "application/json", f"{what}: content-type {ct!r}")


def multipart(parts, boundary="XbXbX", close=True):
    """parts: list of (header lines bytes, body bytes)."""
    b = boundary.encode()
    out = b""
    for head, body in parts:
        out += b"--" + b + b"\r\n" + head + b"\r\n\r\n" + body + b"\r\n"
    return out + (b"--" + b + b"--\r\n" if close else b"")


_IMG = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png'


# --- info/health ------------------------------------------------------------------------------------------------------
@check("health.post_json")
def _(c):
    r = c.post("/health", json={})
    need(r.status_code == 200, f"status {r.status_code}")
    need_json(r)
    need(r.json() == HEALTH, f"body {r.text[:160]}")


@check("health.empty_body")
def _(c):
    for h in ({}, {"Content-Type": "application/json"}):
        r = c.post("/health", data=b"", headers=h)
        need(r.status_code == 200 and r.json() == HEALTH, f"headers {h}: {r.status_code} {r.text[:120]}")


@check("health.curl_default_content_type")
def _(c):  # curl -X POST -d '{}' sends application/x-www-form-urlencoded
    r = c.post("/health", data=b"{}", headers={"Content-Type": "application/x-www-form-urlencoded"})
    need(r.status_code == 200 and r.json() == HEALTH, f"{r.status_code} {r.text[:120]}")


@check("health.extra_fields_and_charset")
def _(c):
    r = c.post("/health", data=b'{"x": 1}', headers={"Content-Type": "application/json; charset=utf-8"})
    need(r.status_code == 200 and r.json() == HEALTH, f"{r.status_code} {r.text[:120]}")


@check("info.shape")
def _(c):
    r = c.post("/get_model_info", json={})
    need(r.status_code == 200, f"status {r.status_code}: {r.text[:160]}")
    need_json(r)
    b = r.json()
    need(set(b) == set(INFO_KEYS), f"keys {sorted(b)}")
    cl = b["classes"]
    need(isinstance(cl, list) and len(cl) > 1 and all(isinstance(x, str) and x for x in cl), f"classes {cl}")
    need(len(set(cl)) == len(cl), "class names not unique")
    need(type(b["num_classes"]) is int and b["num_classes"] == len(cl), f"num_classes {b['num_classes']}")
    need(
        isinstance(b["device"], str) and re.fullmatch(r"(cpu|mps|cuda)(:\d+)?", b["device"]), f"device {b['device']!r}"
    )


@check("info.metadata")
def _(c):
    m = c.post("/get_model_info", json={}).json()["model_metadata"]
    need(isinstance(m, dict), f"model_metadata is {type(m).__name__}")
    for k in ("params", "metrics", "tags"):
        need(isinstance(m.get(k), dict), f"model_metadata.{k} is not an object")
    need(all(isinstance(v, str) for v in m["params"].values()), "params values must be strings")
    need(all(v is None or type(v) in (int, float) for v in m["metrics"].values()), "metrics values must be numbers")
    if "artifact_uri" in m and "name" not in m:
        return "loaded by run id"
    for k in ("name", "run_id", "status", "source"):
        need(isinstance(m.get(k), str) and m[k], f"model_metadata.{k} missing or not a string")
    need(re.fullmatch(r"\d+", str(m.get("version", ""))), f"version {m.get('version')!r}")
    if "alias" in m or "aliases" in m:
        need(isinstance(m.get("alias"), str) and isinstance(m.get("aliases"), list), "alias/aliases")
        need(m["alias"] in m["aliases"], f"alias {m['alias']!r} not in aliases {m['aliases']}")
        return "loaded by alias"
    return "loaded by " + ("stage" if "stage" in m else "version")


@check("info.empty_body_and_stable")
def _(c):
    a = c.post("/get_model_info", json={}).json()
    b = c.post("/get_model_info")
    need(b.status_code == 200 and b.json() == a, f"empty body gives {b.status_code} / another answer")


# --- predict_image ----------------------------------------------------------------------------------------------------
@check("predict.png_multipart")
def _(c):
    p = c.pred(c.image(encode(noise(1))), "png")
    return p["predicted_class"]


@check("predict.jpeg_multipart")
def _(c):
    c.pred(c.image(encode(noise(2), "JPEG"), "image/jpeg", "a.jpg"), "jpeg")


@check("predict.part_content_type_not_needed")
def _(c):
    d = encode(noise(3))
    ref = c.pred(c.image(d), "image/png")
    for ct in (None, "application/octet-stream", "text/plain"):
        c.same(c.pred(c.image(d, ct, "blob"), str(ct)), ref, f"part content-type {ct}")


@check("predict.formats_bmp_webp_tiff")
def _(c):
    im = noise(4)
    ref = c.pred(c.image(encode(im)), "png")
    for fmt, kw in (("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        d = encode(im, fmt, **kw)
        for ct in (f"image/{fmt.lower()}", None):
            c.same(c.pred(c.image(d, ct, f"a.{fmt.lower()}"), f"{fmt} as {ct}"), ref, f"{fmt} as {ct}")


@check("predict.probability_invariants")
def _(c):
    return f"{len(c.ref_pool())} images"


@check("predict.deterministic")
def _(c):
    d = encode(noise(5))
    a = c.pred(c.image(d))
    for _ in range(3):
        c.same(c.pred(c.image(d)), a, "same image again")


@check("predict.resized_like_the_original")
def _(c):  # torchvision Resize((32, 32)) on a PIL image == PIL bilinear, aspect ratio not kept
    for im in (blobs(7, 6, 64, 64), noise(6, 50, 70)):
        small = im.resize((32, 32), Image.Resampling.BILINEAR)
        c.same(c.pred(c.image(encode(im))), c.pred(c.image(encode(small))), f"{im.size} vs client-side resize")


@check("predict.extra_text_field_ignored")
def _(c):
    d = encode(noise(7))
    r = c.post("/predict_image", files={"image": ("a.png", d, "image/png")}, data={"foo": "bar"})
    c.same(c.pred(r, "extra field"), c.pred(c.image(d)), "extra field")


@check("predict.extreme_sizes")
def _(c):
    for w, h in ((1, 1), (2, 4000), (4000, 2), (3000, 2000)):
        c.pred(c.image(encode(Image.new("RGB", (w, h), (9, 200, 30)))), f"{w}x{h}")


@check("predict.large_upload_12MB")
def _(c):
    im = noise(8, 2000, 2000)
    d = encode(im, "PNG", compress_level=0)
    need(len(d) > 11_000_000, "internal")
    c.same(
        c.pred(c.image(d), "12 MB"), c.pred(c.image(encode(im.resize((32, 32), Image.Resampling.BILINEAR)))), "12 MB"
    )


@check("predict.query_string_ignored")
def _(c):
    d = encode(noise(9))
    r = c.post("/predict_image?a=1&image=x", files={"image": ("a.png", d, "image/png")})
    c.same(c.pred(r), c.pred(c.image(d)), "query string")


@check("predict.non_rgb_refused_or_converted")
def _(c):
    out = []
    for mode in ("L", "RGBA"):
        im = noise(10).convert(mode)
        out.append(mode + " " + c.error_or_same(c.image(encode(im)), encode(im.convert("RGB")), mode))
    return ", ".join(out)


# --- predict_batch ----------------------------------------------------------------------------------------------------
def batch_ok(c, r, refs, what):
    need(r.status_code == 200, f"{what}: {r.status_code} {r.text[:160]}")
    need_json(r, what)
    b = r.json()
    need(isinstance(b, list), f"{what}: body is {type(b).__name__}, not a bare list")
    need(len(b) == len(refs), f"{what}: {len(b)} results for {len(refs)} images")
    for i, (x, ref) in enumerate(zip(b, refs, strict=False)):
        c.valid(x, f"{what}[{i}]")
        c.same(x, ref, f"{what}[{i}]")
    return b


@check("batch.one_image")
def _(c):
    d, ref = c.ref_pool()[0]
    batch_ok(c, c.batch([d]), [ref], "batch of 1")


@check("batch.equals_singles_in_order")
def _(c):
    ps = c.distinct(4)
    batch_ok(c, c.batch([d for d, _ in ps]), [p for _, p in ps], "batch of 4")
    ps = ps[::-1]
    batch_ok(c, c.batch([d for d, _ in ps]), [p for _, p in ps], "reversed batch")


@check("batch.of_32")
def _(c):
    ps = c.ref_pool()
    sel = [ps[(i * 5) % len(ps)] for i in range(32)]
    batch_ok(c, c.batch([d for d, _ in sel]), [p for _, p in sel], "batch of 32")


@check("batch.mixed_formats_and_sizes")
def _(c):
    items = [
        ("a.png", encode(noise(11)), "image/png"),
        ("b.jpg", encode(noise(12, 50, 31), "JPEG"), "image/jpeg"),
        ("c.bmp", encode(noise(13, 1, 1), "BMP"), None),
        ("d.webp", encode(noise(14, 200, 100), "WEBP"), "application/octet-stream"),
    ]
    files = [("images", (n, d, ct) if ct else (n, d)) for n, d, ct in items]
    refs = [c.pred(c.image(d, ct, n), n) for n, d, ct in items]
    batch_ok(c, c.post("/predict_batch", files=files), refs, "mixed batch")


@check("batch.extra_text_field_ignored")
def _(c):
    ps = c.ref_pool()[:2]
    files = [("images", ("x.png", d, "image/png")) for d, _ in ps]
    batch_ok(c, c.post("/predict_batch", files=files, data={"k": "v"}), [p for _, p in ps], "with extra field")


@check("batch.identical_images")
def _(c):
    d, p = c.ref_pool()[7]
    batch_ok(c, c.batch([d] * 9), [p] * 9, "9 identical")


@check("batch.empty_json_list")
def _(c):
    r = c.post("/predict_batch", json={"images": []})
    if r.status_code == 200:
        need(r.json() == [], f"200 {r.text[:100]}")
    else:
        c.error(r, BAD_INPUT, "images=[]")
    return str(r.status_code)


# --- errors -----------------------------------------------------------------------------------------------------------
@check("error.missing_image_json")
def _(c):
    c.missing(c.post("/predict_image", json={}), "image", "{}")
    c.missing(c.post("/predict_image"), "image", "empty body")


@check("error.missing_image_form")
def _(c):
    c.missing(c.post("/predict_image", data={"foo": "bar"}), "image", "urlencoded")
    c.missing(c.post("/predict_image", files={"foo": (None, "bar")}), "image", "multipart")


@check("error.missing_images_batch")
def _(c):
    c.missing(c.post("/predict_batch", json={}), "images", "{}")
    c.missing(c.post("/predict_batch", files={"foo": (None, "bar")}), "images", "multipart without images")
    # the old guide's example body: a field that does not exist
    c.missing(c.post("/predict_batch", json={"input": [[[[0, 0, 0]]]]}), "images", '{"input": ...}')


@check("error.malformed_json")
def _(c):
    for path in ("/predict_image", "/predict_batch"):
        c.error(c.post(path, data=b"{bad", headers={"Content-Type": "application/json"}), (400,), path)


@check("error.corrupt_image")
def _(c):
    png = encode(noise(1))
    c.error(c.image(b"\x00" * 20 + png[20:]), BAD_INPUT, "corrupt header")
    c.error(c.image(b"hello world", "text/plain", "a.txt"), BAD_INPUT, "text file")
    c.error(c.image(b"hello world"), BAD_INPUT, "text labelled image/png")
    c.alive()


@check("error.zero_byte_file")
def _(c):
    c.error(c.image(b""), BAD_INPUT, "zero bytes")
    c.error(c.batch([b""]), BAD_INPUT, "zero bytes in batch")


@check("error.wrong_field_name")
def _(c):
    c.error(c.image(encode(noise(1)), field="file"), BAD_INPUT, "field 'file'")
    c.error(c.image(encode(noise(1)), field="images"), BAD_INPUT, "field 'images'")


@check("error.batch_with_one_corrupt_fails_whole")
def _(c):
    d = [x for x, _ in c.ref_pool()[:2]]
    c.error(c.batch([d[0], b"not an image", d[1]]), BAD_INPUT, "corrupt in the middle")
    c.alive()


@check("error.wrong_method")
def _(c):
    for path in ("/predict_image", "/predict_batch"):
        r = c.get(path)
        need(r.status_code == 405, f"GET {path}: {r.status_code}")
        need("POST" in r.headers.get("allow", ""), f"GET {path}: Allow header is {r.headers.get('allow')!r}")
        need(c.s.put(c.base + path, data=b"", timeout=c.timeout).status_code == 405, f"PUT {path}")
    # BentoML: 405.  The old guide documents GET for these two, so 200 with the right body is fine.
    r = c.get("/health")
    need(r.status_code == 405 or (r.status_code == 200 and r.json() == HEALTH), f"GET /health {r.status_code}")
    r = c.get("/get_model_info")
    need(
        r.status_code == 405 or (r.status_code == 200 and set(r.json()) == set(INFO_KEYS)), f"GET info {r.status_code}"
    )


@check("error.unknown_route_404")
def _(c):
    for r in (c.get("/no/such/route"), c.post("/predict", json={})):
        need(r.status_code == 404, f"{r.request.method} {r.request.url}: {r.status_code}")


@check("error.malformed_multipart")
def _(c):
    d, _ = c.ref_pool()[0]
    headers = {"Content-Type": "multipart/form-data; boundary=XbXbX"}
    c.error(c.post("/predict_image", data=b"garbage garbage", headers=headers), BAD_INPUT, "garbage")
    c.error(
        c.post("/predict_image", data=b"abc", headers={"Content-Type": "multipart/form-data"}), BAD_INPUT, "no boundary"
    )
    c.error(
        c.post("/predict_image", data=multipart([(_IMG, d)], close=False)[:-40], headers=headers),
        BAD_INPUT,
        "truncated",
    )
    c.error(c.post("/predict_image", data=b"", headers=headers), BAD_INPUT, "empty")
    c.alive()


# --- built-ins --------------------------------------------------------------------------------------------------------
@check("builtin.probes")
def _(c):
    for p in ("/livez", "/readyz", "/healthz"):
        r = c.get(p, allow_redirects=False)
        need(r.status_code == 200, f"GET {p}: {r.status_code}")
        need(r.text.strip() == "", f"GET {p}: body {r.text[:60]!r} is not blank")


@check("builtin.schema_json_usable_by_client")
def _(c):
    r = c.get("/schema.json", allow_redirects=False)
    need(r.status_code == 200, f"status {r.status_code}")
    routes = {x["name"]: x for x in r.json()["routes"]}
    need(set(routes) == set(APIS), f"routes {sorted(routes)}")
    for n, x in routes.items():
        need(x["route"] == "/" + n, f"{n}: route {x['route']!r}")
        need(isinstance(x["input"].get("properties"), dict), f"{n}: input.properties missing")
        need(not x.get("is_task") and not x["output"].get("is_stream"), f"{n}: task/stream flag set")
        need(not x["input"].get("root_input"), f"{n}: root_input set")
        need(x["output"].get("type") not in ("string", "file", "tensor", "dataframe"), f"{n}: output {x['output']}")
        # a client drops response keys which are not in output.properties, when that exists
        props = (x["output"].get("items", {}) if n == "predict_batch" else x["output"]).get("properties")
        want = {"get_model_info": INFO_KEYS, "health": list(HEALTH)}.get(n, PRED_KEYS)
        need(not props or set(want) <= set(props), f"{n}: output.properties would make the client drop keys")
    for n in ("health", "get_model_info"):
        need(routes[n]["input"]["properties"] == {}, f"{n}: takes no arguments")
    i = routes["predict_image"]["input"]
    need(list(i["properties"]) == ["image"] and i["properties"]["image"].get("type") == "file", f"input {i}")
    need(i.get("required") == ["image"], f"required {i.get('required')}")
    i = routes["predict_batch"]["input"]
    f = i["properties"].get("images", {})
    need(list(i["properties"]) == ["images"] and f.get("type") == "array", f"input {i}")
    need(f.get("items", {}).get("type") == "file" and i.get("required") == ["images"], f"input {i}")
    need(routes["predict_batch"]["output"].get("type") == "array", "predict_batch output type")


@check("robust.keeps_serving_after_errors")
def _(c):
    d, ref = c.ref_pool()[0]
    for bad in (b"", b"x", d[:30]):
        c.image(bad)
        c.batch([d, bad])
        c.same(c.pred(c.image(d), "after an error"), ref, "after an error")
    c.alive()


@check("robust.trailing_slash_redirect")
def _(c):
    d, p = c.ref_pool()[4]
    r = c.post("/predict_image/", files={"image": ("a.png", d, "image/png")})
    c.same(c.pred(r, "trailing slash, redirects followed"), p, "trailing slash")


@check("concurrency.parallel_singles")
def _(c):
    ps = c.distinct(4) * 6

    def one(x):
        r = requests.post(c.base + "/predict_image", files={"image": ("a.png", x[0], "image/png")}, timeout=60)
        return c.pred(r, "parallel"), x[1]

    with ThreadPoolExecutor(12) as ex:
        for got, ref in ex.map(one, ps):
            c.same(got, ref, "parallel request got another request's answer")
    return f"{len(ps)} requests"


# --- nice to have -----------------------------------------------------------------------------------------------------
@check("nice.index_html", level="nice")
def _(c):
    r = c.get("/")
    need(r.status_code == 200 and r.headers["content-type"].startswith("text/html"), f"{r.status_code}")


@check("nice.docs_json_openapi", level="nice")
def _(c):
    r = c.get("/docs.json")
    need(r.status_code == 200, f"status {r.status_code}")
    d = r.json()
    need(str(d.get("openapi", "")).startswith("3."), "not OpenAPI 3")
    for n in APIS:
        op = d["paths"].get("/" + n, {}).get("post")
        need(op, f"POST /{n} not described")
        ct = "multipart/form-data" if n.startswith("predict") else "application/json"
        need(ct in op["requestBody"]["content"], f"/{n}: request content {list(op['requestBody']['content'])}")
        need("application/json" in op["responses"]["200"]["content"], f"/{n}: 200 content")


@check("nice.metrics_prometheus", level="nice")
def _(c):
    c.post("/health", json={})
    r = c.get("/metrics")
    need(r.status_code == 200 and r.headers["content-type"].startswith("text/plain"), f"{r.status_code}")
    line = r'^bentoml_service_request_total\{[^}]*endpoint="/health"[^}]*http_response_code="200"[^}]*\} [1-9]'
    need(re.search(line, r.text, re.M), "no bentoml_service_request_total for /health")
    need("bentoml_service_request_duration_seconds_bucket" in r.text, "no duration histogram")


@check("nice.headers_server_and_request_id", level="nice")
def _(c):
    ids = set()
    for _ in range(2):
        r = c.post("/health", json={})
        need(r.headers.get("server", "").startswith("BentoML Service/"), f"Server: {r.headers.get('server')!r}")
        need(re.fullmatch(r"[0-9a-f]{16}", r.headers.get("x-bentoml-request-id", "")), "X-BentoML-Request-ID")
        ids.add(r.headers["x-bentoml-request-id"])
    need(len(ids) == 2, "request id not unique")


@check("nice.plain_404_405_bodies", level="nice")
def _(c):
    r = c.get("/no/such/route")
    need(r.text == "Not Found" and r.headers["content-type"].startswith("text/plain"), f"404 body {r.text[:80]!r}")
    r = c.get("/predict_image")
    need(r.text == "Method Not Allowed", f"405 body {r.text[:80]!r}")


@check("nice.validation_error_text", level="nice")
def _(c):
    b = c.post("/predict_image", json={}).json()
    need(b["error"] == "1 validation error for Input", f"error {b['error']!r}")
    need(b["detail"][0].get("msg") == "Field required", f"detail {b['detail']}")


@check("nice.head_on_probes", level="nice")
def _(c):
    for p in ("/livez", "/readyz"):
        need(c.s.head(c.base + p, timeout=c.timeout).status_code == 200, f"HEAD {p}")
        need(c.post(p).status_code == 405, f"POST {p}")


@check("reference.same_answers")
def _(c):  # only with --reference-url: both servers must hold the same model
    if not c.reference:
        raise Skip("no --reference-url")
    o = Ctx(c.reference, c.timeout, c.atol)
    need(o.classes == c.classes, f"classes differ: {o.classes} / {c.classes}")
    ims = [*pool(), noise(60, 100, 57), blobs(61, 5, 33, 90)]
    for n, im in enumerate(ims):
        d = encode(im)
        c.same(c.pred(c.image(d)), o.pred(o.image(d)), f"image {n} vs reference")
    d = encode(noise(62, 48, 48), "JPEG", quality=80)
    c.same(c.pred(c.image(d, "image/jpeg")), o.pred(o.image(d, "image/jpeg")), "jpeg vs reference")
    return f"{len(ims) + 1} images equal to {c.reference}"


# --- real BentoML client ----------------------------------------------------------------------------------------------
def _tmp_images(c, td, n):
    out = []
    for i, (d, p) in enumerate(c.ref_pool()[:n]):
        f = Path(td) / f"img{i}.png"
        f.write_bytes(d)
        out.append((f, p))
    return out


@check("client.sync_ready_health_info", client=True)
def _(c):
    import bentoml

    with bentoml.SyncHTTPClient(c.base, timeout=c.timeout) as k:
        need(k.is_ready() is True, "is_ready() is not True")
        need(set(k.endpoints) == set(APIS), f"endpoints {sorted(k.endpoints)}")
        need(k.health() == HEALTH, f"health() -> {k.health()}")
        need(k.get_model_info() == c.post("/get_model_info", json={}).json(), "get_model_info() differs from HTTP")
        need(k.call("health") == HEALTH, "call('health')")
    return f"bentoml {bentoml.__version__}"


@check("client.sync_predict_image", client=True)
def _(c):
    import bentoml

    with tempfile.TemporaryDirectory() as td, bentoml.SyncHTTPClient(c.base) as k:
        ((f, p),) = _tmp_images(c, td, 1)
        for what, call in (
            ("Path", lambda: k.predict_image(image=f)),
            ("str path", lambda: k.predict_image(image=str(f))),
            ("positional", lambda: k.predict_image(f)),
            ("PIL", lambda: k.predict_image(image=Image.open(f))),
        ):
            got = call()
            c.valid(got, what)
            c.same(got, p, what)
        for ext, fmt in ((".jpg", "JPEG"), (".bmp", "BMP"), (".webp", "WEBP"), (".tiff", "TIFF")):
            g = Path(td) / ("x" + ext)
            g.write_bytes(encode(noise(50), fmt))
            c.valid(k.predict_image(image=g), ext)


@check("client.sync_predict_batch", client=True)
def _(c):
    import bentoml

    with tempfile.TemporaryDirectory() as td, bentoml.SyncHTTPClient(c.base) as k:
        ims = _tmp_images(c, td, 5)
        for what, arg in (("list", [f for f, _ in ims]), ("tuple", tuple(f for f, _ in ims))):
            got = k.predict_batch(images=arg)
            need(isinstance(got, list) and len(got) == 5, f"{what}: {len(got)} results")
            for g, (_, p) in zip(got, ims, strict=False):
                c.valid(g, what)
                c.same(g, p, what)
        need(len(k.predict_batch(images=[ims[0][0]])) == 1, "one image")


@check("client.errors", client=True)
def _(c):
    import bentoml
    from bentoml.exceptions import InvalidArgument

    with bentoml.SyncHTTPClient(c.base) as k:
        try:
            k.predict_batch(images=[])
        except InvalidArgument as e:
            need(int(e.error_code) == 400 and "error" in json.loads(str(e)), f"{e.error_code} {e}")
        else:
            raise Fail("an empty batch did not raise InvalidArgument (HTTP 400)")
        for bad in (lambda: k.predict_image(), lambda: k.predict_image(img="x")):
            try:
                bad()
            except TypeError:
                pass
            else:
                raise Fail("the client did not check arguments against schema.json")


@check("client.async", client=True)
def _(c):
    import asyncio

    import bentoml

    with tempfile.TemporaryDirectory() as td:
        ims = _tmp_images(c, td, 3)

        async def go():
            async with bentoml.AsyncHTTPClient(c.base) as k:
                need(await k.is_ready() is True, "is_ready")
                need(await k.health() == HEALTH, "health")
                need(set(await k.get_model_info()) == set(INFO_KEYS), "info")
                return await k.predict_image(image=ims[0][0]), await k.predict_batch(images=[f for f, _ in ims])

        one, many = asyncio.run(go())
        c.same(one, ims[0][1], "async predict_image")
        need(len(many) == 3, "async batch length")
        for g, (_, p) in zip(many, ims, strict=False):
            c.same(g, p, "async batch")


# --- main -------------------------------------------------------------------------------------------------------------
def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--base-url", default="http://127.0.0.1:3000")
    ap.add_argument("--level", choices=("must", "all"), default="must", help="all: also the nice-to-have checks")
    ap.add_argument("--bentoml-client", action="store_true", help="also drive the real BentoML client")
    ap.add_argument("--reference-url", metavar="URL", help="a server with the same model: answers must agree")
    ap.add_argument("--only", default="", help="run only checks whose name contains this")
    ap.add_argument("--atol", type=float, default=1e-4, help="tolerance between predictions that must agree")
    ap.add_argument("--timeout", type=float, default=30)
    ap.add_argument("--strict-skip", action="store_true", help="count a skipped check as failed")
    ap.add_argument("--list", action="store_true")
    a = ap.parse_args()
    todo = [
        x
        for x in CHECKS
        if (a.level == "all" or x[1] == "must")
        and (a.bentoml_client or a.list or not x[2])
        and a.only in x[0]
        and (a.reference_url or a.list or not x[0].startswith("reference."))
    ]
    if a.list:
        for name, level, client, _ in todo:
            print(f"{level:5} {'client' if client else 'http':7} {name}")
        print(len(todo), "checks")
        return 0
    if a.bentoml_client:
        os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
        import bentoml  # noqa: F401  (fail early, and clearly, where it is not installed)
    c = Ctx(a.base_url, a.timeout, a.atol)
    c.reference = a.reference_url
    try:
        c.get("/readyz", timeout=10)
    except requests.RequestException as e:
        print(f"no server at {a.base_url}: {e}")
        return 2
    n = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    for name, level, _client, fn in todo:
        t = time.time()
        try:
            verdict, why = "PASS", fn(c) or ""
        except Skip as e:
            verdict, why = ("FAIL" if a.strict_skip else "SKIP"), str(e)
        except Fail as e:
            verdict, why = "FAIL", str(e)
        except Exception as e:  # noqa: BLE001 - a transport error or an unexpected body is a failure, too
            verdict, why = "FAIL", f"{type(e).__name__}: {str(e)[:300]}"
        n[verdict] += 1
        print(f"{verdict} {name} [{level}] {(time.time() - t) * 1000:.0f}ms" + (f" - {why}" if why else ""), flush=True)
    if n["SKIP"]:
        print(f"({n['SKIP']} skipped)")
    print(f"{n['PASS']} passed, {n['FAIL']} failed")
    return 1 if n["FAIL"] or not n["PASS"] else 0


if __name__ == "__main__":
    sys.exit(main())
