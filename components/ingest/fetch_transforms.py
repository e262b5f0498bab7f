"""The transform that fetches, by the name that pipelines made with earlier versions import."""

from sigline.components.fetch.transforms import Fetch

__all__ = ["Fetch"]
