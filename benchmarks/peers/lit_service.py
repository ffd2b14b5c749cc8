"""LitServe around the same ONNX graph: batches of 16 gathered within 2 ms, /predict_image with the contract's answer.

Run it in the peers' environment: python benchmarks/peers/lit_service.py --bundle FOLDER --port 3200 --workers 2
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import litserve
import numpy as np
import onnxruntime
from PIL import Image
from starlette.responses import Response


class VisionApi(litserve.LitAPI):
    """decode_request, predict and encode_response run in the worker; batch and unbatch are LitServe's own."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.002, api_path="/predict_image")
        self._bundle = bundle

    def setup(self, device: str) -> None:
        """Load the graph in the worker, with one thread."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self._bundle / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        manifest = json.loads((self._bundle / "manifest.json").read_text(encoding="utf-8"))
        self._classes = manifest["class_names"]
        self._size = (manifest["preprocess"]["width_px"], manifest["preprocess"]["height_px"])

    # LitServe takes FastAPI's models from the annotations of the next and the last method: there must be none.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """(H, W, 3) uint8 of the form's file."""
        image = Image.open(io.BytesIO(request["image"].file.read())).convert("RGB")
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """(N, H, W, 3) of the gathered images."""
        return np.stack(inputs)

    def predict(self, images_nhwc: np.ndarray) -> np.ndarray:
        """(N, K) probabilities."""
        logits_nk = self._session.run(["logits"], {"images": images_nhwc})[0]
        exp_nk = np.exp(logits_nk - logits_nk.max(axis=1, keepdims=True))
        return exp_nk / exp_nk.sum(axis=1, keepdims=True)

    def unbatch(self, probabilities_nk: np.ndarray) -> list[np.ndarray]:
        """One row a request."""
        return list(probabilities_nk)

    def encode_response(self, row_k):  # type: ignore[no-untyped-def]
        """The contract's answer, as a finished response: a dict would be walked once more by FastAPI's encoder."""
        index = int(row_k.argmax())
        values = row_k.tolist()
        answer = {
            "predicted_class": self._classes[index],
            "predicted_index": index,
            "confidence": values[index],
            "probabilities": dict(zip(self._classes, values, strict=True)),
        }
        return Response(json.dumps(answer), media_type="application/json")


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of model.onnx and manifest.json")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1, help="inference workers, and as many API servers")
    options = parser.parse_args()
    server = litserve.LitServer(VisionApi(options.bundle), accelerator="cpu", workers_per_device=options.workers)
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=options.workers,
        generate_client_file=False,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
