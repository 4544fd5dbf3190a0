"""Policy server that speaks openpi's websocket protocol, and the client that calls one."""
