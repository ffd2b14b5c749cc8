"""What all settings have in common: frozen sections that refuse unknown keys, and the names that they share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

ImagesKind = Literal["folder", "parquet"]
DatasetName = Literal["digits", "cifar10", "cifar100", "fashion_mnist", "folder", "parquet"]
ModelName = Literal["mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "resnet9"]
Device = Literal["auto", "cpu", "cuda", "mps"]
REGISTERED_MODEL = "vision"


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
