"""Necks: equally wide multi-scale maps from a backbone."""

from dinox.modeling.neck.channel_mapper import ChannelMapper

__all__ = ["ChannelMapper"]
