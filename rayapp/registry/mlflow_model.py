"""A bundle as an MLflow model: standard clients load its onnx flavour, and our files lie beside the graph."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rayapp.vision.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

FILES = (MANIFEST, WEIGHTS, GRAPH)


def write_model(bundle: Bundle, model: LoggedModel, folder: Path) -> None:
    """Write bundle to folder as an MLflow model of the onnx flavour, with nothing of MLflow's global state.

    mlflow.onnx.log_model would take the tracking URI from there.
    """
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    spec = bundle.manifest.preprocess
    images = TensorSpec(np.dtype("uint8"), (-1, spec.height_px, spec.width_px, 3), "images")
    logits = TensorSpec(np.dtype("float32"), (-1, len(bundle.manifest.class_names)), "logits")
    mlflow.onnx.save_model(
        onnx.load(bundle.folder / GRAPH),
        str(folder),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        ),
        signature=ModelSignature(Schema([images]), Schema([logits])),
        # given, because finding them out would start a process for seconds
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "onnx", "onnxruntime")],
        save_as_external_data=False,
    )
    for name in FILES:  # the graph too: its digest is of our bytes, not of a second serialisation
        shutil.copyfile(bundle.folder / name, folder / name)
