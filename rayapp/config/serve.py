"""Settings of a serving application: the args of serve_configs/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rayapp.config.base import REGISTERED_MODEL, Device, Section

MODEL_URI = "Model: models:/vision@ALIAS, models:/vision/VERSION, runs:/RUN_ID/model."


class ShadowConfig(Section):
    """A copy of the traffic for a second model, whose answers nobody gets."""

    alias: str = Field("challenger", description="Alias of the model that is tried on a copy of the traffic.")
    fraction: float = Field(0.0, ge=0, le=1, description="Part of the requests (0-1) that is copied; 0 is off.")


class CanaryConfig(Section):
    """A second model that answers some of the clients."""

    alias: str = Field("challenger", description="Alias of the model that answers some of the clients.")
    fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Part of the clients (0-1) that the canary answers, always the same ones; 0 is off.",
    )
    key_header: str = Field(
        "x-client-id",
        min_length=1,
        description="Header that tells clients apart; without it the API key does, and without that the image.",
    )


class RequestLogConfig(Section):
    """A sample of the predictions, kept as Parquet."""

    folder: str | None = Field(None, description="Folder (local or s3://) of the Parquet files [default: no log].")
    fraction: float = Field(0.01, gt=0, le=1, description="Part of the requests (0-1) that is kept.")
    images: bool = Field(False, description="Keep the images themselves too, not only their digests.")
    flush_s: float = Field(60.0, gt=0, le=3600, description="Longest time (seconds) until a prediction is in a file.")


class ServeArgs(Section):
    """What one serving application needs: the args of serve_configs/*.yaml."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    tracking_uri: str | None = Field(None, description="MLflow [default: MLFLOW_TRACKING_URI, or RAYAPP_HOME's own].")
    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu.")
    num_replicas: int = Field(1, ge=1, description="Processes that answer requests.")
    num_threads: int = Field(1, ge=1, description="CPU threads a replica gives the model.")
    poll_s: float = Field(2.0, gt=0, le=3600, description="Seconds between two looks at the alias.")
    max_batch: int = Field(32, ge=1, le=1024, description="Largest number of images that go through the model at once.")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="Longest wait (ms) of an image for others to join it.")
    max_queue: int = Field(1024, ge=1, description="Images that may wait; a request beyond gets 503.")
    timeout_s: float = Field(60.0, gt=0, le=3600, description="Longest time for an answer (seconds); then 504.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body (bytes); beyond it 413.")
    max_waiting_bytes: int = Field(
        2**29, ge=1024, description="Request bodies (bytes) that may be in memory at once; a request beyond gets 503."
    )
    max_image_pixels: int = Field(100_000_000, ge=1, description="Largest image (pixels); beyond it 413.")
    max_images: int = Field(1000, ge=1, le=1000, description="Most images in one predict_batch; beyond it 413.")
    api_keys: Path | None = Field(
        None,
        description="File of SHA-256 digests of API keys, one per line; requests then need"
        " 'Authorization: Bearer KEY'.",
    )
    access_log: bool = Field(False, description="Log each POST request as a line of JSON, on stderr of the replica.")
    shadow: ShadowConfig = ShadowConfig()
    canary: CanaryConfig = CanaryConfig()
    request_log: RequestLogConfig = RequestLogConfig()

    @model_validator(mode="after")
    def _a_request_has_room(self) -> Self:
        if self.max_waiting_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_waiting_bytes {self.max_waiting_bytes} is less than max_body_bytes {self.max_body_bytes}, so a"
                " request of that size would never be served; raise it, or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _second_model(self) -> Self:
        if self.shadow.fraction and self.canary.fraction and self.shadow.alias != self.canary.alias:
            raise ValueError(
                f"shadow.alias '{self.shadow.alias}' and canary.alias '{self.canary.alias}' differ, and a replica holds"
                " one model beside the one it serves; name the same, or turn one off"
            )
        return self
