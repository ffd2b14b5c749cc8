"""The page at /, opened by a real Chromium: what a person drops, chooses, types, clicks and then sees."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Dialog, Page, ViewportSize, expect, sync_playwright

from rayapp.config.train import ModelConfig
from rayapp.serve.replica import LoadedModel
from rayapp.vision.bundle import write_bundle
from rayapp.vision.models import build_model
from rayapp.vision.predictor import Predictor
from tests.support.bundles import CLASSES, SIDE_PX, tiny_manifest, tiny_served, tiny_version
from tests.support.images import encoded, picture
from tests.support.serving import client_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# without a sandbox, because containers have none; the rest keeps the browser from calling home
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KEY = "k" * 32
TAGS = {"test_accuracy": "0.9777", "test_accuracy_low": "0.9567", "test_accuracy_high": "0.9887", "dataset": "digits"}

expect.set_options(timeout=20_000)  # milliseconds; the machine may be busy


# --- the browser and what it opens ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine. Without one the tests fail in CI, and are skipped elsewhere."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sentence = "the page is tested in Chromium, and there is none on PATH; install it (apt install chromium)"
        pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def served(tmp_path: Path) -> LoadedModel:
    return tiny_served(tmp_path / "model")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained network that can be explained; the tiny one has no feature maps."""
    torch.manual_seed(0)
    config = ModelConfig(name="mobilenet_v3_small")
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    model = build_model(config, num_classes=len(CLASSES), image_px=SIDE_PX, mean=mean, std=std)
    with torch.no_grad():
        model.train()(torch.randint(0, 256, (16, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8))  # fills the norms
    manifest = tiny_manifest(model=config, mean=mean, std=std)
    bundle = write_bundle(tmp_path_factory.mktemp("convolutional"), model, manifest)
    return LoadedModel(Predictor.load(bundle, device="cpu"), tiny_version(1), {"name": "vision", "version": "1"})


@contextlib.contextmanager
def opened(
    browser: Browser, client: httpx.Client, *, prompts: Iterable[str] = (), **window: ViewportSize | str
) -> Iterator[Page]:
    """A server's page, in a window of its own; prompts are what a person types where it asks, in order, then nothing.

    Fails in the end where a script failed, or where something else than the server was asked.
    """
    url, typed = str(client.base_url), iter(prompts)
    asked: list[str] = []
    failed: list[str] = []

    def answer(dialog: Dialog) -> None:
        text = next(typed, None)
        dialog.dismiss() if text is None else dialog.accept(text)

    context = browser.new_context(**window)  # type: ignore[arg-type]
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("dialog", answer)
    page.goto(url)
    yield page
    context.close()
    assert failed == []
    assert [address for address in asked if not address.startswith((url, "blob:", "data:"))] == []


@pytest.fixture
def page(browser: Browser, served: LoadedModel) -> Iterator[Page]:
    """The page of a server with a tiny model."""
    with client_of(served) as client, opened(browser, client) as page:
        yield page


def saved(folder: Path, data: bytes | None = None, *, name: str = "noise.png", seed: int = 0) -> Path:
    path = folder / name
    path.write_bytes(encoded(picture(seed)) if data is None else data)
    return path


def drop(page: Page, path: Path) -> None:
    """Drag a file from outside of the browser onto the page and let it go there."""
    box = page.locator("#drop").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    event = {
        "x": box["x"] + box["width"] / 2,
        "y": box["y"] + box["height"] / 2,
        "data": {"items": [], "files": [str(path)], "dragOperationsMask": 1},
    }
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **event})
    session.detach()


def ranked(served: LoadedModel, path: Path) -> list[str]:
    """The classes as the model ranks them, asked without a server."""
    image_hwc = served.spec.decode(path.read_bytes())
    (row_k,) = served.predictor.predict(image_hwc[np.newaxis])
    return [served.class_names[at] for at in np.argsort(-row_k, kind="stable")]


def sees_bars(page: Page, classes: list[str]) -> None:
    """The page shows one bar a class, the most probable first and longest."""
    expect(page.locator("#winner")).to_have_text(classes[0])
    expect(page.locator("#bars .name")).to_have_text(classes)
    widths = page.locator("#bars .fill").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 10
    shares = page.locator("#bars .percent").all_inner_texts()
    assert sum(float(share.removesuffix(" %")) for share in shares) == pytest.approx(100, abs=0.5)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_dropped_image_is_answered_with_bars(page: Page, served: LoadedModel, tmp_path: Path) -> None:
    path = saved(tmp_path)

    drop(page, path)

    sees_bars(page, ranked(served, path))
    expect(page.locator("#took")).to_contain_text("version 1")
    expect(page.get_by_alt_text("noise.png")).to_be_visible()
    expect(page.get_by_text("noise.png", exact=True)).to_be_visible()


def test_a_chosen_file_is_answered_and_a_second_one_takes_its_place(
    page: Page, served: LoadedModel, tmp_path: Path
) -> None:
    first, second = saved(tmp_path), saved(tmp_path, name="other.png", seed=1)
    assert ranked(served, first)[0] != ranked(served, second)[0]

    for path in (first, second):
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Drop an image here" if path is first else "drop or choose another").click()
        chooser.value.set_files(path)
        sees_bars(page, ranked(served, path))


def test_the_error_of_a_bad_file_is_the_servers_sentence(page: Page, served: LoadedModel, tmp_path: Path) -> None:
    drop(page, saved(tmp_path, b"no image", name="notes.txt"))

    expect(page.locator("#error")).to_have_text(
        "the image cannot be decoded; send a whole PNG, JPEG, BMP, WebP, TIFF or GIF file"
    )
    expect(page.locator("#bars li")).to_have_count(0)

    path = saved(tmp_path)
    drop(page, path)

    sees_bars(page, ranked(served, path))
    expect(page.locator("#error")).to_be_hidden()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n", encoding="utf-8")
    return path


def test_a_key_is_asked_for_once_and_used_from_then_on(
    browser: Browser, served: LoadedModel, keys: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    with client_of(served, api_keys=keys) as client, opened(browser, client, prompts=[KEY]) as page:
        expect(page.locator("#model")).to_contain_text("vision version 1")
        drop(page, path)
        sees_bars(page, ranked(served, path))


def test_a_wrong_key_is_said_and_asked_for_again(
    browser: Browser, served: LoadedModel, keys: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    with client_of(served, api_keys=keys) as client, opened(browser, client, prompts=["wrong", "worse", KEY]) as page:
        expect(page.locator("#model")).to_have_text("The server does not say which model answers.")
        drop(page, path)
        expect(page.locator("#error")).to_contain_text("the API key is not known here")
        drop(page, path)
        sees_bars(page, ranked(served, path))
        expect(page.locator("#model")).to_contain_text("vision version 1")


def test_without_a_key_the_server_says_what_is_missing(
    browser: Browser, served: LoadedModel, keys: Path, tmp_path: Path
) -> None:
    with client_of(served, api_keys=keys) as client, opened(browser, client) as page:
        drop(page, saved(tmp_path))
        expect(page.locator("#error")).to_contain_text("an API key is needed")


# --- the header -------------------------------------------------------------------------------------------------------


def test_the_header_says_which_model_answers_and_how_good_it_is(browser: Browser, served: LoadedModel) -> None:
    tested = replace(served, metadata={**served.metadata, "tags": TAGS})
    with client_of(tested) as client, opened(browser, client) as page:
        expect(page.locator("#model")).to_have_text(
            f"vision version 1 (champion) · digest {served.digest.removeprefix('sha256:')[:12]} · 10 classes · cpu"
            "\ntest accuracy 97.8 % (95 % interval 95.7 % to 98.9 %)"
        )
        expect(page.locator("#classes span")).to_have_text(list(CLASSES))


def test_a_model_that_was_not_tested_claims_no_accuracy(page: Page) -> None:
    expect(page.locator("#model")).to_contain_text("10 classes")
    expect(page.locator("#model")).not_to_contain_text("accuracy")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: Browser, served: LoadedModel, tmp_path: Path, scheme: str) -> None:
    phone = ViewportSize(width=360, height=640)
    path = saved(tmp_path, name="IMG_" + "0123456789" * 8 + ".png")
    with client_of(served) as client, opened(browser, client, viewport=phone, color_scheme=scheme) as page:
        drop(page, path)
        sees_bars(page, ranked(served, path))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (sum(ground) < 3 * 128) == (scheme == "dark")


# --- explanations -----------------------------------------------------------------------------------------------------


def shown_png(page: Page) -> bytes:
    """The bytes of the heat map that the page shows."""
    read = "async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]"
    return bytes(page.locator("#heat").evaluate(read))


def explained(client: httpx.Client, path: Path, name: str) -> bytes:
    """The heat map as any other client gets it."""
    answer = client.post("/explain", files={"image": path.read_bytes()}, data={"class": name})
    assert answer.status_code == 200, answer.text
    return answer.content


def test_the_answer_and_any_other_class_are_explained(
    browser: Browser, convolutional: LoadedModel, tmp_path: Path
) -> None:
    path, other = saved(tmp_path), saved(tmp_path, name="other.png", seed=1)
    classes = ranked(convolutional, path)
    with client_of(convolutional) as client, opened(browser, client) as page:
        drop(page, path)
        sees_bars(page, classes)
        expect(page.locator("#why")).to_be_hidden()
        caption, pressed = page.locator("#caption"), page.locator(".bar[aria-pressed=true] .name")

        page.get_by_role("button", name="Explain").click()
        expect(caption).to_contain_text(f"Warm areas spoke for {classes[0]}")
        expect(pressed).to_have_text(classes[0])
        expect(page.get_by_alt_text(f"Heat map over noise.png for {classes[0]}")).to_be_visible()
        assert shown_png(page) == (first := explained(client, path, classes[0]))

        page.locator(".bar").nth(1).click()
        expect(caption).to_contain_text(f"Warm areas spoke for {classes[1]}")
        expect(pressed).to_have_text(classes[1])
        assert shown_png(page) == (second := explained(client, path, classes[1]))

        page.locator(".bar").nth(2).press("Enter")
        expect(caption).to_contain_text(f"Warm areas spoke for {classes[2]}")
        assert len({first, second, shown_png(page)}) == 3

        drop(page, other)
        sees_bars(page, ranked(convolutional, other))
        expect(page.locator("#why")).to_be_hidden()
        expect(pressed).to_have_count(0)


def test_a_server_that_does_not_explain_is_not_asked_again(page: Page, served: LoadedModel, tmp_path: Path) -> None:
    path = saved(tmp_path)
    page.route("**/explain", lambda route: route.fulfill(status=404, content_type="text/plain", body="Not Found"))
    button = page.get_by_role("button", name="Explain")
    drop(page, path)
    button.click()

    expect(button).to_be_hidden()
    expect(page.locator("#why")).to_be_hidden()
    expect(page.locator(".bar:enabled")).to_have_count(0)

    drop(page, path)
    sees_bars(page, ranked(served, path))
    expect(button).to_be_hidden()
    expect(page.locator(".bar:enabled")).to_have_count(0)


def test_why_an_explanation_failed_is_the_servers_sentence(page: Page, tmp_path: Path) -> None:
    page.route(
        "**/explain", lambda route: route.fulfill(status=503, json={"error": "8 explanations wait already; try again"})
    )
    drop(page, saved(tmp_path))
    page.get_by_role("button", name="Explain").click()

    expect(page.locator("#caption")).to_have_text("8 explanations wait already; try again")
    expect(page.locator("#heat")).to_be_hidden()
    expect(page.locator("#error")).to_be_hidden()
