"""A home with a registry in which versions are made and the alias is moved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rayapp.config.env import Home
from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker
from rayapp.registry.uris import ModelVersion
from tests.support.bundles import write_tiny_bundle
from tests.support.stores import home_at


@dataclass
class Site:
    """A home with a registry, in which versions are made and the alias is moved."""

    home: Home
    registry: Registry

    @classmethod
    def at(cls, folder: Path) -> Site:
        """A site with version 1 as champion."""
        home = home_at(folder)
        site = cls(home, Registry(home.tracking_uri))
        site.promote(site.register(1))
        return site

    def register(self, seed: int) -> ModelVersion:
        """A new version."""
        folder = self.home.folder / "made" / str(seed)
        write_tiny_bundle(folder, seed=seed)
        tracker = Tracker(self.home.tracking_uri, self.home.artifacts)
        run_id = tracker.open_run("serve", f"seed-{seed}", params={"model.name": "tiny"}, tags={})
        source = self.registry.log_bundle(run_id, folder)
        tracker.close_run(run_id, "FINISHED")
        return self.registry.register(run_id, source)

    def promote(self, version: ModelVersion) -> None:
        """Point champion at a version."""
        self.registry.set_alias(version, "champion")
