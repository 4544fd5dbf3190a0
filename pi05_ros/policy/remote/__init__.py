"""A policy on another machine, called over openpi's websocket protocol."""
