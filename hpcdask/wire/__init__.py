"""Bytes, frames, messages and objects, and who may speak: no sockets here."""
