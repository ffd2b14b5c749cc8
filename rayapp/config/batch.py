"""Settings of batch prediction."""

from __future__ import annotations

from pydantic import Field

from rayapp.config.base import Device, ImagesKind, Section


class ImagesConfig(Section):
    """Which images are predicted."""

    path: str = Field("", description="Folder (local or s3://) of image or Parquet files, folders in it included.")
    dataset: ImagesKind | None = Field(
        None,
        description="folder: every image file. parquet: every row, in the Hugging Face layout"
        " [default: what lies there].",
    )
    image_column: str = Field(
        "image", min_length=1, description="Column of the images in Parquet files, a struct of bytes and path."
    )


class PredictorsConfig(Section):
    """Processes that predict, and their device."""

    num_workers: int | None = Field(
        None, ge=1, description="Processes, one per GPU or one per CPU core [default: as many as the cluster has]."
    )
    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu.")
