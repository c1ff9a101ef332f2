"""Small helpers that every other part of dinox may import."""
