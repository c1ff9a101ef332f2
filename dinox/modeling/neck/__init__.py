"""Necks: equally wide multi-scale maps from a backbone."""

from dinox.modeling.neck.channel_mapper import ChannelMapper, group_norm

__all__ = ["ChannelMapper", "group_norm"]
